"""Center loss: its pull on the features, and the update rule of the centres."""

import pytest
import torch
import torch.nn.functional as F
from float64_reference import center_pull, center_rule
from torch import nn

from isda_repro.losses import CenterLoss


def example(weight=0.1):
    torch.manual_seed(0)
    criterion, head = CenterLoss(4, 3, weight=weight).double(), nn.Linear(3, 4).double()
    features = torch.randn(10, 3).double().requires_grad_()
    return criterion, head, features, torch.randint(3, (10,))  # class 3 is absent


def test_value_and_gradients_equal_the_formulas():
    criterion, head, features, targets = example()
    loss = criterion(features, head(features), targets, head=head, progress=0.5)
    loss.backward()
    twin = features.detach().clone().requires_grad_()
    expected = F.cross_entropy(head(twin), targets) + 0.1 * center_pull(twin, criterion.centers.detach(), targets)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(features.grad, twin.grad, rtol=1e-12, atol=1e-14)
    rule = center_rule(features.detach(), criterion.centers.detach(), targets)
    torch.testing.assert_close(criterion.centers.grad, rule, rtol=1e-12, atol=1e-14)
    assert (criterion.centers.grad[3] == 0).all()


def test_batch_equals_a_calculation_by_hand():
    """Two samples of class 0 at 3 and 6, its centre at 0: delta = -(3 + 6) / 3, and a rate of 0.5 moves it to 1.5."""
    criterion = CenterLoss(2, 1, weight=2.0)
    nn.init.constant_(criterion.centers, 0)
    optimizer = torch.optim.SGD(criterion.parameter_groups(), lr=9, momentum=0.9, nesterov=True, weight_decay=9)
    head = nn.Linear(1, 2)
    features, targets = torch.tensor([[3.0], [6.0]]), torch.tensor([0, 0])
    loss = criterion(features, head(features), targets, head=head, progress=0.0)
    loss.backward()
    pull = loss.detach() - F.cross_entropy(head(features), targets)
    assert pull.item() == pytest.approx(2 * (9 + 36) / 2 / 2)
    optimizer.step()
    assert criterion.centers.tolist() == [[1.5], [0.0]]


def test_loss_of_weight_0_is_cross_entropy_and_its_centres_still_move():
    criterion, head, features, targets = example(weight=0.0)
    loss = criterion(features, head(features), targets, head=head, progress=0.5)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))
    loss.backward()
    assert criterion.centers.grad.abs().sum() > 0


def test_centres_follow_the_means():
    criterion, head, _, _ = example()
    optimizer = torch.optim.SGD(criterion.parameter_groups(), lr=0.1)
    means = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [5, 5, 5]]).double()
    for _ in range(50):
        targets = torch.randint(4, (64,))
        features = means[targets] + 0.1 * torch.randn(64, 3)
        optimizer.zero_grad()
        criterion(features, head(features), targets, head=head, progress=0.5).backward()
        optimizer.step()
    torch.testing.assert_close(criterion.centers.detach(), means, rtol=0, atol=0.1)
