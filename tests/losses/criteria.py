"""Helpers of the tests of all losses: each loss with a batch, steps on copies and their comparison; statistics."""

import copy
from contextlib import contextmanager

import torch
from torch import nn

from isda_repro.losses import (
    CenterLoss,
    ClassStatistics,
    ClassVariances,
    CrossEntropy,
    DisturbLabel,
    FocalLoss,
    ISDALoss,
    LargeMarginSoftmax,
    LqLoss,
    PackedStatistics,
    SampledISDALoss,
)

MAKERS = {
    "ce": CrossEntropy,
    "focal": FocalLoss,
    "lq": LqLoss,
    "center": CenterLoss,
    "large_margin": LargeMarginSoftmax,
    "disturb_label": DisturbLabel,
    "isda": ISDALoss,
    "isda_diagonal": lambda *sizes, **options: ISDALoss(*sizes, covariance="diagonal", **options),
    "isda_shared": lambda *sizes, **options: ISDALoss(*sizes, covariance="shared", **options),
    "isda_packed": lambda *sizes, **options: ISDALoss(*sizes, packed=True, **options),
    "isda_identity": lambda *sizes, **options: ISDALoss(*sizes, covariance="identity", **options),
    "isda_sampled": SampledISDALoss,
    "isda_prior": lambda *sizes, **options: ISDALoss(*sizes, prior=3.0, **options),
    "isda_diagonal_prior": lambda *sizes, **options: ISDALoss(*sizes, covariance="diagonal", prior=3.0, **options),
    "isda_packed_prior": lambda *sizes, **options: ISDALoss(*sizes, packed=True, prior=3.0, **options),
}
STATISTICS = {"square": ClassStatistics, "packed": PackedStatistics, "diagonal": ClassVariances}
WITHOUT_DRAWS = [name for name in MAKERS if name not in ("disturb_label", "isda_sampled")]
WITH_PRIOR = ["isda_prior", "isda_diagonal_prior", "isda_packed_prior"]
WITH_SIGMA2 = ["isda", "isda_diagonal", "isda_shared", "isda_identity", "isda_packed", *WITH_PRIOR]


def make(name, size=24, classes=7, width=5, dtype=torch.float64, **options):
    torch.manual_seed(0)
    criterion = MAKERS[name](classes, width, **options).to(dtype)
    head = nn.Linear(width, classes, bias=criterion.uses_head_bias).to(dtype)
    features = torch.randn(size, width, dtype=dtype).relu().requires_grad_()
    return criterion, head, features, torch.randint(classes - 1, (size,))


def step(criterion, head, features, targets, progress=0.7):
    """Return loss, gradients and the state after a training step; criterion and head are copied first."""
    criterion, head = copy.deepcopy(criterion), copy.deepcopy(head)
    features = features.detach().clone().requires_grad_()
    criterion.begin_step(torch.Generator().manual_seed(0))
    loss = criterion(features, head(features), targets, head=head, progress=progress)
    loss.backward()
    gradients = {name: one.grad for name, one in (*head.named_parameters(), *criterion.named_parameters())}
    return loss.detach(), features.grad, gradients, dict(criterion.named_buffers())


def as_function(criterion):
    """Return the loss as a function of features, weight and bias of the head, and targets, for numeric gradients."""

    def value(features, weight, bias, targets):
        layer = nn.Linear(*weight.T.shape).to(weight.dtype)
        del layer.weight
        layer.weight = weight
        return criterion(features, features @ weight.T + bias, targets, head=layer, progress=1.0)

    return value


@contextmanager
def unchanged(criterion):
    before = copy.deepcopy(criterion.state_dict())
    yield
    assert_same(criterion.state_dict(), before, tolerance=0)


def assert_same(found, expected, tolerance=1e-11):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def covariances(statistics):
    """Return the covariances [C, A, A]; variances become diagonal matrices."""
    if isinstance(statistics, ClassVariances):
        return torch.diag_embed(statistics.variance)
    if isinstance(statistics, PackedStatistics):
        return torch.stack([statistics.covariance_of(number) for number in range(len(statistics.count))])
    return statistics.covariance


def as_kept(statistics, covariance):
    """Return the part of a covariance [C, A, A] that such statistics keep: all of it, or the diagonal."""
    is_diagonal = isinstance(statistics, ClassVariances)
    return torch.diag_embed(covariance.diagonal(dim1=1, dim2=2)) if is_diagonal else covariance
