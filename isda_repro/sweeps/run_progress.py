"""How far an unfinished run has come, from what it leaves in its folder."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from isda_repro.experiments.plan import Run
from isda_repro.runs.records import EpochRecord, GeneratorEpoch, RecordError, read_lines
from isda_repro.tracking.progress_bar import duration

TIMED = ("train", "evaluation", "saving")
TAIL_BYTES = 4096  # a dozen lines; status wants the last one of hundreds of runs


NOT_YET = "not yet training"  # what is said of a run that works, and of which nothing is written yet


def describe_progress(folder: Path, run: Run) -> str | None:
    """Epoch, error so far and time left; None where it has not begun. A torn line hides none of those before it."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    kind = GeneratorEpoch if run.is_generator else EpochRecord
    try:
        last = _last_epoch(path, kind) or _last_of_all(path, kind)
    except RecordError as error:
        return str(error)
    if last is None:
        return "in its first epoch"
    epochs = run.settings["gan" if run.is_generator else "recipe"]["epochs"]
    seconds = sum(last.timing.get(name, 0.0) for name in TIMED) * (epochs - last.epoch)
    left = f", {duration(seconds)} left" if seconds else ""
    said = f", test error {last.test_error:.2f}" if isinstance(last, EpochRecord) else ""
    return f"epoch {last.epoch} of {epochs}{said}{left}"


Epoch = EpochRecord | GeneratorEpoch


def _last_epoch(path: Path, kind: type[Epoch]) -> Epoch | None:
    """The last whole one at the end of the file; None where there is none, as after many resumptions in one epoch."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecordError):
            data = json.loads(line)
            if data["kind"] == kind.kind:
                return kind.from_json(data)
    return None


def _last_of_all(path: Path, kind: type[Epoch]) -> Epoch | None:
    records = [record for record in read_lines(path, kind) if isinstance(record, kind)]
    return records[-1] if records else None
