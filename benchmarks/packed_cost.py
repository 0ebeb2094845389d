"""Cost of full covariances at ImageNet's size, for loss.py: a formula, and measurements of single processes."""

import statistics
import time

import torch
from torch import nn

from isda_repro.losses import ISDALoss, PackedStatistics

RESNET50_MULTIPLY_ADDS = 4.089e9  # forward pass of one 224 x 224 image; results/models.md
MEASURED = (64, 200, 1024)  # samples, classes, features
IMAGENET = (64, 1000, 2048)  # samples on each of 8 processes, classes, features
PROCESSES = 8
UPDATES, UPDATED_FEATURES = 20_000, 1024


def gigabytes(classes: int, features: int) -> tuple[float, float]:
    """Return the gigabytes of all covariances in float32, as square matrices and packed."""
    return 4 * classes * features**2 / 1e9, 2 * classes * features * (features + 1) / 1e9


def classes_in_batch(samples: int, classes: int) -> float:
    """Return U, the expected number of classes in a random batch."""
    return classes * (1 - (1 - 1 / classes) ** samples)


def multiply_adds(samples: int, classes: int, features: int, processes: int = 1) -> float:
    """Return the multiply-adds of one step on each process.

    They are U C A^2 for W Sigma and (N + U) A^2 for the scatter, divided by the processes; N and U are the samples and
    classes of the batches of all processes.
    """
    present = classes_in_batch(samples * processes, classes)
    return (present * classes + samples * processes + present) * features**2 / processes


def step_milliseconds(samples: int, classes: int, features: int, packed: bool) -> float:
    """Return the median milliseconds of a forward and backward pass of ISDA and the head."""
    torch.manual_seed(0)
    criterion, head = ISDALoss(classes, features, packed=packed), nn.Linear(features, classes)
    inputs = torch.randn(samples, features).relu().requires_grad_()
    targets = torch.randint(classes, (samples,))
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        criterion(inputs, head(inputs), targets, head=head, progress=0.5).backward()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def error_of_many_updates() -> tuple[float, float]:
    """Return the relative error of a packed covariance after ``UPDATES`` updates of one sample each.

    The reference is computed in float64 from all samples at once. The first number is the ratio of Frobenius norms, the
    second that of the largest absolute values.
    """
    torch.manual_seed(0)
    mixing = torch.randn(UPDATED_FEATURES, UPDATED_FEATURES) / UPDATED_FEATURES**0.5
    features = (torch.randn(UPDATES, UPDATED_FEATURES) @ mixing + 0.5).relu()
    running, label = PackedStatistics(1, UPDATED_FEATURES), torch.zeros(1, dtype=torch.int64)
    for sample in features.split(1):
        running.update(sample, label)
    centred = features.double() - features.double().mean(0)
    expected = centred.T @ centred / UPDATES
    error = running.covariance_of(0) - expected
    return float(error.norm() / expected.norm()), float(error.abs().max() / expected.abs().max())


def packed_report() -> list[str]:
    """Measure, and return the lines of this section of the report."""
    square, packed = (step_milliseconds(*MEASURED, packed=packed) for packed in (False, True))
    full_size = step_milliseconds(*IMAGENET, packed=True)
    predicted = packed * multiply_adds(*IMAGENET) / multiply_adds(*MEASURED)
    shown = {
        (MEASURED, 1): f"{packed:,.0f} (square: {square:,.0f})",
        (IMAGENET, 1): f"{full_size:,.0f} (from the line above by the formula: {predicted:,.0f})",
        (IMAGENET, PROCESSES): "not run",
    }
    frobenius, largest = error_of_many_updates()
    return [
        "## Full covariances at ImageNet's size",
        "",
        "Packed triangles take 2 C A (A + 1) bytes, square matrices 4 C A A. A step costs (U C + N + U) A A",
        "multiply-adds, U = C (1 - (1 - 1/C)^N) the classes in a batch; the backward pass has no product of its own as",
        "long as the U C A numbers that it needs fit into 1 GiB. With W processes the classes are divided among them:",
        "each has a W-th of the bytes, and for the batch of all a W-th of the multiply-adds. Beside them ResNet-50's,",
        "forward and backward, 3 x 4.09e9 an image.",
        "",
        "| N a process, C, A | processes | square GB | packed GB | multiply-adds a step | / ResNet-50's | ms here |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(shape, processes, here) for (shape, processes), here in shown.items()),
        "",
        f"After {UPDATES:,} updates of one sample each (A = {UPDATED_FEATURES}, features as after a ReLU) the packed",
        f"covariance, fp32, differs from float64's by {frobenius:.1e} of its norm, its worst entry by {largest:.1e}",
        "of the largest. An entry is a running mean of its own, whatever C and A.",
    ]


def _row(shape: tuple[int, int, int], processes: int, here: str) -> str:
    samples, classes, features = shape
    square, packed = (value / processes for value in gigabytes(classes, features))
    needed = multiply_adds(*shape, processes)
    share = needed / (3 * RESNET50_MULTIPLY_ADDS * samples)
    cells = f"{square:.2f} | {packed:.2f} | {needed:.3g} | {share:.1%} | {here}"
    return f"| {samples}, {classes}, {features} | {processes} | {cells} |"
