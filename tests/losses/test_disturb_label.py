"""DisturbLabel: the distribution of its labels, and new draws in each iteration."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import nn

from isda_repro.losses import IGNORED, DisturbLabel


def disturbed(criterion, targets, seed):
    criterion.begin_step(torch.Generator().manual_seed(seed))
    return criterion.disturb(targets)


@pytest.mark.parametrize(("alpha", "classes"), [(0.05, 10), (0.1, 100), (0.5, 3), (0.9, 4)])
def test_frequencies_equal_the_papers(alpha, classes):
    """The label is kept with probability 1 - (C - 1)/C alpha; each other class has alpha / C."""
    targets = torch.full((200_000,), 1)
    counts = torch.bincount(disturbed(DisturbLabel(classes, 3, alpha=alpha), targets, 0), minlength=classes)
    expected = torch.full((classes,), alpha / classes, dtype=torch.float64)
    expected[1] += 1 - alpha
    assert chisquare(counts.numpy(), (expected * len(targets)).numpy()).pvalue > 0.001
    if classes == 100:  # the two readings are too close to be distinguished
        return
    wrong_reading = torch.full((classes,), alpha / (classes - 1), dtype=torch.float64)  # over the other classes only
    wrong_reading[1] = 1 - alpha
    assert chisquare(counts.numpy(), (wrong_reading * len(targets)).numpy()).pvalue < 1e-6


def test_each_step_draws_anew_and_the_same_step_draws_the_same():
    criterion, targets = DisturbLabel(10, 3, alpha=0.5), torch.arange(10).repeat(20)
    first, again, next_one = (disturbed(criterion, targets, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_one)


def test_loss_is_cross_entropy_with_the_drawn_labels():
    torch.manual_seed(0)
    head, features, targets = nn.Linear(3, 10), torch.randn(50, 3), torch.randint(10, (50,))
    criterion = DisturbLabel(10, 3, alpha=0.3)
    labels = disturbed(criterion, targets, 7)
    criterion.begin_step(torch.Generator().manual_seed(7))
    loss = criterion(features, head(features), targets, head=head, progress=0.0)
    assert torch.equal(loss, F.cross_entropy(head(features), labels))
    assert not torch.equal(loss, F.cross_entropy(head(features), targets))


def test_loss_of_alpha_0_is_cross_entropy_and_without_begin_step_draws_are_pytorchs_own():
    head, features, targets = nn.Linear(3, 10), torch.randn(50, 3), torch.randint(10, (50,))
    loss = DisturbLabel(10, 3, alpha=0)(features, head(features), targets, head=head, progress=0.0)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))
    criterion = DisturbLabel(10, 3, alpha=0.5)
    torch.manual_seed(3)
    first = criterion.disturb(targets)
    torch.manual_seed(3)
    assert torch.equal(first, criterion.disturb(targets))
    ignored = torch.full((50,), IGNORED)
    assert torch.equal(DisturbLabel(10, 3, alpha=1).disturb(ignored), ignored)
