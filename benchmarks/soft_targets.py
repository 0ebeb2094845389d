"""Time and memory of ISDA with class probabilities as targets: forward, backward and update, in float32 on a CPU.

    python benchmarks/soft_targets.py                                              # a minute, on an idle machine
    python benchmarks/soft_targets.py output=results/benchmarks/soft_targets_cpu.md

Contenders take turns on one batch of N samples, C classes and A features, as in benchmarks/loss.py:

- hard: `ISDALoss` with labels;
- mixup: `ISDALoss` with the probabilities of two labels for each sample;
- dense: the same, where no probability is zero, as timm's `Mixup` with label smoothing makes them;
- N C C: what mixup computes, but with all N C C augmented logits (and the same statistics and sigma2).

Exits 1 if a bar is missed.
"""

import os
import statistics
import sys
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler that measures memory

import torch
import torch.nn.functional as F
from loss import peak_mib, turn
from torch import Tensor, nn

from isda_repro.errors import one_sentence_errors
from isda_repro.losses import ISDALoss
from isda_repro.measurements import THREADS, conclude, machine, output_argument

SHAPES = [(128, 10, 64, "full", 15), (128, 100, 640, "full", 5), (128, 1000, 512, "diagonal", 5)]
MOST = 4.0  # times the step with labels


class AllLogits(ISDALoss):
    """ISDA whose expected loss is computed from all N C C augmented logits."""

    def _expected_loss(self, logits: Tensor, half_sigma2: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        shown = probabilities.index_select(1, labels)
        own_NU = logits.index_select(1, labels)
        return (shown * ((logits[:, None] + half_sigma2).logsumexp(2) - own_NU)).sum() / len(logits)


def steps(samples: int, classes: int, width: int, covariance: str) -> dict[str, Callable[[], None]]:
    """Return a training step of each contender."""
    torch.manual_seed(0)
    features = torch.randn(samples, width).relu().requires_grad_()
    labels = torch.randint(classes, (samples,))
    one_hot = F.one_hot(labels, classes).float()
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    targets = {"hard": labels, "mixup": mixed, "dense": 0.9 * mixed + 0.1 / classes, "N C C": mixed}

    def step(name: str) -> Callable[[], None]:
        criterion = (AllLogits if name == "N C C" else ISDALoss)(classes, width, covariance=covariance)
        head = nn.Linear(width, classes)

        def run() -> None:
            features.grad = None
            head.zero_grad()
            criterion(features, head(features), targets[name], head=head, progress=0.5).backward()

        return run

    return {name: step(name) for name in targets}


def main() -> None:
    """Run all shapes, print a report, write it if asked, and exit with 1 if a bar is missed."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    lines = [
        "# ISDA with class probabilities: milliseconds and peak memory of one step, float32, CPU",
        "",
        "`python benchmarks/soft_targets.py`: medians over the turns, of the ratios too; memory in MiB above what was",
        "there before the step. mixup has two labels for each sample, dense no probability of 0. N C C computes the",
        f"loss of mixup from all augmented logits. Bar: mixup takes at most {MOST:.3g} times the step with labels.",
        "",
        "| N, C, A | covariance | targets | ms | / hard | MiB |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    missed = []
    for samples, classes, width, covariance, turns in SHAPES:
        contenders = steps(samples, classes, width, covariance)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, step in contenders.items():
                times[name].append(turn(step))

        def ratio(first: str, second: str, times: dict[str, list[float]] = times) -> float:
            return statistics.median(a / b for a, b in zip(times[first], times[second], strict=True))

        for name, step in contenders.items():
            cells = f"{statistics.median(times[name]):.3g} | {ratio(name, 'hard'):.3g} | {peak_mib(step):.3g}"
            lines.append(f"| {samples}, {classes}, {width} | {covariance} | {name} | {cells} |")
        if ratio("mixup", "hard") > MOST:
            missed.append(
                f"({samples}, {classes}, {width}) mixup / hard {MOST:.3g}, found {ratio('mixup', 'hard'):.3g}"
            )
    conclude([*lines, "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
