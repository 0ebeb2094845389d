"""Log messages of a run to W&B without its training: complete records, and a process that logs them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isda_repro.config import compose, request, write_frozen
from isda_repro.runs.records import EpochRecord, Result, SegmentRecord, as_json, mean_of_last
from isda_repro.training.run import curves_of

TIMING = {"train": 2.0, "data_wait": 0.1, "criterion": 0.1, "evaluation": 1.0, "images_per_s": 50.0}
SEGMENT = as_json(
    SegmentRecord(
        step=0,
        device="cpu",
        hardware="x",
        precision="fp32",
        tf32=False,
        channels_last=True,
        compile=False,
        deterministic=False,
        world_size=1,
        threads=2,
        git_revision="0" * 40,
        git_clean=True,
    )
)
CURVES = ("test_error", "test_loss", "train_error", "train_loss", "lr")
COVARIANCES = dict(ratio=0.5, added=1.0, margin=2.0, trace=3.0, effective_rank=4.0, samples=9.0, class_trace=[2.0, 4.0])


def epoch(number: int, error: float, rate: float = 0.1) -> dict[str, Any]:
    """Return the record of an epoch."""
    record = EpochRecord(
        epoch=number,
        step=number * 4,
        lr=rate,
        train_loss=1.0 / 3,
        train_error=30.0,
        test_loss=error / 7,
        test_error=error,
        timing=TIMING,
    )
    return as_json(record)


def result(epochs: Sequence[Mapping[str, Any]], run_id: str = "run-1", **changed: Any) -> dict[str, Any]:
    """Return the result of a run with these epochs."""
    errors = [record["test_error"] for record in epochs]
    whole = Result(
        run_id=run_id,
        request={
            "numerics_version": 2,
            "seed": 0,
            "model": {"dropout": 0, "rate": 1e-05, "empty": {}, "none": []},
            "dataset": {},
            "loss": {},
            "recipe": {"epochs": 3},
        },
        choices={"model": "resnet20", "dataset": "digits", "augmentation": "none", "loss": "ce"},
        evaluated_on="test",
        test_error_last10=mean_of_last(errors),
        test_error_final=errors[-1],
        test_error_best=min(errors),
        epochs=len(errors),
        steps=4 * len(errors),
        parameters=269_722,
        feature_dim=64,
        train_images=1437,
        test_images=360,
        curves={name: [record[name] for record in epochs] for name in CURVES},
        timing={"train": 12.3, "images_per_s": 55.5},
        segments=[SEGMENT],
        environment={"git_revision": "0" * 40, "git_clean": True, "versions": {"torch": "2.14.1", "x": None}},
    )
    return {**as_json(whole), **changed}


def write_metrics(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write the records as ``JsonLines`` would, and return the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


SAY = """
import json, sys
from pathlib import Path
from isda_repro.tracking import WandbTracker
arguments = json.loads(sys.argv[1])
tracker = WandbTracker(**arguments, metrics_path=Path(sys.argv[2]))
for record in json.loads(sys.argv[3]):
    tracker.log(record)
tracker.close()
"""


def say(
    metrics: Path, records: Sequence[Mapping[str, Any]], environment: Mapping[str, str], **changed: Any
) -> subprocess.CompletedProcess[str]:
    """Log the records by a tracker in a process of its own, online by default."""
    arguments = dict(mode="online", project="p", entity=None, run_id="run-1", config={"seed": 0}, group="g")
    return subprocess.run(
        [sys.executable, "-c", SAY, json.dumps({**arguments, **changed}), str(metrics), json.dumps(records)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def finished_run(runs_dir: Path, *overrides: str, epochs: int = 3) -> Path:
    """Write the folder of a finished classifier's run with these settings, without its training and weights."""
    cfg = compose(["model=resnet8", "dataset=digits", f"recipe.epochs={epochs}", f"runs_dir={runs_dir}", *overrides])
    folder = runs_dir / str(cfg.run_id)
    folder.mkdir(parents=True)
    lines = [epoch(number, 20.0 / number, rate=0.1 / number) for number in range(1, epochs + 1)]
    lines = [{**line, "covariances": {**COVARIANCES, "ratio": 1 / line["epoch"]}} for line in lines]
    asked = {"numerics_version": cfg.numerics_version, **request(cfg)}
    curves = curves_of([EpochRecord.from_json(line) for line in lines])
    whole = result(lines, run_id=cfg.run_id, request=asked, choices=dict(cfg.choice), curves=curves)
    write_frozen(cfg, folder / "config.yaml")
    write_metrics(folder / "metrics.jsonl", [SEGMENT, lines[0], {**SEGMENT, "step": 4, "hardware": "y"}, *lines[1:]])
    (folder / "environment.json").write_text('{"host": "h"}')
    (folder / "result.json").write_text(json.dumps(whole))
    return folder
