"""L-Softmax against its formula in angles."""

import math

import pytest
import torch
import torch.nn.functional as F
from float64_reference import l_softmax
from torch import nn

from isda_repro.losses import LargeMarginSoftmax
from isda_repro.losses.large_margin import psi

MARGINS = [1, 2, 3, 4, 5]


def example(margin, samples=40):
    torch.manual_seed(0)
    head = nn.Linear(3, 5, bias=False).double()
    features = (3 * torch.randn(samples, 3)).double().requires_grad_()
    return LargeMarginSoftmax(5, 3, margin=margin).double(), head, features, torch.randint(5, (samples,))


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_value_and_gradients_equal_the_formula(margin, progress):
    criterion, head, features, targets = example(margin)
    loss = criterion(features, head(features), targets, head=head, progress=progress)
    loss.backward()
    twin, weight = (one.detach().clone().requires_grad_() for one in (features, head.weight))
    expected = l_softmax(twin, weight, targets, margin, beta=1000 * (1 + 0.3 * progress) ** -45)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(features.grad, twin.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(head.weight.grad, weight.grad, rtol=1e-9, atol=1e-11)
    if margin == 1:
        torch.testing.assert_close(loss, F.cross_entropy(head(features), targets), rtol=1e-12, atol=0)
    own = head(features).gather(1, targets[:, None])[:, 0] / head.weight[targets].norm(dim=1) / features.norm(dim=1)
    intervals = (margin * own.acos() / math.pi).floor()
    assert set(intervals.tolist()) == set(range(margin)), "every interval of the angle occurs"


@pytest.mark.parametrize("margin", MARGINS)
def test_psi_is_continuous_falls_and_is_never_above_the_cosine(margin):
    theta = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    values = psi(theta.cos(), margin)
    assert values[0] == pytest.approx(1)
    assert values[-1] == pytest.approx(1 - 2 * margin)
    assert (values.diff() <= 1e-12).all(), "it falls"
    assert values.diff().abs().max() <= 2e-4 * margin, "and never jumps, at the ends of the intervals neither"
    assert (values <= theta.cos() + 1e-12).all()


@pytest.mark.parametrize("margin", MARGINS)
def test_gradients_are_finite_at_every_end_of_an_interval(margin):
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.tensor([math.pi * k / margin for k in range(margin + 1)])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    features[0], features[-1] = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])  # cosines of exactly 1 and -1
    features = torch.cat([features, torch.zeros(1, 2)]).requires_grad_()
    criterion = LargeMarginSoftmax(2, 2, margin=margin)
    targets = torch.zeros(len(features), dtype=torch.int64)
    loss = criterion(features, head(features), targets, head=head, progress=1.0)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_training_begins_with_cross_entropy_and_beta_has_a_floor():
    criterion, head, features, targets = example(4)
    start = criterion(features, head(features), targets, head=head, progress=0.0)
    plain = F.cross_entropy(head(features), targets)
    torch.testing.assert_close(start, plain, rtol=0.01, atol=0)
    end = criterion(features, head(features), targets, head=head, progress=1.0)
    assert end > 2 * plain
    criterion = LargeMarginSoftmax(5, 3, margin=4, lowest_beta=5.0).double()
    expected = l_softmax(features, head.weight, targets, 4, beta=5.0)
    for progress in (1.0, torch.tensor(1.0).double()):
        held = criterion(features, head(features), targets, head=head, progress=progress)
        torch.testing.assert_close(held, expected, rtol=1e-9, atol=0)


def test_head_with_bias_is_refused():
    head = nn.Linear(3, 5)
    with pytest.raises(ValueError, match="bias"):
        LargeMarginSoftmax(5, 3)(torch.ones(2, 3), torch.ones(2, 5), torch.tensor([0, 1]), head=head, progress=0)
