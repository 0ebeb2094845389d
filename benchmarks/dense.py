"""Time and memory of ISDA on pixels: 1x1 convolution, loss, backward pass and statistics, in float32 on a CPU.

    python benchmarks/dense.py                                          # two minutes, on an otherwise idle machine
    python benchmarks/dense.py output=results/benchmarks/dense_cpu.md   # also writes what it prints

At 4 x 32 x 64 pixels, 19 classes and 256 features the contender is the form in which the authors compute ISDA for
segmentation, with tensors of N x C x A (benchmarks/reference/plain_isda.py). At 8 x 64 x 128 pixels and 512 features
each of these tensors would take 2.5 GB; there the baseline is the convolution with `F.cross_entropy`, which any
training has. Labels are random, so that no two pixels beside each other tend to have the same one.

The contenders of a size take turns in one process, and each ratio is the median over the turns of the ratio within a
turn. A peak is the most memory of a process of its own, above what it had before the step; it includes the gradients.
Exits 1 if a bar is missed.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from reference.plain_isda import PlainDenseISDALoss
from torch import nn

from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.losses import ISDALoss
from isda_repro.measurements import THREADS, conclude, machine, output_argument

CLASSES = 19
SMALL, LARGE = (4, 256, 32, 64), (8, 512, 64, 128)  # N, A, height, width
MAKERS: dict[str, Callable[[int, int], nn.Module] | None] = {
    "CE": None,
    "diagonal": partial(ISDALoss, covariance="diagonal"),
    "full": ISDALoss,
    "plain diagonal": PlainDenseISDALoss,
}
TURNS = {SMALL: 5, LARGE: 11}
LEAST_SPEED_UP, MOST_MEMORY = 50.0, 0.1  # of "diagonal" over "plain diagonal"
MOST_TIMES = {"diagonal": 2.2, "full": 4.5}  # the time of "CE"


def make_step(name: str, size: tuple[int, ...]) -> Callable[[], None]:
    """Return a training step of a convolution and a loss on one random batch, with features as after a ReLU."""
    torch.manual_seed(0)
    images, width, *pixels = size
    features = torch.randn(size).relu_().requires_grad_()
    targets = torch.randint(CLASSES, (images, *pixels))
    head, maker = nn.Conv2d(width, CLASSES, 1), MAKERS[name]
    criterion = None if maker is None else maker(CLASSES, width)

    def step() -> None:
        features.grad = None
        head.zero_grad()
        logits = head(features)
        if criterion is None:
            F.cross_entropy(logits, targets).backward()
        else:
            criterion(features, logits, targets, head=head, progress=0.5).backward()

    return step


def measure(names: list[str], size: tuple[int, ...], turns: int) -> dict[str, list[float]]:
    """Return the milliseconds of the steps of each contender, which take turns."""
    steps = {name: make_step(name, size) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
    for _ in range(turns):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(1000 * (time.perf_counter() - begin))
    return times


def ratio(times: dict[str, list[float]], first: str, second: str) -> float:
    """Return the median over the turns of ``first`` divided by ``second``."""
    return statistics.median(a / b for a, b in zip(times[first], times[second], strict=True))


def resident_peak() -> float:
    """Return the most memory that this process has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def print_peak(name: str, size: tuple[int, ...]) -> None:
    """Print by how much a step raises the peak of this process, in MiB, after a tiny step that loads libraries."""
    make_step(name, (1, 4, 2, 2))()
    step = make_step(name, size)
    before = resident_peak()
    step()
    print(resident_peak() - before)


def peak_mib(name: str, size: tuple[int, ...]) -> float:
    """Return the peak of a step in a process of its own."""
    command = [sys.executable, __file__, "peak", name, *map(str, size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, print a report, write it if asked, and exit with 1 if a bar is missed."""
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["peak"]:  # a process of its own, which peak_mib starts
        print_peak(sys.argv[2], tuple(map(int, sys.argv[3:])))
        return
    output = output_argument(sys.argv[1:])
    if sys.platform != "linux":
        raise UserError("this benchmark reads its figures from /proc: run it on Linux")
    lines = [
        "# ISDA on pixels: milliseconds and peak memory of one step, float32, CPU",
        "",
        "`python benchmarks/dense.py`: 1x1 convolution, loss, backward pass and statistics; medians over the turns (of",
        "the ratios too). CE is the convolution with F.cross_entropy; plain the authors' form for segmentation. Memory",
        "in MiB, the most of a process of its own above what it had before the step.",
        "",
        "| images x height x width, C, A | loss | ms | / CE | MiB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    bars = ["", "| A | | found | bar |", "| --- | --- | ---: | ---: |"]
    missed = []
    for size, names in ((SMALL, ["CE", "diagonal", "full", "plain diagonal"]), (LARGE, ["CE", "diagonal", "full"])):
        times, memory = measure(names, size, TURNS[size]), {name: peak_mib(name, size) for name in names}
        images, width, *pixels = size
        shape = f"{' x '.join(map(str, (images, *pixels)))}, {CLASSES}, {width}"
        for name in names:
            cells = statistics.median(times[name]), ratio(times, name, "CE"), memory[name]
            lines.append(f"| {shape} | {name} | {' | '.join(f'{one:.3g}' for one in cells)} |")
        if size == SMALL:
            speed_up = ratio(times, "plain diagonal", "diagonal")
            share = memory["diagonal"] / memory["plain diagonal"]
            found = [("plain diagonal / diagonal, at least", speed_up, LEAST_SPEED_UP, speed_up >= LEAST_SPEED_UP)]
            found.append(("diagonal / plain diagonal, memory, at most", share, MOST_MEMORY, share <= MOST_MEMORY))
        else:
            over = {name: ratio(times, name, "CE") for name in MOST_TIMES}
            found = [(f"{one} / CE, at most", over[one], most, over[one] <= most) for one, most in MOST_TIMES.items()]
        for what, value, limit, is_kept in found:
            bars.append(f"| {width} | {what} | {value:.3g} | {limit:.3g} |")
            if not is_kept:
                missed.append(f"(A = {width}) {what} {limit:.3g}, found {value:.3g}")
    conclude([*lines, *bars, "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
