"""Where a run starts from: the one rule, in order.

1. A run with a result is finished, and not started at all (``run.py`` asks first).
2. The newest checkpoint that is whole, belongs to this run, and whose lines of ``metrics.jsonl`` are all there.
3. The beginning.

What is newer than the checkpoint, in ``metrics.jsonl`` or damaged beside it, is of steps that will be taken again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from isda_repro.tables.records import EpochRecord, RecordError, read_metrics
from isda_repro.training.checkpoint import CheckpointError, Checkpoints, load


class Start(NamedTuple):
    """The state to go on from, None at the beginning; the epochs done, and the bytes of ``metrics.jsonl`` to keep."""

    state: dict[str, Any] | None
    records: list[EpochRecord]
    metrics_bytes: int


def find_start(checkpoints: Checkpoints, metrics: Path, run_id: str) -> Start:
    """Apply the rule. A checkpoint that cannot be used is one warning, and set aside.

    Raises:
        OSError, MemoryError: something could not be read now; nothing has been touched.
    """
    checkpoints.clear_unfinished()
    for path in checkpoints.newest_first():
        try:
            state = load(path)
            if state.get("run_id") != run_id:
                raise CheckpointError(f"{path} belongs to another run, {state.get('run_id')}")
            return Start(state, _records(metrics, state), state["metrics_bytes"])
        except (CheckpointError, RecordError, FileNotFoundError) as error:
            print(f"warning: {error}; trying the one before it", file=sys.stderr)
            checkpoints.set_aside(path)
    return Start(None, [], 0)


def _records(metrics: Path, state: dict[str, Any]) -> list[EpochRecord]:
    """The epochs up to the checkpoint."""
    size = metrics.stat().st_size
    if size < state["metrics_bytes"]:
        raise RecordError(f"{metrics} has {size} bytes, and had {state['metrics_bytes']} when a checkpoint was written")
    lines = read_metrics(metrics, length=state["metrics_bytes"])
    return [record for record in lines if isinstance(record, EpochRecord)]
