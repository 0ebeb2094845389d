"""Choice of the point that a run starts from: its last usable checkpoint, or the beginning.

1. A run with a result is finished and does not start at all (``session.earlier_result`` checks this first).
2. Otherwise it continues from its newest checkpoint that is undamaged, belongs to this run, and whose lines of
   ``metrics.jsonl`` are all there.
3. Without such a checkpoint it starts from the beginning.

Lines of ``metrics.jsonl`` that are newer than the checkpoint are dropped, because their steps are taken again. If
lines of ``metrics.jsonl`` are lost but a checkpoint is undamaged, its weights are not discarded: the run stops with an
error, and the user decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from isda_repro.console import warn
from isda_repro.data import DataError, Source
from isda_repro.errors import UserError
from isda_repro.files import rename_aside
from isda_repro.runs.records import AnyRecord, RecordError, read_lines
from isda_repro.training.checkpoint import CheckpointError, Checkpoints, load

DATA_KEY = "data"


def describe_data(source: Source) -> dict[str, Any]:
    """Return what a checkpoint stores about the data: class names and numbers of images."""
    return {
        "classes": list(source.class_names),
        "train_images": len(source.train),
        "test_images": len(source.test),
    }


def check_classes(state: Mapping[str, Any], source: Source, path: Path) -> None:
    """Check that the data has the classes that the weights in ``path`` were trained on.

    Files of older versions do not store their classes and pass.

    Raises:
        DataError: the classes differ.
    """
    then, now = state.get(DATA_KEY, {}).get("classes"), list(source.class_names)
    if then is None or then == now:
        return
    differing = next((i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    named = [names[differing] if differing < len(names) else "none" for names in (then, now)]
    raise DataError(
        f"{path} was trained on other classes: {len(then)} of them, and {source.name} has {len(now)}; class "
        f"{differing} was {named[0]} and is {named[1]} now: give the folder it was trained on, or begin a run with "
        "another name (dataset.name=)"
    )


def check_same_data(state: Mapping[str, Any], source: Source, path: Path) -> None:
    """Check that the data has the same classes and numbers of images as when ``state`` was saved.

    With another number of images the steps of an epoch would differ.

    Raises:
        DataError: something has changed.
    """
    check_classes(state, source, path)
    now = describe_data(source)
    for key, then in state.get(DATA_KEY, {}).items():
        if then != now[key]:
            raise DataError(
                f"{path} is of a run with {then:,} {key.replace('_', ' ')}, and {source.name} has {now[key]:,} now: "
                "put the data back as it was, or delete the run's folder to begin anew"
            )


ALWAYS_NEEDED = frozenset({"step", "epoch", "metrics_bytes"})


class Start(NamedTuple):
    """The point that a run starts from.

    Attributes:
        path: the checkpoint; None at the beginning.
        state: its content; None at the beginning.
        records: the records of the epochs that are done.
        metrics_bytes: length of ``metrics.jsonl`` to keep.
    """

    path: Path | None
    state: dict[str, Any] | None
    records: list[Any]
    metrics_bytes: int


def find_start(
    checkpoints: Checkpoints, metrics: Path, run_id: str, needed: Set[str], epoch_record: type[AnyRecord]
) -> Start:
    """Return where the run starts from, by the rule of this module.

    Checkpoints that cannot be used are renamed, with a warning for each.

    Args:
        checkpoints: the checkpoints of the run.
        metrics: the run's ``metrics.jsonl``.
        run_id: the run's name, which the checkpoint must bear.
        needed: keys that the state must have.
        epoch_record: record type of the lines of ``metrics`` that describe epochs.

    Raises:
        UserError: ``metrics.jsonl`` lacks lines of every undamaged checkpoint.
        OSError, MemoryError: a file could not be read this time; nothing has been changed.
    """
    checkpoints.clear_unfinished()
    unusable: dict[Path, UserError] = {}
    for path in checkpoints.newest_first():
        try:
            state = load(path)
            if state.get("run_id") != run_id:
                raise CheckpointError(f"{path} belongs to another run, {state.get('run_id')}")
            if missing := (needed | ALWAYS_NEEDED) - state.keys():
                raise CheckpointError(f"{path} is of another version of this program: no {', '.join(sorted(missing))}")
            start = Start(path, state, _records(metrics, state, epoch_record), state["metrics_bytes"])
        except (CheckpointError, RecordError) as error:
            unusable[path] = error
        else:
            _set_aside(unusable, f"goes on from {path.name}")
            return start
    lost_lines = next((error for error in unusable.values() if isinstance(error, RecordError)), None)
    if lost_lines is not None:
        raise UserError(f"{lost_lines}; restore that file, or delete the checkpoints beside it to begin anew")
    _set_aside(unusable, "begins anew")
    if unusable and metrics.exists():
        rename_aside(metrics, "damaged")
    return Start(None, None, [], 0)


def _set_aside(unusable: Mapping[Path, UserError], what_now: str) -> None:
    """Rename unusable checkpoints and print why, so that the user can inspect them."""
    for path, error in unusable.items():
        aside = rename_aside(path, "damaged")
        warn(f"{error}; it is now {aside.name}, and the run {what_now}")


def _records(metrics: Path, state: dict[str, Any], epoch_record: type[AnyRecord]) -> list[Any]:
    """Return the records of the epochs up to the checkpoint."""
    size = metrics.stat().st_size if metrics.exists() else 0
    if size < state["metrics_bytes"]:
        raise RecordError(f"{metrics} has {size} bytes, and had {state['metrics_bytes']} when a checkpoint was written")
    lines = read_lines(metrics, epoch_record, length=state["metrics_bytes"])
    return [record for record in lines if isinstance(record, epoch_record)]
