"""Finished runs -> the values of each cell, from ``runs/`` and from the committed ``results/``.

A record enters a cell only by its run id, which is a hash of its settings: a run with one other setting stays out.
Only numbers are kept, so that thousands of runs fit; whoever wants a curve reads the file again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from isda_repro.config import run_id
from isda_repro.errors import UserError
from isda_repro.tables.plan import Plan, Run
from isda_repro.tables.records import RecordError, Result, read_result, write_result
from isda_repro.tables.specification import Cell, Label, Table, table_names
from isda_repro.tables.statistics import Difference, Summary, difference, summarise, welch


@dataclass(frozen=True)
class FilledCell:
    """A cell with what its finished runs gave; empty if none has finished."""

    cell: Cell
    values: dict[int, float] = field(default_factory=dict)  # by seed, as are the files
    files: dict[int, Path] = field(default_factory=dict)
    summary: Summary | None = None
    difference: Difference | None = None  # to the baseline, where both have values
    paper_difference: Difference | None = None  # of the paper's values, where it has both

    @property
    def missing(self) -> tuple[int, ...]:
        """The seeds that have not finished."""
        return tuple(seed for seed in self.cell.seeds if seed not in self.values)


@dataclass(frozen=True)
class FilledTable:
    """A table with what is there: every renderer and figure starts from this."""

    table: Table
    cells: dict[tuple[Label, Label], FilledCell]
    evaluated_on: str  # test | holdout
    problems: tuple[str, ...]  # files passed over, one sentence each
    reduced: tuple[Reduced, ...] = ()


@dataclass(frozen=True)
class Reduced:
    """Runs that are a cell's but for the settings named: a table of their own, of those cells alone."""

    settings: tuple[str, ...]  # "recipe.epochs=12 instead of 160", "bf16, which the cells do not accept"
    filled: FilledTable


def read_value(path: Path, metric: str) -> tuple[Result, float]:
    """A result and the number that enters the table.

    Raises:
        RecordError: damaged, not finite, or its settings are not those that its run id stands for.
    """
    try:
        result = read_result(path)
        value = getattr(result, metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RecordError(f"{path}: its {metric} is {value!r}")
        if any(len(result.curves[name]) != result.epochs for name in ("test_error", "lr")):
            raise RecordError(f"{path}: its curves have not {result.epochs} entries, one for each epoch")
        identity = run_id({**result.request, "choice": result.choices})
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not as a result must be ({type(error).__name__}: {error})") from error
    if identity != result.run_id:
        raise RecordError(f"{path}: its settings, or this code's numerics, are not those of {result.run_id}")
    return result, float(value)


def aggregate(table: Table, plan: Plan, runs_dir: Path, results_dir: Path, reduced: bool = False) -> FilledTable:
    """Fill the table. Where a run is in both places, the one in ``runs_dir`` counts.

    Args:
        table: the specification that ``plan`` was expanded from.
        plan: its cells and their runs.
        runs_dir: where runs are made: ``<run_id>/result.json``.
        results_dir: where they are kept: ``<table>/<cell>/<seed>.json``, of any table that shares the run.
        reduced: the plan has settings other than the table's own, so kept results of the table are no surprise.
    """
    wanted = {run.run_id for runs in plan.values() for run in runs}
    problems: list[str] = []
    found: dict[str, tuple[Path, float]] = {}
    measured: set[str] = set()
    for path, must_be, own in _candidates(table, sorted(wanted), runs_dir, results_dir):
        try:
            result, value = read_value(path, table.metric)
            fits = result.run_id in wanted and must_be in (None, result.run_id)
            if not fits and not reduced:
                raise RecordError(f"{path}: {result.run_id} is no run of this table as it is specified now")
        except RecordError as error:
            if own:  # another table's files are named with that table
                problems.append(f"passed over: {error}")
            continue
        if fits and result.run_id not in found:
            found[result.run_id] = (path, value)
            measured.add(result.evaluated_on)
    cells = {(cell.row, cell.column): _filled(cell, runs, found) for cell, runs in plan.items()}
    compared = {key: _compared(table, filled, cells) for key, filled in cells.items()}
    return FilledTable(table, compared, " and ".join(sorted(measured)) or "test", tuple(problems))


def _candidates(
    table: Table, wanted: list[str], runs_dir: Path, results_dir: Path
) -> Iterator[tuple[Path, str | None, bool]]:
    """Files that may hold a wanted run; the run that must be in them, if known; whether they are this table's own."""
    for name in wanted:
        path = runs_dir / name / "result.json"
        if path.exists():
            yield path, name, True
    for other in sorted({table.name, *table_names()}):
        for path in sorted((results_dir / other).glob("*/*.json")):
            yield path, None, other == table.name


def _filled(cell: Cell, runs: tuple[Run, ...], found: dict[str, tuple[Path, float]]) -> FilledCell:
    finished = [run for run in runs if run.run_id in found]
    values = {run.seed: found[run.run_id][1] for run in finished}
    files = {run.seed: found[run.run_id][0] for run in finished}
    return FilledCell(cell, values, files, summarise(values.values()) if values else None)


def _compared(table: Table, filled: FilledCell, cells: dict[tuple[Label, Label], FilledCell]) -> FilledCell:
    column = table.baseline_column(filled.cell.column)
    baseline = cells.get((filled.cell.row, column)) if column is not None else None
    if baseline is None:
        return filled
    ours, theirs = filled.cell.paper, baseline.cell.paper
    return replace(
        filled,
        difference=difference(filled.values, baseline.values) if filled.values and baseline.values else None,
        paper_difference=welch(ours.mean, ours.std, ours.n, theirs.mean, theirs.std, theirs.n)
        if ours is not None and theirs is not None
        else None,
    )


# ------------------------------------------------------------------------------------------------------------ keeping


def export(table: Table, plan: Plan, runs_dir: Path, results_dir: Path) -> tuple[list[Path], list[str]]:
    """Keep finished runs: copy each ``result.json`` to ``results_dir/<table>/<cell>/<seed>.json``.

    Returns:
        The files written, those with the same content left out, and one sentence for each file passed over.
    """
    written: list[Path] = []
    problems: list[str] = []
    for cell, runs in plan.items():
        for run in runs:
            source = runs_dir / run.run_id / "result.json"
            target = results_dir / table.name / cell.slug / f"{run.seed}.json"
            if not source.exists():
                continue
            try:
                result, _ = read_value(source, table.metric)
                if result.run_id != run.run_id:
                    raise RecordError(f"{source}: it is the result of {result.run_id}")
            except RecordError as error:
                problems.append(f"passed over: {error}")
                continue
            if not _holds(target, result):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_result(target, result)
                written.append(target)
    if not written and not any((runs_dir / run.run_id).exists() for runs in plan.values() for run in runs):
        raise UserError(f"{runs_dir} holds no run of table={table.name}: python scripts/sweep.py table={table.name}")
    return written, problems


def _holds(path: Path, result: Result) -> bool:
    try:
        return read_result(path) == result
    except (RecordError, KeyError, TypeError):
        return False
