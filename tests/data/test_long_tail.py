"""Long-tailed versions of data sets: how many images of each class, which ones, and the order of the options."""

import numpy as np
import pytest
import torch
from pictures import make_folder

from isda_repro.data import DataError, Source, Split, load_cifar, load_digits, load_folder
from isda_repro.data.source import long_tailed, narrowed

TOTALS = {  # as in the literature
    (10, 5000, 100): 12_406,
    (100, 500, 100): 10_847,
    (10, 5000, 10): 20_431,
    (100, 500, 10): 19_573,
    (100, 500, 50): 12_608,
}


def stand_in(classes, each):
    """Return labels in a mixed order, ``each`` of every class."""
    return torch.from_numpy(np.random.RandomState(7).permutation(classes * each) % classes)


def published(targets, classes, factor):
    """Return the images that IMBALANCECIFAR of Cao et al. takes, in the order in which it takes them."""
    targets, draws, kept = targets.numpy(), np.random.RandomState(0), []
    for label in range(classes):
        its = np.where(targets == label)[0]
        draws.shuffle(its)
        kept.append(its[: int(len(targets) / classes * factor ** (label / (classes - 1.0)))])
    return np.concatenate(kept)


@pytest.mark.parametrize(("size", "total"), TOTALS.items())
def test_numbers_and_images_are_those_of_the_published_code(size, total):
    classes, each, imbalance = size
    targets = stand_in(classes, each)
    kept = long_tailed(targets, classes, imbalance)
    counts = torch.bincount(targets[kept]).tolist()
    assert len(kept) == len(set(kept.tolist())) == sum(counts) == total
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (each, each // imbalance)
    assert kept.tolist() == published(targets, classes, 1 / imbalance).tolist()


def test_larger_imbalance_takes_a_part_of_the_images_and_no_draw_depends_on_a_seed():
    targets = stand_in(10, 500)
    torch.manual_seed(1)
    np.random.seed(1)
    some, fewer = (set(long_tailed(targets, 10, imbalance).tolist()) for imbalance in (10, 100))
    torch.manual_seed(2)
    np.random.seed(2)
    assert fewer < some == set(long_tailed(targets, 10, 10).tolist())


@pytest.mark.parametrize(("imbalance", "last"), [(29, 100), (2900, 1), (1000 / 29, 84)])
def test_quotients_are_rounded_down_without_an_error_of_rounding(imbalance, last):
    targets = torch.arange(2).repeat_interleave(2900)
    assert torch.bincount(targets[long_tailed(targets, 2, imbalance)]).tolist() == [2900, last]


@pytest.fixture(scope="module")
def source():
    targets = torch.arange(1000) % 10
    images = (torch.arange(1000)[:, None, None, None] // torch.tensor([1, 256]) % 256).to(torch.uint8)
    whole = Split(images, targets)
    return Source("numbers", whole, whole.select(torch.arange(200)), 10, tuple("0123456789"))


def numbers_of(split):
    return set((split.images[:, 0, 0].long() * torch.tensor([1, 256])).sum(1).tolist())


def test_holdout_comes_first_and_stays_balanced_and_the_limit_comes_last(source):
    held, tail = narrowed(source, holdout=200), narrowed(source, holdout=200, imbalance=10)
    assert numbers_of(tail.test) == numbers_of(held.test)
    assert numbers_of(tail.train) < numbers_of(held.train)
    assert tail.train_counts == [int(80 / 10 ** (label / 9)) for label in range(10)]
    half = narrowed(source, holdout=200, imbalance=10, train_limit=len(tail.train) // 2)
    assert numbers_of(half.train) < numbers_of(tail.train)
    assert len(half.train) == len(tail.train) // 2
    assert all(abs(a - b / 2) <= 1 for a, b in zip(half.train_counts, tail.train_counts, strict=True))
    assert numbers_of(narrowed(source, imbalance=10).test) == numbers_of(source.test)


def test_classes_of_different_sizes_follow_the_smallest():
    targets = torch.tensor([0] * 30 + [1] * 20 + [2] * 50)
    assert torch.bincount(targets[long_tailed(targets, 3, 4)]).tolist() == [20, 10, 5]


def test_imbalance_that_leaves_a_class_empty_is_refused(source):
    assert narrowed(source, imbalance=100).train_counts[-1] == 1
    with pytest.raises(DataError, match=r"imbalance=101.*100 training images"):
        narrowed(source, imbalance=101)


def test_digits_and_folders_have_long_tailed_versions(tmp_path):
    digits = load_digits()
    tail = load_digits(imbalance=10)
    assert tail.train_counts == [int(min(digits.train_counts) / 10 ** (label / 9)) for label in range(10)]
    assert torch.equal(tail.test.images, digits.test.images)
    root = make_folder(tmp_path / "pets")
    loaded = load_folder("pets", root, 16, imbalance=4)
    assert loaded.train_counts == [8, 4, 2]
    assert len(loaded.test) == 12


@pytest.mark.parametrize(("name", "total"), [("cifar10", 12_406), ("cifar100", 10_847)])
def test_real_cifar_has_the_published_numbers(name, total, cifar_dir):
    whole = load_cifar(name, cifar_dir, download=False)
    tail = narrowed(whole, imbalance=100)
    assert len(tail.train) == total
    assert tail.test.images.shape == whole.test.images.shape
    chosen = torch.from_numpy(published(whole.train.targets, whole.num_classes, 0.01)).sort().values
    assert torch.equal(tail.train.images, whole.train.images[chosen])
    assert torch.equal(tail.train.targets, whole.train.targets[chosen])
