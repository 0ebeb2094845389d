"""Time and memory of every loss: forward, backward and update of its state, in float32 on a CPU.

    python benchmarks/loss.py                                         # 5 minutes, on an otherwise idle machine
    python benchmarks/loss.py output=results/benchmarks/loss_cpu.md   # also writes what it prints

The losses run in one process on N samples, C classes and A features, and take turns. Each time includes the head and
its backward pass:

- CE: `F.cross_entropy` alone;
- W Sigma: the product of the head's weight with the covariance of each class in the batch, and nothing else, which is a
  lower bound for equation 4 with full covariances;
- ISDA and its variants: `ISDALoss`; sampled: equation 2 with M draws, `SampledISDALoss`;
- plain: the forms in which the authors compute it, full and diagonal (benchmarks/reference/plain_isda.py);
- Table 4's other losses.

Each ratio or difference is the median over the turns of its value within a turn, because the machine's clock rate
changes from second to second. Memory is the peak above what was allocated before the step, which includes gradients but
not the losses' buffers. A last section, by packed_cost.py, covers full covariances at ImageNet's size. Exits 1 if a bar
is missed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler that measures memory

import torch
import torch.nn.functional as F
from packed_cost import packed_report
from reference.plain_isda import PlainDiagonalISDALoss, PlainISDALoss
from torch import nn
from torch.profiler import ProfilerActivity, profile

from isda_repro.errors import one_sentence_errors
from isda_repro.losses import (
    CenterLoss,
    ClassStatistics,
    CrossEntropy,
    DisturbLabel,
    FocalLoss,
    ISDALoss,
    LargeMarginSoftmax,
    LqLoss,
    SampledISDALoss,
)
from isda_repro.measurements import THREADS, conclude, machine, output_argument

SECONDS_A_TURN = 0.05  # a fast contender repeats its step for this long in each turn
MAKERS: dict[str, Callable[[int, int], nn.Module]] = {
    "CE": CrossEntropy,
    "ISDA": ISDALoss,
    "plain": PlainISDALoss,
    "packed": partial(ISDALoss, packed=True),
    "diagonal": partial(ISDALoss, covariance="diagonal"),
    "plain diagonal": PlainDiagonalISDALoss,
    "shared": partial(ISDALoss, covariance="shared"),
    "identity": partial(ISDALoss, covariance="identity"),
    "sampled, M = 1": partial(SampledISDALoss, samples=1),
    "sampled, M = 10": partial(SampledISDALoss, samples=10),
    "focal": FocalLoss,
    "Lq": LqLoss,
    "center": CenterLoss,
    "large margin": LargeMarginSoftmax,
    "disturb label": DisturbLabel,
}
PRODUCT = "W Sigma"


@dataclass(frozen=True)
class Bar:
    """A limit on ``first`` compared with ``second``.

    Attributes:
        measure: "times" (ratio of times), "ms above" (difference in ms) or "memory" (ratio of peaks).
        limit: the largest value allowed, or the smallest if ``at_least``.
    """

    first: str
    second: str
    measure: str
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        sign = {"times": f"{self.first} / {self.second}", "ms above": f"{self.first} - {self.second}, ms"}
        what = sign.get(self.measure, f"{self.first} / {self.second}, memory")
        return f"{what}, at {'least' if self.at_least else 'most'}"


@dataclass(frozen=True)
class Contest:
    """Contenders that are timed on the same batch, and the bars that they have to keep."""

    samples: int
    classes: int
    features: int
    contenders: Sequence[str]
    bars: Sequence[Bar]
    turns: int

    @property
    def name(self) -> str:
        """Shape of the batch: "N, C, A"."""
        return f"{self.samples}, {self.classes}, {self.features}"


FULL = ("CE", PRODUCT, "ISDA", "plain")
OTHERS = ("focal", "Lq", "center", "large margin", "disturb label")


def _full(over_plain: float, over_ce: float | None = None, over_product: float | None = None) -> list[Bar]:
    bars = [Bar("plain", "ISDA", "times", over_plain, at_least=True)]
    bars += [Bar("ISDA", "CE", "times", over_ce)] if over_ce else []
    if over_product:
        bars += [Bar("ISDA", PRODUCT, "times", over_product), Bar("ISDA", "plain", "memory", 1 / 3)]
    return bars


def _diagonal(over_plain: float) -> list[Bar]:
    speed = Bar("plain diagonal", "diagonal", "times", over_plain, at_least=True)
    return [speed, Bar("diagonal", "plain diagonal", "memory", 1 / 15)]


CONTESTS = [
    Contest(128, 10, 64, FULL, _full(3, over_ce=6), turns=25),
    Contest(128, 100, 64, (*FULL, "sampled, M = 1", "sampled, M = 10"), _full(7, over_ce=15), turns=25),
    Contest(128, 10, 640, FULL, _full(18, over_product=6), turns=9),
    Contest(
        *(128, 100, 640),
        (*FULL, "packed", "sampled, M = 1", "sampled, M = 10"),
        _full(8, over_product=2),
        turns=9,
    ),
    Contest(
        *(128, 100, 640),
        ("CE", *OTHERS, "diagonal", "shared", "identity"),
        [
            Bar("focal", "CE", "ms above", 0.3),
            Bar("Lq", "CE", "ms above", 0.3),
            Bar("center", "CE", "ms above", 0.5),
            Bar("large margin", "CE", "ms above", 1.2),
        ],
        turns=25,
    ),
    Contest(64, 1000, 2048, ("CE", "diagonal", "plain diagonal"), _diagonal(90), turns=5),
    Contest(256, 1000, 2048, ("CE", "diagonal", "plain diagonal"), _diagonal(180), turns=3),
]


class Steps:
    """The steps of all contenders on one random batch, whose features are like the output of a ReLU."""

    def __init__(self, contest: Contest) -> None:
        torch.manual_seed(0)
        self.targets = torch.randint(contest.classes, (contest.samples,))
        self.features = torch.randn(contest.samples, contest.features).relu().requires_grad_()
        sizes = contest.classes, contest.features
        self.steps: dict[str, Callable[[], None]] = {}
        for name in contest.contenders:
            self.steps[name] = self._product(*sizes) if name == PRODUCT else self._step(MAKERS[name](*sizes), *sizes)

    def _step(self, criterion: nn.Module, classes: int, width: int) -> Callable[[], None]:
        head = nn.Linear(width, classes, bias=getattr(criterion, "uses_head_bias", True))

        def step() -> None:
            self.features.grad = None
            head.zero_grad()
            criterion.zero_grad()
            logits = head(self.features)
            if isinstance(criterion, CrossEntropy):
                F.cross_entropy(logits, self.targets).backward()
            else:
                criterion(self.features, logits, self.targets, head=head, progress=0.5).backward()

        return step

    def _product(self, classes: int, width: int) -> Callable[[], None]:
        statistics_of_classes, weight = ClassStatistics(classes, width), torch.randn(classes, width)
        present = self.targets.unique().tolist()
        covariances = [statistics_of_classes.covariance[class_number] for class_number in present]

        def step() -> None:
            for covariance in covariances:
                torch.mm(weight, covariance)

        return step


def turn(step: Callable[[], None]) -> float:
    """Return the milliseconds of one step: the mean over a turn, after one step of warm-up."""
    step()
    count, begin = 0, time.perf_counter()
    while not count or time.perf_counter() - begin < SECONDS_A_TURN:
        step()
        count += 1
    return (time.perf_counter() - begin) / count * 1000


def peak_mib(step: Callable[[], None]) -> float:
    """Return the peak memory of a step in PyTorch's allocator, above what was allocated before it, in MiB."""
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


def measure(contest: Contest) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the milliseconds of each contender in each turn, and its peak memory in MiB."""
    steps = Steps(contest).steps
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(contest.turns):
        for name, step in steps.items():
            times[name].append(turn(step))
    return times, {name: peak_mib(step) for name, step in steps.items()}


def found(bar: Bar, times: dict[str, list[float]], memory: dict[str, float]) -> float:
    """Return the figure that a bar limits: the median over turns, or the ratio of peaks."""
    if bar.measure == "memory":
        return memory[bar.first] / memory[bar.second]
    pairs = zip(times[bar.first], times[bar.second], strict=True)
    return statistics.median(a - b if bar.measure == "ms above" else a / b for a, b in pairs)


def main() -> None:
    """Run all contests, print a report, write it if asked, and exit with 1 if a bar is missed."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    lines = [
        "# The losses: milliseconds and peak memory of one step, float32, CPU",
        "",
        "`python benchmarks/loss.py`: head, forward, backward and update; medians over the turns (of the ratios",
        "too), the contenders of a shape interleaved in one process. CE is F.cross_entropy alone, W Sigma the product",
        "with the covariances of the classes in the batch alone, plain the forms in which the authors compute ISDA.",
        "Memory in MiB, the most above what was there before the step (the losses' buffers).",
        "",
        "| N, C, A | loss | ms | / CE | MiB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    bars = ["", "| N, C, A | | found | bar |", "| --- | --- | ---: | ---: |"]
    missed = []
    for contest in CONTESTS:
        times, memory = measure(contest)
        for name, values in times.items():
            over_ce = found(Bar(name, "CE", "times", 0), times, memory)
            cells = (f"{statistics.median(values):.3g}", f"{over_ce:.3g}", f"{memory[name]:.3g}")
            lines.append(f"| {contest.name} | {name} | {' | '.join(cells)} |")
        for bar in contest.bars:
            value = found(bar, times, memory)
            bars.append(f"| {contest.name} | {bar} | {value:.3g} | {bar.limit:.3g} |")
            if value < bar.limit if bar.at_least else value > bar.limit:
                missed.append(f"({contest.name}) {bar} {bar.limit:.3g}, found {value:.3g}")
    conclude([*lines, *bars, "", *packed_report(), "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
