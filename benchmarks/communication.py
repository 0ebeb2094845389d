"""Bytes that the processes of a run send each other: by formula for every network, and measured for two processes.

    python benchmarks/communication.py [output=results/benchmarks/communication.md]

Gradients are reduced in a ring: each of W processes sends 2 P (W - 1) / W numbers of 4 bytes. ISDA gathers the features
of the batch: N A (W - 1) / W numbers, and N labels of 8 bytes. Its share is therefore N A / (2 P) of the gradients' for
any number of processes. Exits 1 if it is above 4% for a network.

Measured with two processes: the bytes that pass through the loopback device in a step with CE and in one with ISDA, and
the part of the exchange of gradients that the backward pass hides.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.nn.parallel import DistributedDataParallel

from isda_repro.config import build_loss, build_model, compose
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.experiments.paper_values import PAPERS_NAMES, on_imagenet
from isda_repro.losses import Criterion
from isda_repro.measurements import conclude, machine, output_argument
from isda_repro.models import Network
from isda_repro.training.compute import resolve_compute
from isda_repro.training.ddp import wrap_ddp
from isda_repro.training.distributed import Processes, init_distributed
from isda_repro.training.running_metrics import Stopwatch
from isda_repro.training.step import Weighted, compute_gradients

BAR = 0.04
MEASURED = ("resnet32", "resnet110", "wrn16_8", "densenet_bc100_12", "resnet50", "densenet121")
STEPS, PIXELS = 5, 32  # the number of bytes does not depend on the size of the images


class Sizes(NamedTuple):
    """Numbers of a network and its recipe that determine what is sent; ``buffers`` is in bytes."""

    parameters: int
    buffers: int
    feature_dim: int
    batch_size: int

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients in float32, counted once."""
        return 4 * self.parameters

    @property
    def isda_share(self) -> float:
        """Bytes of ISDA's features divided by those of the gradients, N A / (2 P), as both are sent."""
        return self.batch_size * self.feature_dim / (2 * self.parameters)


class Measured(NamedTuple):
    """Means over the steps of each of two processes.

    Attributes:
        bytes_sent: bytes that a process sends in a step, TCP's headers included.
        exchange: seconds of the exchange of gradients.
        hidden: seconds of the exchange during which the backward pass still computes.
    """

    bytes_sent: float
    exchange: float
    hidden: float


def settings(model: str, loss: str) -> Any:
    """Compose a run's configuration with the data set of the paper, and so with its kind of covariance."""
    data = ["dataset=imagenet"] if on_imagenet(model) else ["dataset=cifar100"]
    return compose([f"model={model}", *data, f"loss={loss}", "data_dir=none"])


def sizes(model: str) -> Sizes:
    """Build the network and count its parameters, buffers and features."""
    cfg = settings(model, "ce")
    network: Network = build_model(cfg, 1000 if on_imagenet(model) else 100)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Sizes(parameters, buffers, network.feature_dim, cfg.recipe.batch_size)


def sent_through_loopback() -> int:
    """Return the bytes that the whole machine has sent through its loopback device since it started."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[8])


def measure(model: str, loss: str, processes: Processes) -> Measured:
    """Measure steps of this process and its peer; every process must call this at the same time."""
    cfg = settings(model, loss)
    classes = 1000 if on_imagenet(model) else 100
    compute = resolve_compute(compose(["compute=cpu", "compute.precision=fp32"]).compute)
    torch.manual_seed(0)
    network: Network = build_model(cfg, classes)
    shared = {"process_group": processes.group} if loss == "isda" else {}
    criterion: Criterion = build_loss(cfg, num_classes=classes, feature_dim=network.feature_dim, **shared)
    called = wrap_ddp(network, processes, compute)
    own = cfg.recipe.batch_size // processes.world_size
    images, targets = torch.randn(own, 3, PIXELS, PIXELS), torch.randint(classes, (own,))

    def step() -> None:
        called.zero_grad()
        compute_gradients(
            called,
            criterion,
            images,
            targets,
            head=network.head,
            progress=0.5,
            compute=compute,
            seed_micro_batch=lambda index: None,
            stopwatch=Stopwatch(compute.device),
            share=Weighted(),
        )

    step()  # DDP changes its buckets after the first step
    step()
    processes.all_reduce_max(0)
    before = sent_through_loopback()
    for _ in range(STEPS):
        step()
    processes.all_reduce_max(0)
    sent = (sent_through_loopback() - before) / STEPS / processes.world_size
    about = cast(DistributedDataParallel, called)._get_ddp_logging_data()
    exchange, hidden = (about.get(f"avg_backward_{name}_time", 0) / 1e9 for name in ("comm", "compute_comm_overlap"))
    return Measured(sent, exchange, hidden)


def measured_by_two(model: str) -> dict[str, Measured]:
    """Measure CE and ISDA with two processes that torchrun starts.

    Raises:
        RuntimeError: torchrun failed; the message is its standard error.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, model]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    rows = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("measured"))
    return {loss: Measured(*map(float, numbers)) for loss, *numbers in rows}


def one_of_two(model: str) -> None:
    """Measure CE and ISDA as one of the two processes; the main process prints the numbers."""
    torch.set_num_threads(1)
    with init_distributed(timeout_minutes=10) as processes:
        for loss in ("ce", "isda"):
            found = measure(model, loss, processes)
            if processes.is_main:
                print("measured", loss, *found, flush=True)


def main() -> None:
    """Compute the sizes, measure, print a report, and exit with 1 if ISDA's share is above the bar."""
    output = output_argument(sys.argv[1:])
    if sys.platform != "linux":
        raise UserError("this benchmark reads its figures from /proc: run it on Linux")
    all_sizes = {model: sizes(model) for model in PAPERS_NAMES}
    lines = [
        "# What several processes send each other",
        "",
        "`python benchmarks/communication.py`. For each step and process, in kB; W processes send (W - 1) / W",
        "of what is in the first two columns, the gradients twice. ISDA: the features, N x A; its labels are 8 N bytes",
        "more. Its statistics are not sent: each process makes the same ones of the features (packed=true divides",
        "them, and reduces 2 C x C numbers). N is the recipe's batch. Buffers: running statistics of batch",
        "normalisation, from the first process.",
        "",
        "| `model=` | gradients | ISDA's features | N | A | ISDA's share, N A / 2 P | buffers |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(model, one) for model, one in all_sizes.items()),
        "",
        f"Measured on the loopback device, two processes on a CPU, mean of {STEPS} steps: bytes that a process sends",
        "in a step, TCP's headers and acknowledgements included, beside the formula (buffers from one process in two);",
        "and the share of the exchange of gradients during which the backward pass still calculates, as DDP logs it.",
        "",
        "| `model=` | CE, kB | formula | ISDA, kB | ISDA - CE, kB | formula | hidden, CE | hidden, ISDA |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in MEASURED:
        lines.append(_measured_row(model, all_sizes[model], measured_by_two(model)))
        print(lines[-1], file=sys.stderr, flush=True)
    missed = [f"{model}: {one.isda_share:.1%}" for model, one in all_sizes.items() if one.isda_share > BAR]
    conclude([*lines, "", *machine()], missed, output)


def _row(model: str, one: Sizes) -> str:
    features = 4 * one.batch_size * one.feature_dim
    return (
        f"| `{model}` | {one.gradient_bytes / 1e3:,.0f} | {features / 1e3:,.0f} | {one.batch_size} | "
        f"{one.feature_dim} | {one.isda_share:.2%} | {one.buffers / 1e3:,.0f} |"
    )


def _measured_row(model: str, one: Sizes, found: dict[str, Measured]) -> str:
    ce, isda = found["ce"], found["isda"]
    expected = one.gradient_bytes + one.buffers / 2
    more = one.batch_size * (4 * one.feature_dim + 8) / 2
    hidden: Callable[[Measured], str] = lambda it: f"{it.hidden / it.exchange:.0%}" if it.exchange else "?"  # noqa: E731
    return (
        f"| `{model}` | {ce.bytes_sent / 1e3:,.0f} | {expected / 1e3:,.0f} | {isda.bytes_sent / 1e3:,.0f} | "
        f"{(isda.bytes_sent - ce.bytes_sent) / 1e3:,.1f} | {more / 1e3:,.1f} | {hidden(ce)} | {hidden(isda)} |"
    )


if __name__ == "__main__":
    if "RANK" in os.environ:
        one_of_two(sys.argv[1])
    else:
        with one_sentence_errors():
            main()
