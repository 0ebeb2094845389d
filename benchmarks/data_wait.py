"""The share of training time that is spent waiting for data, for each CIFAR network. From the repository root:

    python benchmarks/data_wait.py                                              # 8 minutes; uses $ISDA_DATA
    python benchmarks/data_wait.py output=results/benchmarks/data_wait_cpu.md   # also writes what it prints

Real runs of the trainer on a part of CIFAR-10, two epochs each. The share is taken from the second epoch's line in
`metrics.jsonl`: seconds in the loader over seconds of training. The fastest networks are measured with each
augmentation, all others with the most expensive one. Exits 1 if a share is 1% or more. AutoAugment with the two fastest
networks, which the paper does not have, costs more and has no bar.
"""

import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from isda_repro.config import compose
from isda_repro.errors import one_sentence_errors
from isda_repro.measurements import THREADS, conclude, machine, output_argument
from isda_repro.runs.records import EpochRecord, read_metrics
from isda_repro.training.run import run

BAR = 0.01
AUGMENTATIONS = ("baseline", "cutout", "autoaugment")
DATA_DIR = os.environ.get("ISDA_DATA", "data")


@dataclass(frozen=True)
class Case:
    """A network, an augmentation, and the images of an epoch: about ten seconds of a CPU, a minute for the largest."""

    model: str
    images: int
    augmentation: str = "autoaugment"
    has_bar: bool = True


CASES = [
    *(Case("resnet20", 10_240, augmentation, augmentation != "autoaugment") for augmentation in AUGMENTATIONS),
    *(Case("resnet32", 7_680, augmentation, augmentation != "autoaugment") for augmentation in AUGMENTATIONS),
    Case("resnet110", 2_048),
    Case("se_resnet110", 2_048),
    Case("wrn16_8", 512),
    Case("wrn28_10", 128),
    Case("resnext29_8x64d", 128),
    Case("densenet_bc100_12", 512),
    Case("densenet_bc190_40", 192),
    Case("shake_shake26_2x32d", 1_024),
    Case("shake_shake26_2x112d", 128),
]


def second_epoch(case: Case) -> EpochRecord:
    """Train two epochs with the trainer and return the record of the second."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        choices = [f"model={case.model}", f"augmentation={case.augmentation}", "loss=isda", "tracking=none"]
        sizes = [f"dataset.train_limit={case.images}", "dataset.test_limit=10", "recipe.epochs=2", "recipe.lr=0.01"]
        cfg = compose([*choices, *sizes, f"runs_dir={folder}", f"data_dir={DATA_DIR}"])
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            run(cfg)
        records = read_metrics(Path(folder) / cfg.run_id / "metrics.jsonl")
        return [record for record in records if isinstance(record, EpochRecord)][-1]


def main() -> None:
    """Measure all cases, print a table, write it if asked, and exit with 1 if a case misses the bar."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    lines = [
        "# Waiting for data: share of the training time, CPU",
        "",
        "`python benchmarks/data_wait.py`: the second epoch of real runs on a part of CIFAR-10, `loss=isda`. On",
        "a CPU the loader has no one to hide behind: all that it computes counts.",
        "",
        "| `model=` | `augmentation=` | images/s | waiting for data | bar |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    missed = []
    for case in CASES:
        timing = second_epoch(case).timing
        share = timing["data_wait"] / timing["train"]
        bar = f"{BAR:.0%}" if case.has_bar else ""
        lines.append(
            f"| `{case.model}` | `{case.augmentation}` | {timing['images_per_s']:,.0f} | {share:.2%} | {bar} |"
        )
        if case.has_bar and share >= BAR:
            missed.append(f"{case.model}, {case.augmentation}: under {BAR:.0%}, found {share:.2%}")
    conclude([*lines, "", *machine()], missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
