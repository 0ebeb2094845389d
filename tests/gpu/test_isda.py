"""ISDA on a GPU at real sizes, against float64."""

import copy

import pytest
import torch
from torch import nn

from isda_repro.losses import ISDALoss

pytestmark = pytest.mark.gpu

SHAPES = [(128, 10, 64), (128, 100, 64), (128, 10, 640), (128, 100, 640), (64, 300, 128)]
SMALL = [(16, 5, 8), (16, 100, 8)]


def steps(criterion, head, batches, device, dtype):
    """Return loss, gradients and statistics after calls on several batches, in float64 on the CPU."""
    criterion, head = (copy.deepcopy(module).to(device, dtype) for module in (criterion, head))
    for features, targets in batches:
        features, targets = features.to(device, dtype, copy=True).requires_grad_(), targets.to(device)
        head.zero_grad()
        loss = criterion(features, head(features), targets, head=head, progress=0.8)
        loss.backward()
    found = [loss.detach(), head.weight.grad, features.grad, *criterion.buffers()]
    return [one.double().cpu() for one in found]


@pytest.mark.parametrize("covariance", ["full", "diagonal", "shared"])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_real_sizes_have_the_numbers_of_float64(device, on_gpu, shape, covariance):
    samples, classes, width = SHAPES[shape] if on_gpu else SMALL[shape % len(SMALL)]
    torch.manual_seed(0)
    batches = [(torch.randn(samples, width).relu(), torch.randint(classes, (samples,))) for _ in range(3)]
    head = nn.Linear(width, classes)
    criterion = ISDALoss(classes, width, covariance=covariance)
    found = steps(criterion, head, batches, device, torch.float32)
    expected = steps(criterion, head, batches, torch.device("cpu"), torch.float64)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
