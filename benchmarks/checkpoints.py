"""The cost of saving a checkpoint: WRN-28-10 with ISDA on CIFAR-100, the state that a run of Table 2 saves.

    python benchmarks/checkpoints.py                                       # half a minute; prints medians
    python benchmarks/checkpoints.py output=results/benchmarks/checkpoint.md

Training waits while the state is copied; the copy is then written, with fsync, in the background. Exits 1 if the copy
takes more than 1% of the default interval between checkpoints.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from isda_repro.config import compose
from isda_repro.errors import one_sentence_errors
from isda_repro.losses import ISDALoss
from isda_repro.measurements import THREADS, conclude, machine, output_argument
from isda_repro.models import WideResNet
from isda_repro.training.checkpoint import Checkpoints, load

REPEATS = 5
BAR = 0.01


def state_of_a_run() -> dict[str, object]:
    """Return a checkpoint's content after one step: network, momentum and ISDA's statistics."""
    network = WideResNet(depth=28, width=10, num_classes=100)
    criterion = ISDALoss(num_classes=100, feature_dim=network.feature_dim)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    states = {
        "network": network.state_dict(),
        "criterion": criterion.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return {"step": 1, "epoch": 0, **states}


def main() -> None:
    """Time the copy, the write and the load of a checkpoint, print a report, and exit with 1 if a bar is missed."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    interval = 60 * compose([]).checkpoint.minutes
    state = state_of_a_run()
    copies, writes, loads = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for _ in range(REPEATS):
            begin = time.perf_counter()
            checkpoints.write(state)
            copied = time.perf_counter()
            checkpoints.wait()
            written = time.perf_counter()
            (path,) = checkpoints.newest_first()
            load(path)
            copies.append(copied - begin)
            writes.append(written - copied)
            loads.append(time.perf_counter() - written)
        size = path.stat().st_size
    share = statistics.median(copies) / interval
    lines = [
        "# Checkpoints: WRN-28-10 with ISDA on CIFAR-100",
        "",
        f"`python benchmarks/checkpoints.py`, medians of {REPEATS}.",
        "",
        f"- {size:,} bytes: weights, momentum, and ISDA's statistics",
        f"- {statistics.median(copies):.3f} s to copy the state, for which training waits: {share:.3%} of the default",
        f"  interval of {interval / 60:g} minutes (bar: {BAR:.0%})",
        f"- {statistics.median(writes):.2f} s to write and fsync it, in the background",
        f"- {statistics.median(loads):.2f} s to verify its checksums and load it",
        "",
        *machine(),
    ]
    conclude(lines, [f"copy at most {BAR:.0%} of the interval"] if share > BAR else [], output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
