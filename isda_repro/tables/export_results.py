"""Finished runs -> ``results/``, which is committed: one small file for each, under the cells that it belongs to.

The file is the run's ``result.json``, with every number as it was: hardware, versions and git revision are in it. What
is kept already is never replaced unasked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Cell, Table
from isda_repro.runs.records import RecordError, Result, read_result, write_result
from isda_repro.runs.result_index import Record, ResultIndex


@dataclass
class Exported:
    """What has become of the results that were offered."""

    taken: list[tuple[str, Path]] = field(default_factory=list)  # from where, as which file
    same: list[Path] = field(default_factory=list)  # kept already, as they are
    passed_over: list[str] = field(default_factory=list)  # one sentence each
    known: set[str] = field(default_factory=set)  # the runs that belong to a cell


def export_results(
    plans: Iterable[tuple[Table, Plan]], index: ResultIndex, results_dir: Path, overwrite: bool = False
) -> Exported:
    """Write those that are runs of the tables to ``results_dir/<table>/<cell>/<seed>.json``.

    Args:
        plans: the tables and their runs.
        index: what is offered.
        results_dir: where results are kept.
        overwrite: replace files that are there and differ; otherwise they stay, and are named.
    """
    kept = Exported(passed_over=list(index.problems))
    done: set[Path] = set()
    for table, plan in plans:
        for cell, runs in plan.items():
            for run in runs:
                target = results_dir / table.name / cell.slug / f"{run.seed}.json"
                record = index.records.get(run.run_id)
                if record is not None and target not in done:
                    done.add(target)
                    kept.known.add(run.run_id)
                    _keep_one(kept, cell, record, target, overwrite)
    return kept


def _keep_one(kept: Exported, cell: Cell, record: Record, target: Path, overwrite: bool) -> None:
    if refused := [name for name in record.precisions if name not in cell.precisions]:
        kept.passed_over.append(f"passed over: {record.origin}: {refused[0]}, which {cell.name} does not accept")
        return
    try:
        result = record.read()
    except RecordError as error:
        kept.passed_over.append(f"passed over: {error}")
        return
    differs = _difference(target, result)
    if differs == "":
        kept.same.append(target)
    elif differs is not None and not overwrite:
        kept.passed_over.append(f"passed over: {record.origin}: {target} {differs}; overwrite=true replaces it")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_result(target, result)
        kept.taken.append((record.origin, target))


def _difference(path: Path, result: Result) -> str | None:
    """What the file there has instead of this result; "" if it has the same, None if there is no file."""
    if not path.exists():
        return None
    try:
        there = read_result(path)
    except RecordError as error:
        return f"is there already, and damaged ({str(error).removeprefix(f'{path}: ')})"
    if there.run_id != result.run_id:
        return f"is there already, with {there.run_id}"
    return "" if there == result else "is there already, with another result of the same run"


def runs_of_no_cell(kept: Exported, index: ResultIndex, of: str) -> list[str]:
    """One sentence for each result that was offered and is no run of the tables, which ``of`` names."""
    return [
        f"passed over: {record.origin}: {record.run_id} is no run of {of}"
        for record in index.records.values()
        if record.run_id not in kept.known
    ]
