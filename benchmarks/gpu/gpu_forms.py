"""Section `forms` of ``benchmarks/gpu/gpu.py``: the time of each form of ISDA, and its error against float64."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from measuring import Findings, seconds_of, wait
from torch import Tensor, nn

from isda_repro.losses import CrossEntropy, ISDALoss

Makers = dict[str, Callable[[], nn.Module]]
Batch = tuple[Tensor, Tensor]

SHAPES = [(128, 10, 64), (128, 100, 64), (128, 10, 640), (128, 100, 640)]  # N, C, A
DIAGONAL = (64, 1000, 2048)
PIXELS = (8, 19, 512, 64, 128)  # N, C, A, height, width
PRIOR = 4000.0
TURNS = 9


def forms(findings: Findings) -> None:
    """Compare each form of ISDA with cross-entropy: time, and error against float64; and what is not in every step."""
    for samples, classes, width in [(16, 5, 8)] if findings.rehearse else SHAPES:
        makers: Makers = {
            "ce": partial(CrossEntropy, classes, width),
            "plain": partial(ISDALoss, classes, width, kernels=False),
            "kernels": partial(ISDALoss, classes, width, kernels=None if findings.rehearse else True),
            "prior": partial(ISDALoss, classes, width, prior=PRIOR),
        }
        head, name = nn.Linear(width, classes), f"({samples}, {classes}, {width})"
        compared(findings, makers, head, [_labelled(classes, samples, width) for _ in range(3)], name)
        mixed = [_mixed(classes, *_labelled(classes, samples, width)) for _ in range(3)]
        compared(findings, {one: makers[one] for one in ("ce", "kernels")}, head, mixed, f"{name} mixup")
    samples, classes, width = (16, 30, 8) if findings.rehearse else DIAGONAL
    makers = {"ce": partial(CrossEntropy, classes, width), "diagonal": _diagonal(classes, width)}
    batches = [_labelled(classes, samples, width) for _ in range(3)]
    compared(findings, makers, nn.Linear(width, classes), batches, f"{samples, classes, width}")
    samples, classes, *size = (2, 5, 8, 4, 4) if findings.rehearse else PIXELS
    makers = {"ce": partial(CrossEntropy, classes, size[0]), "diagonal": _diagonal(classes, size[0])}
    makers["full"] = partial(ISDALoss, classes, size[0])
    pixels = [_labelled(classes, samples, *size)]
    compared(findings, makers, nn.Conv2d(size[0], classes, 1), pixels, f"{samples, classes, *size} pixels")
    for classes, width in [(5, 8)] if findings.rehearse else [(100, 64), (100, 640)]:
        not_in_every_step(findings, classes, width)


def _diagonal(classes: int, width: int) -> Callable[[], nn.Module]:
    return partial(ISDALoss, classes, width, covariance="diagonal")


def _labelled(classes: int, *size: int) -> Batch:
    """Return features of a size [N, A, *] as after a ReLU, and labels."""
    return torch.randn(size).relu(), torch.randint(classes, (size[0], *size[2:]))


def _mixed(classes: int, features: Tensor, labels: Tensor) -> Batch:
    """Return features, and probabilities of two labels for each sample."""
    one_hot = F.one_hot(labels, classes).float()
    return features, torch.lerp(one_hot, one_hot.flip(0), torch.rand(len(labels), 1))


def compared(findings: Findings, makers: Makers, head: nn.Module, batches: list[Batch], name: str) -> None:
    """Record the time of each form, and the distance of its gradient and statistics from those in float64."""
    device = findings.device
    for form, make in makers.items():
        torch.manual_seed(0)
        criterion = make()
        if form != "ce":
            exact = make()  # on a CPU it takes plain torch
            found = calls(criterion.to(device), copy.deepcopy(head).to(device), batches, device, torch.float32)
            wanted = calls(exact.double(), copy.deepcopy(head).double(), batches, torch.device("cpu"), torch.float64)
            error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))
            findings.add("figures", f"{name} {form}, error", error)
            if error > 1e-5:
                findings.wrong(f"ISDA {name} {form} is {error:.1e} off float64")
        own, criterion = copy.deepcopy(head).to(device), criterion.to(device)
        features, targets = batches[0][0].to(device, copy=True).requires_grad_(), batches[0][1].to(device)
        progress = torch.full((), 0.5, device=device)

        def step(
            own: nn.Module = own,
            criterion: nn.Module = criterion,
            features: Tensor = features,
            targets: Tensor = targets,
            progress: Tensor = progress,
        ) -> None:
            own.zero_grad()
            features.grad = None
            criterion(features, own(features), targets, head=own, progress=progress).backward()

        findings.add("figures", f"{name} {form}, us", 1e6 * seconds_of(step, device, 0.1))


def calls(
    criterion: nn.Module, head: nn.Module, batches: list[Batch], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Call a criterion on each batch; return loss, gradients and statistics of the last call in float64 on the CPU."""
    for features, targets in batches:
        own = features.to(device, dtype, copy=True).requires_grad_()
        targets = targets.to(device, dtype if targets.is_floating_point() else None)
        head.zero_grad()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            loss = criterion(own, head(own), targets, head=head, progress=0.8)
            loss.backward()
    assert isinstance(head.weight, Tensor)
    assert head.weight.grad is not None
    assert own.grad is not None
    return [one.detach().double().cpu() for one in (loss, head.weight.grad, own.grad, *criterion.buffers())]


def not_in_every_step(findings: Findings, classes: int, width: int) -> None:
    """Record the time that the checks of the first call take, and that of a summary, which an epoch has once."""
    device = findings.device
    head, of_checks, of_summary = nn.Linear(width, classes).to(device), [], []
    features, targets = (one.to(device) for one in _labelled(classes, 128, width))

    def milliseconds(call: Callable[[], object]) -> float:
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        return 1000 * (time.perf_counter() - begin)

    for _ in range(TURNS):
        criterion = ISDALoss(classes, width).to(device)
        call = partial(criterion, features, head(features), targets, head=head, progress=0.5)
        first = milliseconds(call)
        of_checks.append(first - milliseconds(call))
        of_summary.append(milliseconds(partial(criterion.summary, head=head, progress=0.5)))
    findings.add("figures", f"({classes}, {width}) checks of the first call, ms", statistics.median(of_checks))
    findings.add("figures", f"({classes}, {width}) summary, ms", statistics.median(of_summary))
