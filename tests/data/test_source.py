"""Holdouts, limits and labels of a data set, and the digits."""

import hashlib
import subprocess
import sys

import pytest
import torch

from isda_repro.data import DataError, Source, Split, load_digits, verify
from isda_repro.data.source import narrowed, stratified_order


def numbered(targets):
    """Return a split whose images encode their index."""
    targets = torch.as_tensor(targets)
    numbers = torch.arange(len(targets))
    return Split((numbers[:, None, None, None] // torch.tensor([1, 256]) % 256).to(torch.uint8), targets)


def numbers_of(split):
    return (split.images[:, 0, 0].long() * torch.tensor([1, 256])).sum(1)


@pytest.fixture(scope="module")
def source():
    targets = torch.arange(1000) % 10
    return Source("numbers", numbered(targets), numbered(targets[:200]), 10, tuple("0123456789"))


def take(source, train_limit=None, test_limit=None, holdout=None):
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout)


def per_class(split, num_classes=10):
    return torch.bincount(split.targets, minlength=num_classes)


def test_holdout_is_disjoint_stratified_and_the_same_every_time(source):
    held = take(source, holdout=250)
    train, evaluated = numbers_of(held.train), numbers_of(held.test)
    assert held.evaluated_on == "holdout"
    assert source.evaluated_on == "test"
    assert torch.equal(torch.cat([train, evaluated]).sort().values, torch.arange(1000))
    assert per_class(held.test).tolist() == [25] * 10
    torch.manual_seed(123)  # the holdout must not depend on a run's seed
    assert torch.equal(numbers_of(take(source, holdout=250).test), evaluated)


def test_limits_are_balanced_nested_and_after_the_holdout(source):
    limited = take(source, train_limit=100, test_limit=50, holdout=250)
    held = take(source, holdout=250)
    assert per_class(limited.train).tolist() == [10] * 10
    assert per_class(limited.test).tolist() == [5] * 10
    assert set(numbers_of(limited.train).tolist()) <= set(numbers_of(held.train).tolist())
    assert set(numbers_of(limited.test).tolist()) <= set(numbers_of(held.test).tolist())
    smaller = take(source, train_limit=37)
    assert set(per_class(smaller.train).tolist()) == {3, 4}
    assert set(numbers_of(smaller.train).tolist()) <= set(numbers_of(take(source, train_limit=100).train).tolist())


def test_each_purpose_has_a_fixed_stream_of_its_own(source):
    """Committed results depend on these images."""
    both = take(source, train_limit=6, test_limit=6)
    found = [numbers_of(split).tolist() for split in (take(source, holdout=6).test, both.train, both.test)]
    assert found == [[476, 663, 775, 778, 809, 962], [52, 517, 548, 663, 721, 744], [6, 34, 65, 69, 143, 177]]


def test_nothing_asked_nothing_changed(source):
    assert take(source) == source
    assert torch.equal(take(source, train_limit=1000).train.images, source.train.images)


@pytest.mark.parametrize("option", ["train_limit", "test_limit", "holdout"])
@pytest.mark.parametrize("count", [0, -5, 1001, 2.5, True])
def test_bad_counts_are_named(source, option, count):
    with pytest.raises(DataError, match=f"{option}={count}"):
        take(source, **{option: count})


def test_largest_counts_leave_a_training_image(source):
    assert len(take(source, holdout=999).train) == 1
    assert len(take(source, test_limit=200).test) == 200
    for bad in ({"holdout": 1000}, {"test_limit": 201}, {"train_limit": 1, "holdout": 1000}):
        with pytest.raises(DataError, match="|".join(bad)):
            take(source, **bad)


@pytest.mark.parametrize("size", [1, 3, 10, 64, 365, 900])
def test_every_beginning_of_the_stratified_order_is_stratified(size):
    targets = torch.repeat_interleave(torch.arange(4), torch.tensor([500, 300, 150, 50]))
    order = stratified_order(targets, "test")
    assert torch.equal(order.sort().values, torch.arange(1000))
    counts = torch.bincount(targets[order[:size]], minlength=4)
    assert (counts - size * torch.tensor([0.5, 0.3, 0.15, 0.05])).abs().max() <= 1
    assert not torch.equal(order, stratified_order(targets, "another purpose"))


def test_fewer_images_than_classes_are_of_different_classes():
    targets = torch.arange(500) % 100
    assert len(targets[stratified_order(targets, "test")[:64]].unique()) == 64


@pytest.mark.parametrize("label", [-1, 10])
@pytest.mark.parametrize("part", ["train", "test"])
def test_label_outside_the_classes_is_named_with_its_place(source, part, label):
    targets = source.train.targets.clone()
    targets[17] = label
    parts = {"train": source.train, "test": source.test, part: Split(source.train.images, targets)}
    with pytest.raises(DataError, match=rf"numbers, {part} .* 17 .* {label}\b"):
        Source("numbers", **parts, num_classes=10, class_names=source.class_names)


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (lambda images, targets: (images, targets[:5]), "1000 .* 5 "),
        (lambda images, targets: (images[:0], targets[:0]), "0"),
        (lambda images, targets: (images.float(), targets), "float32"),
        (lambda images, targets: (images[0], targets), "1, 1, 2"),
        (lambda images, targets: (images, targets.int()), "int32"),
        (lambda images, targets: (images, targets[:, None]), "1000, 1"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_described(source, change, token):
    bad = Split(*change(source.train.images, source.train.targets))
    for parts in ((bad, source.test), (source.test, bad)):
        with pytest.raises(DataError, match=f"numbers.*{token}"):
            Source("numbers", *parts, 10, source.class_names)


def test_digits_are_scikit_learns_at_its_pixels_with_a_fifth_to_test():
    from sklearn import datasets

    digits = load_digits()
    for split, count in ((digits.train, 1437), (digits.test, 360)):
        assert split.images.shape == (count, 3, 8, 8)
        assert split.images.dtype == torch.uint8
        assert split.images.is_contiguous()
        assert torch.equal(split.images, split.images[:, :1].expand(-1, 3, -1, -1))
    assert set(per_class(digits.test).tolist()) <= {35, 36, 37}
    assert (digits.num_classes, digits.class_names, digits.evaluated_on) == (10, tuple("0123456789"), "test")
    bunch = datasets.load_digits()
    expected = torch.tensor((bunch.images * 255 / 16).round()).to(torch.uint8).flatten(1)
    found = torch.cat([digits.train.images, digits.test.images])[:, 0].flatten(1)
    labels = torch.cat([digits.train.targets, digits.test.targets])
    assert sorted(zip(map(bytes, found.numpy()), labels.tolist(), strict=True)) == sorted(
        zip(map(bytes, expected.numpy()), bunch.target.tolist(), strict=True)
    )


def test_digits_split_is_the_one_that_results_were_made_on():
    # Committed results depend on this split; a change of it requires another numerics_version.
    digits = load_digits(holdout=200, train_limit=500)
    digests = [hashlib.md5(s.images.numpy().tobytes()).hexdigest() for s in (digits.train, digits.test)]
    assert digests == ["248e6ca8a6759a4274b261c548dcd5fc", "5b0a1fdea3429b439e143e1b9a3a1018"]


def test_digits_are_verified_without_files():
    report = verify("digits", "unused")
    assert report.ok
    assert report.files == ()
    assert (sum(report.train_counts), sum(report.test_counts)) == (1437, 360)
    assert report.test_counts == tuple(per_class(load_digits().test).tolist())


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torchvision", "sklearn", "scipy", "pandas", "hydra", "omegaconf", "PIL", "matplotlib"]
    code = f"import sys, isda_repro.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
