"""Class probabilities in the statistics: each sample counts p_c times in class c."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from criteria import STATISTICS, WITH_SIGMA2, as_kept, assert_same, covariances, make
from float64_reference import two_pass_soft
from test_soft_targets import call, mixed

from isda_repro.losses.covariances import packed as packed_module
from isda_repro.losses.covariances import soft_rows


@pytest.mark.parametrize("way", ["cpu", "accelerator"], indirect=True)
@pytest.mark.parametrize("most", [1, 3, 2**25])
@pytest.mark.parametrize("kind", STATISTICS)
def test_statistics_equal_one_weighted_pass(kind, most, way, monkeypatch):
    """Soft and hard batches take turns; the last class has no share, and another one a tiny share at first."""
    monkeypatch.setattr(soft_rows, "ROWS_BYTES", most)
    monkeypatch.setattr(packed_module, "ACCELERATOR_CHUNK_BYTES", most * 5 * 5 * 8)
    statistics, seen = STATISTICS[kind](7, 5).double(), []
    for seed in range(5):
        torch.manual_seed(seed)
        features, targets = torch.randn(9, 5).double() + 3, mixed(9, seed=seed)
        targets[:, 5] = 1e-3 if seed < 2 else targets[:, 5]
        if seed == 2:
            targets = torch.randint(5, (9,))
        statistics.update(features, targets)
        seen.append((features, targets if seed != 2 else F.one_hot(targets, 7).double()))
        all_features, all_targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
        mean, covariance = two_pass_soft(all_features, all_targets)
        assert_same(statistics.count, all_targets.sum(0), tolerance=1e-14)
        assert_same(statistics.mean, mean)
        assert_same(covariances(statistics), as_kept(statistics, covariance))


@pytest.mark.parametrize("way", ["cpu", "accelerator"], indirect=True)
@pytest.mark.parametrize("kind", STATISTICS)
def test_mean_far_from_zero_costs_little_precision(kind, way):
    torch.manual_seed(0)
    features, targets = torch.randn(36, 8) + 1e4, mixed(36, 3).float()
    statistics, exact = STATISTICS[kind](3, 8), STATISTICS[kind](3, 8).double()
    for one in (statistics, exact):
        one.update(features.to(one.mean.dtype), targets.to(one.mean.dtype))
    for key, expected in exact.state_dict().items():
        found = statistics.state_dict()[key].double()
        assert (found - expected).abs().max() < 2e-3 * expected.abs().max(), key


@pytest.mark.parametrize("way", ["cpu", "accelerator"], indirect=True)
@pytest.mark.parametrize("poison", [torch.inf, torch.nan, 1e30])
@pytest.mark.parametrize("name", [name for name in WITH_SIGMA2 if name != "isda_identity"])
def test_samples_that_overflow_never_enter_the_statistics(name, poison, way):
    criterion, head, features, _ = make(name, dtype=torch.float32)
    targets, sound = mixed(24).float(), torch.arange(24) % 5 != 3
    poisoned = features.detach().clone()
    poisoned[~sound, 2] = poison
    clean = copy.deepcopy(criterion)
    call(criterion, head, poisoned, targets)
    call(clean, head, features[sound], targets[sound])
    assert_same(criterion.state_dict(), clean.state_dict(), tolerance=1e-6)


def test_class_without_a_share_keeps_its_bits(request):
    for kind, is_accelerator in itertools.product(STATISTICS.values(), (False, True)):
        statistics = kind(3, 4)
        statistics.update(torch.randn(49, 4), torch.arange(49) % 3)
        before = {name: one[2].clone() for name, one in statistics.state_dict().items()}
        if is_accelerator:
            request.getfixturevalue("accelerator")
        statistics.update(torch.randn(10, 4), mixed(10, 3).float())
        for name, one in statistics.state_dict().items():
            assert torch.equal(one[2], before[name]), name
