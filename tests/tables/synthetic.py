"""Synthetic results that are complete: their settings give their run id."""

import math
from collections.abc import Sequence
from pathlib import Path

from isda_repro import config
from isda_repro.experiments.plan import Run
from isda_repro.experiments.specification import load_table
from isda_repro.experiments.table import Table
from isda_repro.runs.diverged import DivergedRun
from isda_repro.runs.records import Result, SegmentRecord, as_json, mean_of_last

SEGMENT = SegmentRecord(
    step=0, device="cpu", hardware="a processor", precision="fp32", tf32=False, channels_last=True,
    compile=False, deterministic=False, world_size=1, threads=2, git_revision=None, git_clean=None,
)  # fmt: skip


SEARCH = """
title: A search
metric: test_error_final
seeds: [0, 1]
figure: {across: lambda_0}
set: [dataset=digits, model=resnet8, loss=isda]
"""


def load_search(folder: Path, values: Sequence[str], rows: str = "{Digits: []}") -> Table:
    """Return a search for lambda_0 whose columns are ``values``, from a file that it writes into ``folder``."""
    columns = ", ".join(f'"{value}": loss.lambda_0={value}' for value in values)
    (folder / "search.yaml").write_text(f"{SEARCH}rows: [{rows}]\ncolumns: [{{{columns}}}]\n")
    return load_table(str(folder / "search.yaml"))


def plausible_errors(seed: int, best: float, epochs: int = 30) -> list[float]:
    """Return errors that fall from 60% to ``best``, noisy while the learning rate is high."""
    noise = [math.sin(12.9 * (seed + 1) * epoch) for epoch in range(epochs)]
    size = [0.25 if epoch < 15 else 0.06 if epoch < 23 else 0.02 for epoch in range(epochs)]
    return [
        (best + 60 * math.exp(-epoch / 4)) * (1 + s * n) for epoch, (s, n) in enumerate(zip(size, noise, strict=True))
    ]


def make_diverged(run: Run) -> DivergedRun:
    settings = dict(run.settings)
    return DivergedRun(
        run_id=run.run_id,
        request=config.request(settings),
        choices=settings["choice"],
        epoch=29,
        step=144,
        reason="the loss is no longer finite",
        segments=[as_json(SEGMENT)],
        environment={"git": {"revision": "0" * 40, "clean": True}},
    )


def make_result(run: Run, errors: Sequence[float]) -> Result:
    settings = dict(run.settings)
    errors = list(errors)
    rates = [0.05 if epoch < 15 else 0.005 if epoch < 23 else 0.0005 for epoch in range(len(errors))]
    return Result(
        run_id=run.run_id,
        request=config.request(settings),
        choices=settings["choice"],
        evaluated_on="test",
        test_error_last10=mean_of_last(errors),
        test_error_final=errors[-1],
        test_error_best=min(errors),
        epochs=len(errors),
        steps=23 * len(errors),
        parameters=269_722,
        feature_dim=64,
        train_images=1437,
        test_images=360,
        curves={"test_error": errors, "test_loss": errors, "train_error": errors, "train_loss": errors, "lr": rates},
        timing={"train": 12.3},
        segments=[as_json(SEGMENT)],
        environment={"git": {"revision": "0" * 40, "clean": True}},
    )
