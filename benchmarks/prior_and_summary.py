"""The cost of ISDA's `prior=` in a step, and of `criterion.summary()` beside an epoch, in float32 on a CPU.

    python benchmarks/prior_and_summary.py                                              # 2 minutes
    python benchmarks/prior_and_summary.py output=results/benchmarks/prior_and_summary_cpu.md

- Steps: head, forward and backward pass of `ISDALoss` with and without `prior=`, which take turns; the ratio is the
  median over the turns.
- Summaries: the median time of one, as the trainer takes it after each epoch, beside 50,000 images trained by the
  network of that size (a few images are timed).

Times are the processor time of this one thread, which other programs disturb less than wall time. Exits 1 if a bar is
missed: a summary may take 0.1% of an epoch.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from isda_repro.config import build_model, compose
from isda_repro.errors import one_sentence_errors
from isda_repro.losses import ISDALoss
from isda_repro.measurements import conclude, machine, output_argument

TURNS = 15
PRIOR = 20.0
STEPS: Sequence[tuple[int, int, int, dict[str, Any]]] = [  # samples, classes, features, form
    (128, 100, 64, {}),
    (128, 100, 640, {}),
    (128, 100, 640, {"packed": True}),
    (64, 1000, 2048, {"covariance": "diagonal"}),
]
SUMMARIES = [("resnet32", 32), ("wrn28_10", 2)]  # network, images that are timed
CLASSES, IMAGES, MOST_SHARE = 100, 50_000, 0.001


def milliseconds(function: Callable[[], Any]) -> float:
    """Return the processor time of one call."""
    begin = time.process_time()
    function()
    return 1000 * (time.process_time() - begin)


def step_of(samples: int, classes: int, width: int, **options: Any) -> Callable[[], None]:
    """Return a function that takes one step on a random batch."""
    torch.manual_seed(0)
    criterion, head = ISDALoss(classes, width, **options), nn.Linear(width, classes)
    features, targets = torch.randn(samples, width).relu().requires_grad_(), torch.randint(classes, (samples,))
    return lambda: criterion(features, head(features), targets, head=head, progress=0.5).backward()


def step_row(samples: int, classes: int, width: int, form: dict[str, Any]) -> str:
    """Return a row of the table: milliseconds without and with a prior, and the ratio."""
    plain, mixed = (step_of(samples, classes, width, prior=prior, **form) for prior in (None, PRIOR))
    plain(), mixed()
    pairs = [(milliseconds(plain), milliseconds(mixed)) for _ in range(TURNS)]
    ratio = statistics.median(with_prior / without for without, with_prior in pairs)
    times = " | ".join(f"{statistics.median(times):.3g}" for times in zip(*pairs, strict=True))
    name = form.get("covariance", "packed" if form else "full")
    return f"| {samples}, {classes}, {width} | {name} | {times} | {ratio:.3f} |"


def summary_row(name: str, images: int) -> tuple[str, float]:
    """Return a row of the table, and the share of an epoch that the summary takes."""
    torch.manual_seed(0)
    network = build_model(compose([f"model={name}", "dataset=cifar100", "loss=isda"]), CLASSES)
    width = network.head.in_features
    criterion, pixels, targets = ISDALoss(CLASSES, width), torch.randn(images, 3, 32, 32), torch.arange(images)

    def train() -> None:
        F.cross_entropy(network(pixels).logits, targets).backward()

    features = torch.randn(1000, width).relu()
    criterion(features, network.head(features), torch.arange(1000) % CLASSES, head=network.head, progress=0.5)
    train()
    of_image = min(milliseconds(train) for _ in range(3)) / images
    of_summary = statistics.median(
        milliseconds(lambda: criterion.summary(head=network.head, progress=0.5)) for _ in range(TURNS)
    )
    share = of_summary / (of_image * IMAGES)
    row = f"| {name} | {CLASSES}, {width} | {of_summary:.3g} | {of_image * IMAGES / 1000:.0f} | {share:.4%} |"
    return row, share


def main() -> None:
    """Measure, print the report, and exit with 1 if a bar is missed."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(1)
    summaries = [summary_row(*one) for one in SUMMARIES]
    lines = [
        "# The cost of `prior=` and of `criterion.summary()`, float32, CPU",
        "",
        "`python benchmarks/prior_and_summary.py`: processor time of one thread. Summaries are taken once per epoch.",
        "",
        "| N, C, A | covariances | ms of a step | with prior | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
        *(step_row(*one) for one in STEPS),
        "",
        "| network | C, A | ms of a summary | s of an epoch of 50,000 images | share |",
        "| --- | --- | ---: | ---: | ---: |",
        *(row for row, _ in summaries),
        "",
        *machine(),
    ]
    missed = [
        f"summary of {name}: {share:.3%} of an epoch"
        for (name, _), (_, share) in zip(SUMMARIES, summaries, strict=True)
        if share > MOST_SHARE
    ]
    conclude(lines, missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
