"""Selection of the real images that are inverted."""

from types import SimpleNamespace

import pytest
import torch

from isda_repro.data import Source, Split
from isda_repro.errors import UserError
from isda_repro.inversion.loading import choose_images, name_of, split_of

SPLIT = Split(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.tensor([1, 0, 0, 2, 1, 1, 2, 0]))


@pytest.mark.parametrize(
    ("count", "classes", "expected"),
    [(3, [0, 1, 2], [0, 1, 3]), (3, [1], [0, 4, 5]), (5, [2, 0], [1, 2, 3, 6, 7]), (4, [0, 1], [0, 1, 2, 4])],
)
def test_first_images_of_each_class_are_chosen_in_turn(count, classes, expected):
    assert choose_images(SPLIT, None, count, classes).tolist() == expected


def test_images_that_are_named_are_chosen_in_their_order():
    assert choose_images(SPLIT, [6, 0], 99, [1, 2]).tolist() == [6, 0]


@pytest.mark.parametrize(
    ("wanted", "count", "named"),
    [
        (None, 0, "count=0"),
        (None, 6, "count=6.*5"),
        ([], 1, r"images=\[\]"),
        ([8], 1, "images=.*8.*7"),
        ([-1], 1, "images=.*-1"),
        ([0, 1], 1, "images=.*1.*class 0"),
    ],
)
def test_images_that_there_are_not_are_named(wanted, count, named):
    with pytest.raises(UserError, match=named):
        choose_images(SPLIT, wanted, count, [1, 2])


def test_part_is_the_training_images_or_those_that_are_evaluated():
    other = Split(SPLIT.images[:2], SPLIT.targets[:2])
    source = Source("toy", SPLIT, other, 3, ("a", "b", "c"))
    assert split_of(source, "train") is SPLIT
    assert split_of(source, "test") is other
    with pytest.raises(UserError, match="part=all"):
        split_of(source, "all")
    in_files = SimpleNamespace(name="toy", train=object(), test=other)
    with pytest.raises(UserError, match="toy"):
        split_of(in_files, "train")
    held_out = Source("toy", SPLIT, other, 3, ("a", "b", "c"), evaluated_on="holdout")
    assert [name_of(held_out, part) for part in ("train", "test")] == ["train", "holdout"]
