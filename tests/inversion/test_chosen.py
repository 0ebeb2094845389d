import pytest
import torch

from isda_repro.data import Source, Split
from isda_repro.errors import UserError
from isda_repro.inversion.chosen import chosen, part_of

SPLIT = Split(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.tensor([1, 0, 0, 2, 1, 1, 2, 0]))


@pytest.mark.parametrize(
    ("count", "classes", "expected"),
    [(3, [0, 1, 2], [0, 1, 3]), (3, [1], [0, 4, 5]), (5, [2, 0], [1, 2, 3, 6, 7]), (4, [0, 1], [0, 1, 2, 4])],
)
def test_the_first_of_each_class_in_turn(count, classes, expected):
    assert chosen(SPLIT, None, count, classes).tolist() == expected


def test_those_that_are_named():
    assert chosen(SPLIT, [6, 0], 99, [1, 2]).tolist() == [6, 0]


@pytest.mark.parametrize(
    ("wanted", "count", "sentence"),
    [
        (None, 0, "count=0 must be a whole number from 1 on"),
        (None, 7, "count=7, but there are 5 images of these classes"),
        ([], 1, r"images=\[\] names no image"),
        ([8], 1, "images= has 8, and there are images 0 to 7"),
        ([-1], 1, "images= has -1, and there are images 0 to 7"),
        ([0, 1], 1, r"images= has 1, of class 0: this is for images of classes \[1, 2\]"),
    ],
)
def test_images_that_cannot_be_had(wanted, count, sentence):
    with pytest.raises(UserError, match=sentence):
        chosen(SPLIT, wanted, count, [1, 2])


def test_parts():
    other = Split(SPLIT.images[:2], SPLIT.targets[:2])
    source = Source("toy", SPLIT, other, 3, ("a", "b", "c"))
    assert part_of(source, "train") is SPLIT
    assert part_of(source, "test") is other
    with pytest.raises(UserError, match="part=all must be one of train, test"):
        part_of(source, "all")
