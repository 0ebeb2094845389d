"""Progress of an unfinished run, read from the files in its folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from isda_repro.experiments.plan import Run
from isda_repro.files import open_regular
from isda_repro.runs.generator_records import GeneratorEpoch
from isda_repro.runs.records import MOST_LINE_BYTES, EpochRecord, RecordError, read_lines
from isda_repro.runs.strict_json import parsed
from isda_repro.tracking.progress_bar import duration

TIMED = ("train", "evaluation", "saving")
TAIL_BYTES = 2 * MOST_LINE_BYTES  # has a whole line, also if the last one is torn


NOT_YET = "not yet training"  # shown for a run whose process works but has written nothing yet


def describe_progress(folder: Path, run: Run) -> str | None:
    """Return the epoch, the test error so far and the time left, as text; None if the run has not begun.

    A torn last line hides none of the lines before it. If the file is damaged otherwise, the text says so.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    kind = GeneratorEpoch if run.is_generator else EpochRecord
    try:
        last = _last_epoch(path, kind) or _last_of_all(path, kind)
    except (OSError, RecordError) as error:
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
    """Return the last complete epoch within the final ``TAIL_BYTES`` of the file.

    None if there is no epoch among these lines, as after many resumptions within one epoch.
    """
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecordError):
            data = parsed(line)
            if data["kind"] == kind.kind:
                return kind.from_json(data)
    return None


def _last_of_all(path: Path, kind: type[Epoch]) -> Epoch | None:
    records = [record for record in read_lines(path, kind) if isinstance(record, kind)]
    return records[-1] if records else None
