"""Focal loss and Lq loss, which are functions of p_y alone."""

import pytest
import torch
import torch.nn.functional as F
from float64_reference import focal, lq
from torch import nn

from isda_repro.losses import FocalLoss, LqLoss


def batch(scale=2.0, dtype=torch.float64):
    torch.manual_seed(0)
    return (scale * torch.randn(9, 7, dtype=dtype)).requires_grad_(), torch.randint(7, (9,))


def value(criterion, logits, targets, progress=1.0):
    head = nn.Linear(3, 7, dtype=logits.dtype)
    return criterion(torch.zeros(len(targets), 3), logits, targets, head=head, progress=progress)


def both(criterion, reference, scale=2.0, progress=1.0):
    """Return loss and gradient of the criterion, and of the reference."""
    results = []
    for function in (lambda logits, targets: value(criterion, logits, targets, progress), reference):
        logits, targets = batch(scale)
        loss = function(logits, targets)
        loss.backward()
        results.append((loss.detach(), logits.grad))
    return results


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 1.0), (1.0, 2.0), (0.25, 0.5), (2.0, 0.0)])
def test_focal_loss_equals_its_formula(alpha, gamma):
    found, expected = both(FocalLoss(7, 3, alpha=alpha, gamma=gamma), lambda z, t: focal(z, t, alpha, gamma))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_focal_loss_of_gamma_0_is_scaled_cross_entropy():
    found, expected = both(FocalLoss(7, 3, alpha=0.5, gamma=0), lambda z, t: F.cross_entropy(z, t) / 2)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("q", [0.4, 0.7, 1.0])
def test_lq_loss_equals_its_formula(q):
    found, expected = both(LqLoss(7, 3, q=q), lambda z, t: lq(z, t, q))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_lq_loss_tends_to_cross_entropy_and_is_the_mean_absolute_error_at_1():
    found, expected = both(LqLoss(7, 3, q=1e-9), F.cross_entropy)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    # |one-hot - p| sums to 2 (1 - p_y)
    absolute = lambda z, t: (F.one_hot(t, 7) - z.softmax(1)).abs().sum(1).mean() / 2  # noqa: E731
    found, expected = both(LqLoss(7, 3, q=1.0), absolute)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_truncated_lq_loss_equals_its_formula_from_its_start_on():
    criterion = LqLoss(7, 3, q=0.7, truncation=0.3, truncation_start=0.5)
    found, expected = both(criterion, lambda z, t: lq(z, t, 0.7, truncation=0.3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    logits, targets = batch()
    own = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    assert 0 < (own <= 0.3).sum() < 9, "some are cut and some are not, or this tests nothing"
    assert (found[1][own <= 0.3] == 0).all()
    before, untruncated = both(criterion, lambda z, t: lq(z, t, 0.7), progress=0.49)
    torch.testing.assert_close(before, untruncated, rtol=1e-12, atol=1e-14)
    start, _ = both(criterion, lambda z, t: lq(z, t, 0.7), progress=0.5)
    torch.testing.assert_close(start, found)
    default = LqLoss(7, 3, q=0.7, truncation=0.3)
    for progress, same in ((0.33, before), (0.34, found)):
        torch.testing.assert_close(both(default, F.cross_entropy, progress=progress)[0], same)


@pytest.mark.parametrize("criterion", [FocalLoss(7, 3, gamma=0.5), FocalLoss(7, 3, gamma=2.0), LqLoss(7, 3)])
def test_gradients_are_finite_where_p_is_0_or_1(criterion):
    logits = torch.tensor([[1e4, 0, 0, 0, 0, 0, 0], [-1e4, 0, 0, 0, 0, 0, 0]], requires_grad=True)
    loss = value(criterion, logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
