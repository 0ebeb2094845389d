"""Where a run starts from: the one rule, in order.

1. A run with a result is finished, and not started at all (``session.earlier_result`` asks first).
2. The newest checkpoint that is whole, belongs to this run, and whose lines of ``metrics.jsonl`` are all there.
3. The beginning.

What is newer than the checkpoint, in ``metrics.jsonl`` or damaged beside it, is of steps that will be taken again.
Weights that are whole are not thrown away because lines of ``metrics.jsonl`` are lost: then the user decides.
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
    """What is kept of the data beside weights."""
    return {
        "classes": list(source.class_names),
        "train_images": len(source.train),
        "test_images": len(source.test),
    }


def check_classes(state: Mapping[str, Any], source: Source, path: Path) -> None:
    """Whether the data has the classes of the weights in ``path``; older files do not say.

    Raises:
        DataError: it has others.
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
    """As ``check_classes``, and whether there are as many images: else the steps of an epoch are others.

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
    """The state to go on from and its file, None at the beginning; the epochs done; the bytes of metrics to keep."""

    path: Path | None
    state: dict[str, Any] | None
    records: list[Any]
    metrics_bytes: int


def find_start(
    checkpoints: Checkpoints, metrics: Path, run_id: str, needed: Set[str], epoch_record: type[AnyRecord]
) -> Start:
    """Apply the rule. A checkpoint that cannot be used is one warning, and set aside.

    Args:
        checkpoints: of the run.
        metrics: its ``metrics.jsonl``.
        run_id: its name.
        needed: what a state of its kind has.
        epoch_record: which of the lines of ``metrics`` are of epochs.

    Raises:
        UserError: a checkpoint is whole, but ``metrics.jsonl`` is not, and no older one needs less of it.
        OSError, MemoryError: something could not be read now; nothing has been touched.
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
    """Say why, and keep them out of the way for whoever wants to look at them."""
    for path, error in unusable.items():
        aside = rename_aside(path, "damaged")
        warn(f"{error}; it is now {aside.name}, and the run {what_now}")


def _records(metrics: Path, state: dict[str, Any], epoch_record: type[AnyRecord]) -> list[Any]:
    """The epochs up to the checkpoint."""
    size = metrics.stat().st_size if metrics.exists() else 0
    if size < state["metrics_bytes"]:
        raise RecordError(f"{metrics} has {size} bytes, and had {state['metrics_bytes']} when a checkpoint was written")
    lines = read_lines(metrics, epoch_record, length=state["metrics_bytes"])
    return [record for record in lines if isinstance(record, epoch_record)]
