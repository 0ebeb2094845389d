"""What ISDA adds to a training step: time inside it, step time beside cross-entropy's, images per second, memory.

    python scripts/benchmark_overhead.py                                              # CPU: 3 minutes
    python scripts/benchmark_overhead.py output=results/benchmarks/overhead_cpu.md    # also writes what it prints

Whole steps on random images of the data set's size, network and optimiser included, in the precision that
`compute=auto` chooses; CE and ISDA take turns. A GPU has networks of the paper's Table 1 too, beside its figures. Exits
1 when a bar is missed (time inside ISDA on CIFAR-100 on a CPU: at most 1% for WRN-28-10, 2.5% for DenseNet-BC-100-12).
"""

import statistics
import sys
import time
from dataclasses import dataclass

import torch
from benchmarking import THREADS, conclude, machine, output_argument

from isda_repro.config import build_loss, build_model, compose
from isda_repro.errors import one_sentence_errors
from isda_repro.models import Network
from isda_repro.training.compute import Compute, resolve
from isda_repro.training.step import compute_gradients
from isda_repro.training.timing import Stopwatch, peak_memory_mib


@dataclass(frozen=True)
class Case:
    """A network as the paper trains it; ``share`` is the bar of a CPU, ``paper`` Table 1's wall time in percent."""

    model: str
    classes: int
    pixels: int
    batch_size: int
    covariance: str
    steps: int  # in a turn
    turns: int = 5
    share: float | None = None
    paper: float | None = None


ON_CPU = [
    Case("densenet_bc100_12", 100, 32, 64, "full", steps=1, turns=21, share=0.025),
    Case("wrn28_10", 100, 32, 128, "full", steps=1, turns=7, share=0.01),
]
ON_GPU = [
    Case("resnet110", 100, 32, 128, "full", steps=50),
    Case("densenet_bc100_12", 100, 32, 64, "full", steps=50),
    Case("wrn28_10", 100, 32, 128, "full", steps=50),
    Case("resnet50", 1000, 224, 64, "diagonal", steps=50, paper=7.6),
    Case("densenet121", 1000, 224, 64, "diagonal", steps=50, paper=5.6),
]


class Contender:
    """Training steps of one network with one loss, on one batch that stays."""

    def __init__(self, case: Case, loss: str, compute: Compute) -> None:
        torch.manual_seed(0)
        cfg = compose([f"model={case.model}", "dataset=cifar100", f"loss={loss}"])
        network: Network = build_model(cfg, case.classes)
        layout = compute.memory_format
        self.network = network.to(device=compute.device, memory_format=layout)  # type: ignore[call-overload]
        options = {"covariance": case.covariance} if loss == "isda" else {}
        self.criterion = build_loss(cfg, num_classes=case.classes, feature_dim=network.feature_dim, **options)
        self.criterion.to(compute.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        images = torch.randn(case.batch_size, 3, case.pixels, case.pixels, device=compute.device)
        self.images = images.contiguous(memory_format=layout)
        self.targets = torch.randint(case.classes, (case.batch_size,), device=compute.device)
        self.compute, self.steps = compute, case.steps
        self.milliseconds: list[float] = []
        self.shares: list[float] = []
        self._turn()  # warm

    def turn(self) -> None:
        """Some steps, and what they took."""
        seconds, inside = self._turn()
        self.milliseconds.append(1000 * seconds / self.steps)
        self.shares.append(inside / seconds)

    def _turn(self) -> tuple[float, float]:
        stopwatch = Stopwatch(self.compute.device)
        self._wait()
        begin = time.perf_counter()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            compute_gradients(
                self.network,
                self.criterion,
                self.images,
                self.targets,
                head=self.network.head,
                progress=0.5,
                compute=self.compute,
                seed_micro_batch=lambda index: None,
                stopwatch=stopwatch,
            )
            self.optimizer.step()
        self._wait()
        return time.perf_counter() - begin, stopwatch.seconds()["criterion"]

    def _wait(self) -> None:
        if self.compute.device.type == "cuda":
            torch.cuda.synchronize()


def memory_mib(case: Case, loss: str, compute: Compute) -> float | None:
    """Peak on a GPU, of a process that trains with one loss alone."""
    if compute.device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    Contender(case, loss, compute)
    return peak_memory_mib(compute.device)


def row(case: Case, compute: Compute) -> tuple[str, float]:
    """A line of the table, and the share of a step that is spent inside ISDA."""
    memory = [memory_mib(case, loss, compute) for loss in ("ce", "isda")]
    ce, isda = (Contender(case, loss, compute) for loss in ("ce", "isda"))
    for _ in range(case.turns):
        ce.turn()
        isda.turn()
    share, of_ce = statistics.median(isda.shares), statistics.median(ce.shares)
    times = [statistics.median(one.milliseconds) for one in (ce, isda)]
    spread = max((max(one.milliseconds) - min(one.milliseconds)) / 2 for one in (ce, isda)) / times[0]
    cells = [
        f"{case.model}, {case.classes} classes, {case.pixels} px, batch {case.batch_size}, {case.covariance}",
        *(f"{value:,.1f}" for value in times),
        f"{1000 * case.batch_size / times[1]:,.0f}",
        f"{share:.2%}",
        f"{of_ce:.2%}",
        f"{times[1] / times[0] - 1:+.1%} ± {spread:.1%}",
        *("" if value is None else f"{value:,.0f}" for value in memory),
        "" if case.paper is None else f"{case.paper}%",
    ]
    return f"| {' | '.join(cells)} |", share


def main() -> None:
    """Measure, report, hold the bars."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    compute = resolve(compose([]).compute)
    compute.apply()
    on_gpu = compute.device.type == "cuda"
    lines = [
        f"# ISDA's part of a training step, {torch.cuda.get_device_name() if on_gpu else 'CPU'}, {compute.precision}",
        "",
        "`python scripts/benchmark_overhead.py`: whole steps, medians; CE and ISDA take turns. Inside ISDA: its",
        "forward and backward pass and its statistics, as a share of the step; in it cross-entropy's, which stands",
        "beside. Over CE: the step beside that with cross-entropy, ± half of the range over the turns.",
        "",
        "| network | ms, CE | ms, ISDA | images/s | inside ISDA | inside CE | over CE | MiB, CE | MiB, ISDA | paper |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    missed = []
    for case in ON_GPU if on_gpu else ON_CPU:
        line, share = row(case, compute)
        lines.append(line)
        if not on_gpu and case.share is not None and share > case.share:
            missed.append(f"inside ISDA, {case.model}: at most {case.share:.1%}, found {share:.2%}")
    conclude([*lines, "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
