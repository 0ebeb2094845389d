"""The overhead of ISDA in a training step: time inside it, step time beside cross-entropy's, images per second, memory.

    python benchmarks/overhead.py                                              # CIFAR-100's; on a CPU 3 minutes
    python benchmarks/overhead.py output=results/benchmarks/overhead_cpu.md    # also writes what it prints
    python benchmarks/overhead.py networks=table1 output=results/benchmarks/overhead_table1_cpu.md

Whole training steps on random images of the data set's size, with network and optimiser, in the precision that
`compute=auto` chooses; CE and ISDA take turns.

- `networks=table1`: the paper's seven networks on ImageNet with diagonal covariances. The JSON file beside the output
  is the source of the wall time in our Table 1.
- `clock=processor`: the processor time of one thread instead of wall time, for a machine that others use too.

Exits 1 if a bar is missed: on a CPU, the time inside ISDA on CIFAR-100 may be at most 1% of a step of WRN-28-10, and
2.5% of one of DenseNet-BC-100-12.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import truediv

import torch
from overhead_report import Row, above, write_json

from isda_repro.config import build_loss, build_model, compose
from isda_repro.config.options import parse_options
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.experiments.paper_values import reported
from isda_repro.files import check_output
from isda_repro.measurements import THREADS, conclude, machine, output_path
from isda_repro.models import Network
from isda_repro.training.compute import Compute, processor, resolve_compute
from isda_repro.training.running_metrics import Stopwatch, peak_memory_mib
from isda_repro.training.step import compute_gradients

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class Options:
    """Options of the script; the module's docstring describes them."""

    networks: str = "cifar"
    clock: str = "wall"
    output: str | None = None


@dataclass(frozen=True)
class Case:
    """A network as the paper trains it.

    Attributes:
        steps: steps in a turn.
        share: bar for the share of a step inside ISDA on a CPU.
        paper: added wall time in Table 1, in percent.
    """

    model: str
    dataset: str
    batch_size: int
    steps: int
    turns: int = 5
    share: float | None = None
    paper: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Number of classes, and width of the images in pixels."""
        return (1000, 224) if self.dataset == "imagenet" else (100, 32)


ON_CPU = [
    Case("densenet_bc100_12", "cifar100", 64, steps=1, turns=21, share=0.025),
    Case("wrn28_10", "cifar100", 128, steps=1, turns=7, share=0.01),
]
ON_GPU = [
    Case("resnet110", "cifar100", 128, steps=50),
    Case("densenet_bc100_12", "cifar100", 64, steps=50),
    Case("wrn28_10", "cifar100", 128, steps=50),
]
TABLE_1 = ["resnet50", "resnet101", "resnet152", "densenet121", "densenet265", "resnext50_32x4d", "resnext101_32x8d"]


def table_1(on_gpu: bool) -> list[Case]:
    """Return the cases of Table 1; the batch is that of one of the paper's eight GPUs, on a CPU an eighth of it."""
    papers = [row["cost_wall_pct"] for row in reported()["table1"]["rows"]]
    size = {"batch_size": 64, "steps": 50} if on_gpu else {"batch_size": 8, "steps": 1}
    return [Case(model, "imagenet", paper=paper, **size) for model, paper in zip(TABLE_1, papers, strict=True)]


class ProcessorStopwatch(Stopwatch):
    """A stopwatch that counts the processor time of the process instead of wall time."""

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Add the processor time of the block to ``name``."""
        begin = time.process_time()
        yield
        self._seconds[name] += time.process_time() - begin


class Contender:
    """A network and a loss that train on one fixed batch, and the times of their steps."""

    def __init__(self, case: Case, loss: str, compute: Compute, clock: str) -> None:
        torch.manual_seed(0)
        classes, pixels = case.size
        cfg = compose([f"model={case.model}", f"dataset={case.dataset}", f"loss={loss}"])
        network: Network = build_model(cfg, classes)
        layout = compute.memory_format
        self.network = network.to(device=compute.device, memory_format=layout)  # type: ignore[call-overload]
        self.criterion = build_loss(cfg, num_classes=classes, feature_dim=network.feature_dim).to(compute.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        images = torch.randn(case.batch_size, 3, pixels, pixels, device=compute.device)
        self.images = images.contiguous(memory_format=layout)
        self.targets = torch.randint(classes, (case.batch_size,), device=compute.device)
        self.compute, self.steps = compute, case.steps
        self.clock = CLOCKS[clock]
        self.stopwatch = ProcessorStopwatch(compute.device) if clock == "processor" else Stopwatch(compute.device)
        self.milliseconds: list[float] = []  # mean of a step, for each turn
        self.inside: list[float] = []  # part of them inside the criterion
        self._turn()  # warm-up

    def turn(self) -> None:
        """Take the steps of a turn and append their mean times."""
        seconds, inside = self._turn()
        self.milliseconds.append(1000 * seconds / self.steps)
        self.inside.append(1000 * inside / self.steps)

    def _turn(self) -> tuple[float, float]:
        self._wait()
        begin = self.clock()
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
                stopwatch=self.stopwatch,
            )
            self.optimizer.step()
        self._wait()
        return self.clock() - begin, self.stopwatch.seconds()["criterion"]

    def _wait(self) -> None:
        if self.compute.device.type == "cuda":
            torch.cuda.synchronize()


def measure(case: Case, compute: Compute, clock: str) -> Row:
    """Train with CE and with ISDA in turns, and return the row of the table."""
    memory = [memory_mib(case, loss, compute, clock) for loss in ("ce", "isda")]
    ce, isda = (Contender(case, loss, compute, clock) for loss in ("ce", "isda"))
    for _ in range(case.turns):
        ce.turn()
        isda.turn()
    turns = list(zip(ce.milliseconds, isda.milliseconds, ce.inside, isda.inside, strict=True))
    added = quartiles([100 * (inside - of_ce) / step for step, _, of_ce, inside in turns])
    steps = quartiles([100 * (with_isda / step - 1) for step, with_isda, _, _ in turns])
    of_ce, of_isda = (100 * statistics.median(map(truediv, one.inside, one.milliseconds)) for one in (ce, isda))
    return Row(
        *(case.model, *case.size, case.batch_size, case.turns),
        ms_ce=statistics.median(ce.milliseconds),
        ms_isda=statistics.median(isda.milliseconds),
        inside_ce_percent=of_ce,
        inside_isda_percent=of_isda,
        added_percent=added[0],
        added_low=added[1],
        added_high=added[2],
        step_percent=steps[0],
        step_low=steps[1],
        step_high=steps[2],
        mib_ce=memory[0],
        mib_isda=memory[1],
        paper_percent=case.paper,
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median, the lower quartile and the upper quartile."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def memory_mib(case: Case, loss: str, compute: Compute, clock: str) -> float | None:
    """Return the peak memory in MiB of training with one loss on a GPU; None on a CPU."""
    if compute.device.type != "cuda":
        return None
    contender = Contender(case, loss, compute, clock)  # its warm-up ran cuDNN's search, with large workspaces
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    contender.turn()
    return peak_memory_mib(compute.device)


def hardware(on_gpu: bool, clock: str) -> str:
    """Return a description of the hardware for the report."""
    if on_gpu:
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    spent = ", processor time on a machine in use" if clock == "processor" else ""
    return f"{processor()[0]}, {threads} thread{'s' if threads > 1 else ''}{spent}"


def main() -> None:
    """Measure all networks, print a report, write it if asked, and exit with 1 if a bar is missed."""
    options = parse_options(Options, sys.argv[1:])
    output = output_path(options.output)
    if output is not None:
        check_output(output.with_suffix(".json"))
    if options.networks not in ("cifar", "table1") or options.clock not in CLOCKS:
        raise UserError(f"networks= can be cifar or table1, and clock= {' or '.join(CLOCKS)}")
    torch.set_num_threads(1 if options.clock == "processor" else THREADS)
    compute = resolve_compute(compose([]).compute)
    compute.apply()
    on_gpu = compute.device.type == "cuda"
    cifar = ON_GPU if on_gpu else ON_CPU
    rows, missed = [], []
    for case in table_1(on_gpu) if options.networks == "table1" else cifar:
        rows.append(row := measure(case, compute, options.clock))
        print(row, file=sys.stderr, flush=True)
        if not on_gpu and case.share is not None and row.inside_isda_percent > 100 * case.share:
            missed.append(f"inside ISDA, {case.model}: at most {case.share:.1%}, found {row.inside_isda_percent:.2f}%")
    where = hardware(on_gpu, options.clock)
    if output is not None:
        about = {"accelerator": on_gpu, "clock": options.clock, "hardware": where, "precision": compute.precision}
        write_json(output.with_suffix(".json"), rows, **about)
    typed = f"networks={options.networks} clock={options.clock}"
    conclude([*above(typed, where, compute.precision), *map(str, rows), "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
