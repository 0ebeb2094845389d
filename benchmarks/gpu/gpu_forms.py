"""Section `forms` of ``benchmarks/gpu/gpu.py``: the time of each form of ISDA, and its error against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from measuring import Findings, seconds_of
from torch import Tensor, nn

from isda_repro.losses import CrossEntropy, ISDALoss

SHAPES = [(128, 10, 64), (128, 100, 64), (128, 10, 640), (128, 100, 640)]
DIAGONAL = (64, 1000, 2048)


def forms(findings: Findings) -> None:
    """Compare each form of ISDA with cross-entropy at the paper's sizes: time, and error against float64."""
    shapes = [(16, 5, 8)] if findings.rehearse else SHAPES
    for samples, classes, width in shapes:
        makers: dict[str, Callable[[], nn.Module]] = {
            "ce": partial(CrossEntropy, classes, width),
            "plain": partial(ISDALoss, classes, width, kernels=False),
            "kernels": partial(ISDALoss, classes, width, kernels=True),
        }
        compared(findings, makers, samples, classes, width)
    samples, classes, width = (16, 30, 8) if findings.rehearse else DIAGONAL
    diagonal = partial(ISDALoss, classes, width, covariance="diagonal")
    compared(findings, {"ce": partial(CrossEntropy, classes, width), "diagonal": diagonal}, samples, classes, width)


def compared(
    findings: Findings, makers: dict[str, Callable[[], nn.Module]], samples: int, classes: int, width: int
) -> None:
    """Record the time of each form, and the distance of its gradient and statistics from those in float64."""
    device = findings.device
    torch.manual_seed(0)
    head = nn.Linear(width, classes)
    batches = [(torch.randn(samples, width).relu(), torch.randint(classes, (samples,))) for _ in range(3)]
    for form, make in makers.items():
        name = f"({samples}, {classes}, {width}) {form}"
        criterion = make()
        if form != "ce":
            exact = make() if form != "kernels" else makers["plain"]()
            found = calls(criterion.to(device), copy.deepcopy(head).to(device), batches, device, torch.float32)
            wanted = calls(exact.double(), copy.deepcopy(head).double(), batches, torch.device("cpu"), torch.float64)
            error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))
            findings.add("figures", f"{name}, error", error)
            if error > 1e-5:
                findings.wrong(f"ISDA {name} is {error:.1e} off float64")
        own, criterion = copy.deepcopy(head).to(device), criterion.to(device)
        features = batches[0][0].to(device).requires_grad_()
        targets, progress = batches[0][1].to(device), torch.full((), 0.5, device=device)

        def step(
            own: nn.Linear = own,
            criterion: nn.Module = criterion,
            features: Tensor = features,
            targets: Tensor = targets,
            progress: Tensor = progress,
        ) -> None:
            own.zero_grad()
            features.grad = None
            criterion(features, own(features), targets, head=own, progress=progress).backward()

        findings.add("figures", f"{name}, us", 1e6 * seconds_of(step, device, 0.1))


def calls(
    criterion: nn.Module,
    head: nn.Linear,
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Call a criterion on each batch; return loss, gradients and statistics of the last call in float64 on the CPU."""
    for features, targets in batches:
        own = features.to(device, dtype, copy=True).requires_grad_()
        head.zero_grad()
        loss = criterion(own, head(own), targets.to(device), head=head, progress=0.8)
        loss.backward()
    assert head.weight.grad is not None
    assert own.grad is not None
    return [one.detach().double().cpu() for one in (loss, head.weight.grad, own.grad, *criterion.buffers())]
