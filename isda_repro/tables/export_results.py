"""Export of finished runs to ``results/``, which is committed: one small file per run, under each of its cells.

The file is the run's ``result.json`` with all of its numbers; hardware, versions and git revision are in it. Of a run
that diverged it is its ``diverged.json``. A file that is already there is replaced only on request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Cell, Table
from isda_repro.runs.diverged import DivergedRun, read_outcome
from isda_repro.runs.records import RecordError, Result, write_result
from isda_repro.runs.result_index import Ended, ResultIndex


@dataclass
class Exported:
    """Outcome of an export."""

    taken: list[tuple[str, Path]] = field(default_factory=list)  # (origin, file written)
    same: list[Path] = field(default_factory=list)  # files that had the same result already
    passed_over: list[str] = field(default_factory=list)  # one sentence for each result that was not written
    known: set[str] = field(default_factory=set)  # ids of the runs that belong to a cell
    unclean: list[str] = field(default_factory=list)  # one sentence for each written one whose code no revision has


def export_results(
    plans: Iterable[tuple[Table, Plan]], index: ResultIndex, results_dir: Path, overwrite: bool = False
) -> Exported:
    """Write the results of the tables' runs to ``results_dir/<table>/<cell>/<seed>.json``.

    Args:
        plans: the tables and their runs.
        index: the results on offer.
        results_dir: folder of stored results.
        overwrite: replace files that are there and differ; otherwise they stay, and are reported as passed over.
    """
    kept = Exported(passed_over=list(index.problems))
    done: set[Path] = set()
    for table, plan in plans:
        for cell, runs in plan.items():
            for run in runs:
                target = results_dir / table.name / cell.slug / f"{run.seed}.json"
                record = index.ended.get(run.run_id)
                if record is not None and target not in done:
                    done.add(target)
                    kept.known.add(run.run_id)
                    _keep_one(kept, cell, record, target, overwrite)
    return kept


def _keep_one(kept: Exported, cell: Cell, record: Ended, target: Path, overwrite: bool) -> None:
    """Write one result to ``target``, unless its precision is refused or another file is there; record the outcome."""
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
        if code := _unclean(result):
            kept.unclean.append(f"warning: {target} was trained by {code}: others cannot check out that code")


def _difference(path: Path, result: Result | DivergedRun) -> str | None:
    """Return how the existing file differs from this result: "" if it is the same, None if there is no file."""
    if not path.exists():
        return None
    try:
        there = read_outcome(path)
    except RecordError as error:
        return f"is there already, and damaged ({str(error).removeprefix(f'{path}: ')})"
    if there.run_id != result.run_id:
        return f"is there already, with {there.run_id}"
    return "" if there == result else "is there already, and differs for the same run"


def _unclean(result: Result | DivergedRun) -> str | None:
    """Return what is wrong with the code of a run, if a stretch of it was trained by code that no revision has."""
    for segment in result.segments:
        if not segment.get("git_revision"):
            return "code of unknown revision"
        if not segment.get("git_clean"):
            return f"code that was changed after revision {str(segment['git_revision'])[:10]}"
    return None


def runs_of_no_cell(kept: Exported, index: ResultIndex, of: str) -> list[str]:
    """Return one sentence for each offered result that is no run of the tables, which ``of`` names."""
    return [
        f"passed over: {record.origin}: {record.run_id} is no run of {of}"
        for record in index.ended.values()
        if record.run_id not in kept.known
    ]
