"""Time and memory of ISDA: forward, backward and update of the statistics, in float32 on a CPU.

    python scripts/benchmark_loss.py                                         # a minute, on an otherwise idle machine
    python scripts/benchmark_loss.py output=results/benchmarks/loss_cpu.md   # also writes what it prints

For N samples, C classes, A features, the head and its backward pass included in each, in one process, taking turns:

- CE: `F.cross_entropy` alone;
- W Sigma: the product of the head's weight with the covariance of each class in the batch, and nothing else: the least
  that equation 4 can cost with full covariances;
- ISDA: `ISDALoss`;
- plain: the form in which the authors compute it (scripts/plain_isda.py).

Each ratio is the median over the turns of the ratio within a turn: a machine's clock changes from one second to the
next, and then does so for both. Memory is the most that is allocated at any time above what was there before the step,
gradients included, the losses' own buffers not. Exits 1 when a bar is missed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, is talkative

import torch
import torch.nn.functional as F
from benchmarking import THREADS, conclude, machine, output_argument
from plain_isda import PlainISDALoss
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from isda_repro.errors import one_sentence_errors
from isda_repro.losses import ClassStatistics, ISDALoss

SECONDS_A_TURN = 0.05  # a contender that is quick is repeated this long in each of its turns


@dataclass(frozen=True)
class Shape:
    """A batch, and its bars: at most ``over_ce`` or ``over_product`` as slow, at least ``over_plain`` times faster."""

    samples: int
    classes: int
    features: int
    over_ce: float | None
    over_product: float | None
    over_plain: float
    memory_of_plain: float | None
    turns: int


SHAPES = [
    Shape(128, 10, 64, 6, None, 3, None, turns=25),
    Shape(128, 100, 64, 15, None, 7, None, turns=25),
    Shape(128, 10, 640, None, 6, 18, 1 / 3, turns=9),
    Shape(128, 100, 640, None, 3, 8, 1 / 3, turns=9),
]


class Contenders:
    """The four steps on one random batch, features as after a ReLU."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.targets = torch.randint(shape.classes, (shape.samples,))
        self.features = torch.randn(shape.samples, shape.features).relu().requires_grad_()
        self.head = nn.Linear(shape.features, shape.classes)
        self.isda = ISDALoss(shape.classes, shape.features)
        self.plain = PlainISDALoss(shape.classes, shape.features)
        present = self.targets.unique().tolist()
        statistics = self.isda.statistics
        assert isinstance(statistics, ClassStatistics)
        self.covariances = [statistics.covariance[class_number] for class_number in present]
        self.steps: dict[str, Callable[[], None]] = {
            "CE": lambda: self._step(lambda logits: F.cross_entropy(logits, self.targets)),
            "W Sigma": self._product,
            "ISDA": lambda: self._step(lambda logits: self._criterion(self.isda, logits)),
            "plain": lambda: self._step(lambda logits: self._criterion(self.plain, logits)),
        }

    def _criterion(self, criterion: nn.Module, logits: Tensor) -> Tensor:
        loss: Tensor = criterion(self.features, logits, self.targets, head=self.head, progress=0.5)
        return loss

    def _step(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.features.grad = None
        self.head.zero_grad()
        loss(self.head(self.features)).backward()

    def _product(self) -> None:
        weight = self.head.weight.detach()
        for covariance in self.covariances:
            torch.mm(weight, covariance)


def turn(step: Callable[[], None]) -> float:
    """Milliseconds of one step: the mean over a turn, after one step that does not count."""
    step()
    count, begin = 0, time.perf_counter()
    while not count or time.perf_counter() - begin < SECONDS_A_TURN:
        step()
        count += 1
    return (time.perf_counter() - begin) / count * 1000


def peak_mib(step: Callable[[], None]) -> float:
    """The most that PyTorch's allocator holds during a step above what it held before, in MiB."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


Times = dict[str, list[float]]


def measure(shape: Shape) -> tuple[Times, dict[str, float]]:
    """Milliseconds in each turn and peak MiB of each contender."""
    contenders = Contenders(shape)
    times: Times = {name: [] for name in contenders.steps}
    for _ in range(shape.turns):
        for name, step in contenders.steps.items():
            times[name].append(turn(step))
    memory = {name: peak_mib(contenders.steps[name]) for name in ("CE", "ISDA", "plain")}
    return times, memory


def ratio_of(times: Times, slower: str, quicker: str) -> float:
    """Median over the turns of the ratio of two contenders."""
    return statistics.median(a / b for a, b in zip(times[slower], times[quicker], strict=True))


def judge(shape: Shape, times: Times, memory: dict[str, float]) -> list[tuple[str, float, float, bool]]:
    """What is compared, the ratio found, the bar, and whether it holds."""
    found = []
    if shape.over_ce is not None:
        ratio = ratio_of(times, "ISDA", "CE")
        found.append(("ISDA / CE, at most", ratio, shape.over_ce, ratio <= shape.over_ce))
    if shape.over_product is not None:
        ratio = ratio_of(times, "ISDA", "W Sigma")
        found.append(("ISDA / W Sigma, at most", ratio, shape.over_product, ratio <= shape.over_product))
    ratio = ratio_of(times, "plain", "ISDA")
    found.append(("plain / ISDA, at least", ratio, shape.over_plain, ratio >= shape.over_plain))
    if shape.memory_of_plain is not None:
        ratio = memory["ISDA"] / memory["plain"]
        found.append(("memory, ISDA / plain, at most", ratio, shape.memory_of_plain, ratio <= shape.memory_of_plain))
    return found


def main() -> None:
    """Measure, report, hold the bars."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    turns = " or ".join(str(count) for count in sorted({shape.turns for shape in SHAPES}))
    lines = [
        "# ISDA: milliseconds and peak memory of one step, float32, CPU",
        "",
        f"`python scripts/benchmark_loss.py`: head, forward, backward and statistics; medians over {turns} turns",
        "(of the ratios too), the contenders interleaved in one process. CE is F.cross_entropy alone, W Sigma the",
        "product with the covariances of the classes in the batch alone, plain the form in which the authors compute",
        "ISDA. Memory in MiB, the most above what was there before the step (the losses' buffers).",
        "",
        "| N, C, A | CE ms | W Sigma ms | ISDA ms | plain ms | CE MiB | ISDA MiB | plain MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    bars = ["", "| N, C, A | ratio | found | bar |", "| --- | --- | ---: | ---: |"]
    missed = []
    for shape in SHAPES:
        times, memory = measure(shape)
        name = f"{shape.samples}, {shape.classes}, {shape.features}"
        cells = [f"{value:.3g}" for value in (*map(statistics.median, times.values()), *memory.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        for what, ratio, bar, holds in judge(shape, times, memory):
            bars.append(f"| {name} | {what} | {ratio:.3g} | {bar:.3g} |")
            if not holds:
                missed.append(f"({name}) {what} {bar:.3g}, found {ratio:.2f}")
    conclude([*lines, *bars, "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
