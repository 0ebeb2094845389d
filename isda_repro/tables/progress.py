"""How far an unfinished run has come, from what it leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from isda_repro.tables.plan import Run
from isda_repro.tables.records import EpochRecord, RecordError, read_metrics
from isda_repro.tracking.progress import duration

TIMED = ("train", "evaluation", "saving")


def progress_of(folder: Path, run: Run) -> str | None:
    """Epoch, error so far and time left; None where it has not begun. A torn line hides none of those before it."""
    path, last = folder / "metrics.jsonl", None
    if not path.exists():
        return None
    try:
        for record in read_metrics(path):
            last = record if isinstance(record, EpochRecord) else last
    except (RecordError, UnicodeDecodeError) as error:
        if last is None:
            return str(error)
    if last is None:
        return "in its first epoch"
    epochs = run.settings["recipe"]["epochs"]
    seconds = sum(last.timing.get(name, 0.0) for name in TIMED) * (epochs - last.epoch)
    left = f", {duration(seconds)} left" if seconds else ""
    return f"epoch {last.epoch} of {epochs}, test error {last.test_error:.2f}{left}"
