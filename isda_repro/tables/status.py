"""How far a table's runs are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from isda_repro.tables.plan import Compose, Run
from isda_repro.tables.records import EpochRecord, RecordError, read_metrics
from isda_repro.tables.sweep import SweepOptions, has_result, planned


def status(options: SweepOptions, compose: Compose) -> Iterator[str]:
    """One line for the table, then one for each cell."""
    table, plan = planned(options, compose)
    runs_dir = Path(options.runs_dir)
    names = {run.run_id for runs in plan.values() for run in runs}
    done = sum(has_result(runs_dir / name) for name in names)
    yield f"table={table.name}: {done} of {len(names)} runs done"
    width = max(len(cell.name) for cell in plan)
    for cell, runs in plan.items():
        yield f"  {cell.name:<{width}}  {_cell_status(runs, runs_dir)}"


def _cell_status(runs: tuple[Run, ...], runs_dir: Path) -> str:
    open_runs = [run for run in runs if not has_result(runs_dir / run.run_id)]
    done = len(runs) - len(open_runs)
    begun = [f"seed {run.seed}: {state}" for run in open_runs if (state := _progress(runs_dir / run.run_id, run))]
    if not begun and not done:
        return "not started"
    return "; ".join([f"done {done} of {len(runs)}", *begun])


def _progress(folder: Path, run: Run) -> str | None:
    """How far an unfinished run came; a line torn by a crash hides none of those before it."""
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
    return f"epoch {last.epoch} of {run.settings['recipe']['epochs']}, test error {last.test_error:.2f}"
