"""Running statistics against one pass over all samples, and against the paper's equations."""

import pytest
import torch
from criteria import STATISTICS, as_kept, covariances
from float64_reference import merge, two_pass

from isda_repro.losses import IGNORED, ClassStatistics
from isda_repro.losses.covariances import class_statistics as module
from isda_repro.losses.covariances import tiles

WAYS = ["square", "square/one by one", "square/accelerator", "square/tiles"]
WAYS += [kind + way for kind in ("packed", "diagonal") for way in ("", "/accelerator")]


@pytest.fixture(params=WAYS)
def make(request, monkeypatch):
    """Return the class of each kind of statistics, with each of its ways to merge a batch."""
    kind, _, way = request.param.partition("/")
    monkeypatch.setattr(module, "BATCHED_BYTES", 0 if way == "one by one" else 2**40)
    if way == "tiles":
        monkeypatch.setattr(module, "fill_tiles", lambda samples, classes: True)
    if way in ("accelerator", "tiles"):
        request.getfixturevalue("accelerator")
    return STATISTICS[kind]


def error(statistics, covariance):
    """Return the largest absolute error divided by the largest absolute entry."""
    covariance = as_kept(statistics, covariance)
    return ((covariances(statistics) - covariance).abs().max() / covariance.abs().max()).item()


def batches(count, size, classes, width):
    """Yield random batches, most of which lack some classes; each class has its own mean and variance."""
    torch.manual_seed(0)
    for step in range(count):
        present = torch.randperm(classes)[: 1 + step % classes]
        targets = present[torch.randint(len(present), (size,))]
        yield torch.randn(size, width).double() * (1 + targets[:, None]) + 3 * targets[:, None], targets


def test_each_merge_equals_equations_9_to_11_and_all_merges_equal_one_pass(make):
    statistics = make(7, 5).double()
    state = torch.zeros(7, 5).double(), torch.zeros(7, 5, 5).double(), torch.zeros(7).double()
    seen = list(batches(20, 9, 6, 5))  # class 6 never occurs
    for features, targets in seen:
        statistics.update(features, targets)
        state = merge(*state, features, targets)
        torch.testing.assert_close(statistics.mean, state[0], rtol=1e-11, atol=1e-12)
        expected = as_kept(statistics, state[1])
        torch.testing.assert_close(covariances(statistics), expected, rtol=1e-11, atol=1e-11)
    features, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
    mean, covariance = two_pass(features, targets, 7)
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(covariances(statistics), as_kept(statistics, covariance), rtol=1e-11, atol=1e-11)
    assert torch.equal(statistics.count, torch.bincount(targets, minlength=7).double())
    assert covariances(statistics)[6].abs().max() == 0


@pytest.mark.parametrize("size", [2, 10])
def test_absent_class_keeps_its_bits(make, size):
    statistics = make(3, 4)
    statistics.update(torch.randn(49, 4), torch.arange(49) % 3)
    before = {name: one[2].clone() for name, one in statistics.state_dict().items()}
    statistics.update(torch.randn(size, 4), torch.arange(size) % 2)
    for name, one in statistics.state_dict().items():
        assert torch.equal(one[2], before[name]), name


def test_one_sample_has_no_variance(make):
    statistics = make(2, 3)
    statistics.update(torch.randn(1, 3) * 1e4, torch.tensor([1]))
    assert (covariances(statistics) == 0).all()


def test_1000_small_batches_in_float32_stay_close_to_float64(make):
    """The features are like the output of a ReLU: four samples in a batch, and a mean that is not zero."""
    torch.manual_seed(0)
    features, targets = (torch.randn(1000, 4, 6) + 2).relu(), torch.randint(3, (1000, 4))
    statistics = make(3, 6)
    for batch, labels in zip(features, targets, strict=True):
        statistics.update(batch, labels)
    mean, covariance = two_pass(features.flatten(0, 1), targets.flatten(), 3)
    assert (statistics.mean - mean).abs().max() / mean.abs().max() < 2e-5
    assert error(statistics, covariance) < 2e-5
    assert (covariances(statistics) - covariances(statistics).mT).abs().max() / covariance.abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 2, 50])
def test_mean_far_from_zero_costs_little_precision_and_covariances_are_never_negative(make, count):
    """The running mean is still zero at the first batch, and differences from it would cancel."""
    torch.manual_seed(0)
    features, targets = torch.randn(count, 12, 8) + 1e4, torch.randint(3, (count, 12))
    statistics = make(3, 8)
    for batch, labels in zip(features, targets, strict=True):
        statistics.update(batch, labels)
    _, covariance = two_pass(features.flatten(0, 1), targets.flatten(), 3)
    assert error(statistics, covariance) < 2e-3  # measured: 5e-4
    found, largest = covariances(statistics), covariance.abs().max()
    assert (found - found.mT).abs().max() <= 1e-6 * largest
    assert torch.linalg.eigvalsh(found.double()).min() >= -1e-6 * largest


def test_counts_are_whole_numbers_beyond_what_float32_can_count(make):
    statistics = make(1, 1)
    statistics.half().count.fill_(2**24)
    statistics.update(torch.randn(1, 1), torch.tensor([0]))
    assert statistics.count.item() == 2**24 + 1


@pytest.mark.parametrize("kind", STATISTICS)
def test_ignored_samples_on_an_accelerator_count_for_nothing_whatever_their_features(kind, accelerator):
    features, targets = torch.randn(9, 4).double(), torch.arange(9) % 2
    expected, found = STATISTICS[kind](3, 4).double(), STATISTICS[kind](3, 4).double()
    expected.update(features[:6], targets[:6])
    features[6:], targets[6:] = float("inf"), IGNORED
    found.update(features, targets)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("limit", [1, 2**30], ids=["one tile at a time", "all at once"])
@pytest.mark.parametrize("sizes", [[600, 0, 1, 0], [0, 0, 0, 128], [16, 32, 48, 33], [255, 256, 257, 513]], ids=str)
def test_tiles_add_the_products_of_each_class(sizes, limit, monkeypatch):
    """Classes of a whole number of tiles and of some more rows, absent ones and one of all samples."""
    made, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda one, other: made.append(len(one)) or bmm(one, other))
    torch.manual_seed(0)
    targets = torch.arange(4).repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes))]
    samples, matrix = torch.randn(len(targets), 5).double(), torch.randn(4, 5, 5).double()
    scale = torch.tensor([0.5, 2.0, 3.0, 0.25]).double()
    expected = matrix.clone()
    for number, target in enumerate(targets):
        expected[target] += scale[target] * torch.outer(samples[number], samples[number])
    tiles.add_products(matrix, samples, targets, scale, limit)
    torch.testing.assert_close(matrix, expected)
    assert (max(made) == 1) == (limit == 1)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_large_batch_on_an_accelerator_equals_one_pass(accelerator, classes, monkeypatch):
    torch.manual_seed(0)
    features, targets = torch.randn(300, 6) * 2 + 50, torch.randint(classes, (300,)).clamp(max=2)  # class 3: absent
    features[::11], targets[::11] = torch.inf, IGNORED
    used = []
    monkeypatch.setattr(module, "add_products", lambda *inputs: used.append(1) or tiles.add_products(*inputs))
    statistics = ClassStatistics(classes, 6)
    for half in (slice(None, 150), slice(150, None)):
        with torch.autocast("cpu", torch.bfloat16):
            statistics.update(features[half], targets[half])
    assert len(used) == (2 if classes > 1 else 0)
    assert error(statistics, two_pass(features, targets, classes)[1]) < 1e-5
