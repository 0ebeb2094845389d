"""Class-balanced weights, against the sum that defines the effective number of samples."""

import pytest
import torch

from isda_repro.losses import class_balanced_weights

COUNTS = [500, 150, 20, 5, 1]


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_weights_are_the_inverse_of_the_effective_numbers_with_the_sum_c(beta):
    effective = [sum(beta**i for i in range(n)) for n in COUNTS]  # E_n = 1 + beta E_(n-1)
    total = sum(1 / one for one in effective)
    found = class_balanced_weights(torch.tensor(COUNTS), beta)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([len(COUNTS) / one / total for one in effective], rel=1e-9)


def test_default_is_the_beta_of_long_tailed_cifar_and_nearly_the_inverse_of_the_counts():
    found = class_balanced_weights(COUNTS)
    assert torch.equal(found, class_balanced_weights(COUNTS, 0.9999))
    inverse = 1 / torch.tensor(COUNTS, dtype=torch.float64)
    torch.testing.assert_close(found, 5 * inverse / inverse.sum(), rtol=0.03, atol=0)
    assert not torch.allclose(found, 5 * inverse / inverse.sum(), rtol=0.005, atol=0)


@pytest.mark.parametrize("counts", [[], [3, 0], [3, -1], [[1, 2]], [float("nan")]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        class_balanced_weights(counts)


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match="beta="):
        class_balanced_weights(COUNTS, beta)
