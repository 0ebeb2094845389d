"""Running statistics against one pass over all samples together."""

import pytest
import torch
from reference import merge, two_pass

from isda_repro.losses import ClassStatistics
from isda_repro.losses import statistics as module


@pytest.fixture(params=["batched", "one by one", "accelerator"])
def form(request, monkeypatch):
    """Each of the ways in which a batch can be merged; the accelerator's is run on the CPU."""
    monkeypatch.setattr(module, "BATCHED_BYTES", 0 if request.param == "one by one" else 2**40)
    if request.param == "accelerator":
        monkeypatch.setattr(module, "is_asynchronous", lambda tensor: True)
    return request.param


def batches(count, size, classes, width, dtype=torch.float64):
    torch.manual_seed(0)
    for step in range(count):
        present = torch.randperm(classes)[: 1 + step % classes]  # some classes are absent from most batches
        targets = present[torch.randint(len(present), (size,))]
        yield torch.randn(size, width, dtype=dtype) * (1 + targets[:, None]) + 3 * targets[:, None], targets


def test_many_batches_with_absent_classes_are_one_pass_over_all(form):
    statistics = ClassStatistics(7, 5).double()
    seen = list(batches(40, 9, 6, 5))  # class 6 never occurs
    for features, targets in seen:
        statistics.update(features, targets)
    features, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
    mean, covariance = two_pass(features, targets, 7)
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(statistics.covariance, covariance, rtol=1e-11, atol=1e-11)
    assert torch.equal(statistics.count, torch.bincount(targets, minlength=7))
    assert statistics.covariance[6].abs().max() == 0


def test_each_merge_is_equations_9_to_11(form):
    statistics = ClassStatistics(4, 3).double()
    state = (torch.zeros(4, 3).double(), torch.zeros(4, 3, 3).double(), torch.zeros(4).double())
    for features, targets in batches(10, 6, 4, 3):
        statistics.update(features, targets)
        state = merge(*state, features, targets)
        torch.testing.assert_close(statistics.mean, state[0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(statistics.covariance, state[1], rtol=1e-11, atol=1e-13)


def test_a_class_that_is_absent_keeps_its_very_bits(form):
    statistics = ClassStatistics(3, 4)
    statistics.update(torch.randn(49, 4), torch.arange(49) % 3)
    before = statistics.mean[2].clone(), statistics.covariance[2].clone()
    statistics.update(torch.randn(10, 4), torch.arange(10) % 2)
    assert torch.equal(statistics.mean[2], before[0])
    assert torch.equal(statistics.covariance[2], before[1])


def test_splitting_a_batch_and_the_order_of_samples_do_not_matter(form):
    features, targets = torch.randn(30, 4).double(), torch.randint(3, (30,))
    whole, split, permuted = (ClassStatistics(3, 4).double() for _ in range(3))
    whole.update(features, targets)
    for part in range(0, 30, 7):
        split.update(features[part : part + 7], targets[part : part + 7])
    order = torch.randperm(30)
    permuted.update(features[order], targets[order])
    for other in (split, permuted):
        torch.testing.assert_close(other.mean, whole.mean)
        torch.testing.assert_close(other.covariance, whole.covariance)


def test_one_sample_has_no_variance(form):
    statistics = ClassStatistics(2, 3)
    statistics.update(torch.randn(1, 3) * 1e4, torch.tensor([1]))
    assert statistics.covariance.abs().max() == 0
    assert statistics.covariance.isfinite().all()


def test_20000_small_batches_in_float32_stay_close_to_float64(form):
    """Features as after a ReLU, four samples a batch, mean not zero. Measured: 1.1e-5 of the largest entry."""
    torch.manual_seed(0)
    features = (torch.randn(20_000, 4, 6) + 2).relu()
    targets = torch.randint(3, (20_000, 4))
    statistics = ClassStatistics(3, 6)
    for batch, labels in zip(features, targets, strict=True):
        statistics.update(batch, labels)
    mean, covariance = two_pass(features.flatten(0, 1), targets.flatten(), 3)
    assert torch.equal(statistics.count, torch.bincount(targets.flatten(), minlength=3))
    assert (statistics.mean - mean).abs().max() / mean.abs().max() < 1e-4
    assert (statistics.covariance - covariance).abs().max() / covariance.abs().max() < 1e-4
    asymmetry = (statistics.covariance - statistics.covariance.mT).abs().max()
    assert asymmetry / covariance.abs().max() < 1e-5


def test_a_mean_far_from_zero_costs_no_precision(form):
    torch.manual_seed(0)
    noise = torch.randn(200, 50, 3)
    statistics = ClassStatistics(1, 3)
    for batch in noise:
        statistics.update(batch + 1000, torch.zeros(50, dtype=torch.int64))
    _, covariance = two_pass(noise.flatten(0, 1), torch.zeros(10_000, dtype=torch.int64), 1)
    torch.testing.assert_close(statistics.covariance.double(), covariance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_mean_far_from_zero_costs_the_first_batches_no_precision(form, count):
    """The first batch comes when the running mean is still zero: differences from that mean would cancel."""
    torch.manual_seed(0)
    features, targets = torch.randn(count, 12, 8) + 1e4, torch.randint(3, (count, 12))
    statistics = ClassStatistics(3, 8)
    for batch, labels in zip(features, targets, strict=True):
        statistics.update(batch, labels)
    _, covariance = two_pass(features.flatten(0, 1), targets.flatten(), 3)
    assert (statistics.covariance - covariance).abs().max() / covariance.abs().max() < 2e-3  # measured: 5e-4


def test_covariances_are_symmetric_and_never_negative(form):
    torch.manual_seed(0)
    statistics = ClassStatistics(3, 8)
    for _ in range(5):
        statistics.update(torch.randn(12, 8) + 100, torch.randint(3, (12,)))
    largest = statistics.covariance.abs().max()
    assert (statistics.covariance - statistics.covariance.mT).abs().max() <= 1e-6 * largest
    assert torch.linalg.eigvalsh(statistics.covariance.double()).min() >= -1e-6 * largest


def test_counts_are_whole_numbers_beyond_what_float32_can_count():
    statistics = ClassStatistics(1, 1)
    statistics.count.fill_(2**24)
    statistics.update(torch.randn(1, 1), torch.tensor([0]))
    assert statistics.count.item() == 2**24 + 1
