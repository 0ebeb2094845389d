"""Pixels, class probabilities, prior and the arguments of cross-entropy together, against double loops in float64."""

import pytest
import torch
from criteria import WITH_PRIOR, WITH_SIGMA2, assert_same, make
from float64_reference import loss_with_label, mixed_with_pooled, reduced, two_pass_soft
from test_arguments import WEIGHT, gradients
from torch import nn
from torch.nn.functional import one_hot
from torch.utils._python_dispatch import TorchDispatchMode

from isda_repro.losses.dense import rows_of

CLASSES, SIZE = 4, (2, 3, 2)  # images, height, width
ARGUMENTS = [(None, "mean", 0.25), (WEIGHT[:4], "mean", 0.0), (WEIGHT[:4], "none", 0.25)]
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}


class Waits(TorchDispatchMode):
    """Collects the names of operations whose results an accelerator's host has to wait for."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names |= {function.overloadpacket.__name__} & WAITING
        return function(*args, **(kwargs or {}))


def batch(is_soft, seed):
    """Return features [N, A, *], targets of one kind, and these as probabilities [N S, C], where ignored rows are 0."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(SIZE[0], 3, *SIZE[1:], generator=generator).double().relu() + seed
    labels = torch.randint(-1, CLASSES - 1, SIZE, generator=generator)
    if not is_soft:
        shares = one_hot(labels.flatten().clamp(min=0), CLASSES).double() * (labels.flatten() >= 0)[:, None]
        return features, labels.masked_fill(labels < 0, -100), shares
    shares = torch.rand(*SIZE, CLASSES, generator=generator).double() * (torch.arange(CLASSES) != 2)
    shares = shares / shares.sum(-1, keepdim=True)
    return features, shares.movedim(-1, 1), shares.flatten(0, -2)


def expected(name, head, rows, shares, seen, options):
    """Return the loss of the rows [N S, A] by a double loop, with the covariances of all rows that were seen."""
    covariance = {
        "isda_identity": lambda: torch.eye(3).double().expand(CLASSES, 3, 3),
        "isda_shared": lambda: two_pass_soft(seen[0], seen[1].sum(1, keepdim=True))[1].expand(CLASSES, 3, 3),
    }.get(name, lambda: two_pass_soft(*seen)[1])()
    if "diagonal" in name:
        covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    if name in WITH_PRIOR:
        covariance = mixed_with_pooled(covariance, seen[1].sum(0), 3.0)
    weight = options["weight"] or [1.0] * CLASSES
    rest = head.weight.flatten(1), head.bias, covariance, 1.5 * 0.6, weight, options["label_smoothing"]
    pairs = zip(rows, shares, strict=True)
    return [sum((p * loss_with_label(a, c, *rest) for c, p in enumerate(row) if p), 0 * a.sum()) for a, row in pairs]


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
@pytest.mark.parametrize("is_soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("name", WITH_SIGMA2)
def test_pixels_equal_a_double_loop_and_nothing_waits_for_an_accelerator(name, is_soft, way, request):
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    for weight, reduction, label_smoothing in ARGUMENTS:
        options = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
        criterion, _, _, _ = make(name, classes=CLASSES, width=3, lambda_0=1.5, **options)
        head, parts = nn.Conv2d(3, CLASSES, 1).double(), []
        for seed in range(2):
            features, targets, shares = batch(is_soft, seed)
            logits, parts = head(features.requires_grad_()), [*parts, (rows_of(features), shares)]
            with Waits() as waits:
                loss = criterion(features, logits, targets, head=head, progress=0.6)
        rows, shares = parts[-1]
        seen = [torch.cat(one).detach() for one in zip(*parts, strict=True)]
        losses = expected(name, head, rows, shares, seen, options)
        if reduction == "none":
            total = torch.stack(losses).view(SIZE)
        elif is_soft:
            total = sum(losses) / len(losses)
        else:
            total = reduced(losses, targets[targets >= 0].tolist(), weight or [1.0] * CLASSES, reduction)
        assert loss.shape == total.shape
        assert_same(loss, total)
        inputs = features, head.weight, head.bias
        assert_same(gradients(loss, *inputs), gradients(total, *inputs))
        assert bool(waits.names) == (way == "cpu"), waits.names
