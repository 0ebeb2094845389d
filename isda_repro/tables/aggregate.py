"""Finished runs -> the values of each cell.

A run enters a cell only by its id, which is a hash of its settings, and only if all of it was trained in precisions
that the cell accepts. Those that differ in known ways are in tables of their own beside it (``reduced``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Cell, Label, Table
from isda_repro.runs.records import Result
from isda_repro.runs.result_index import Record, ResultIndex
from isda_repro.tables.intervals import Difference, Summary, difference, summarise, welch
from isda_repro.tables.off_spec_runs import off_spec_runs

Runs = Mapping[Cell, Mapping[int, Record]]


@dataclass(frozen=True)
class FilledCell:
    """A cell with what its finished runs gave; empty if none has finished."""

    cell: Cell
    values: dict[int, float] = field(default_factory=dict)  # by seed, as are the records
    records: dict[int, Record] = field(default_factory=dict)
    summary: Summary | None = None
    difference: Difference | None = None  # to the baseline, where both have values
    paper_difference: Difference | None = None  # of the paper's values, where it has both

    @property
    def missing(self) -> tuple[int, ...]:
        """The seeds that have not finished."""
        return tuple(seed for seed in self.cell.seeds if seed not in self.values)

    @property
    def origins(self) -> dict[int, str]:
        """By seed, where each value is from, for people."""
        return {seed: record.origin for seed, record in self.records.items()}

    @property
    def files(self) -> dict[int, Path]:
        """By seed, the files of those that are on disk."""
        return {seed: Path(record.path) for seed, record in self.records.items() if record.path is not None}

    def results(self) -> dict[int, Result]:
        """By seed, the whole results, read again: for curves, and all that is known of each run.

        Raises:
            RecordError: a file has changed or gone since it was index.
        """
        return {seed: record.read() for seed, record in self.records.items()}


@dataclass(frozen=True)
class FilledTable:
    """A table with what is there: every renderer and figure starts from this."""

    table: Table
    cells: dict[tuple[Label, Label], FilledCell]
    evaluated_on: str  # test | holdout
    problems: tuple[str, ...]  # results passed over, one sentence each
    reduced: tuple[Reduced, ...] = ()


@dataclass(frozen=True)
class Reduced:
    """Runs that are a cell's but for the settings named: a table of their own, of those cells alone."""

    settings: tuple[str, ...]  # "recipe.epochs=12 instead of 160", "bf16, which the cells do not accept"
    filled: FilledTable


def aggregate(table: Table, plan: Plan, index: ResultIndex, reduced: bool = False) -> FilledTable:
    """Fill the table.

    Args:
        table: the specification that ``plan`` was expanded from.
        plan: its cells and their runs.
        index: the results that there are, of whatever tables.
        reduced: the plan has settings other than the table's own, so that what is kept for the table is no surprise,
            and nothing is shown beside it.
    """
    entered = {cell: {run.seed: index.records[run.run_id] for run in runs if run.run_id in index.records}
               for cell, runs in plan.items()}  # fmt: skip
    accepted = {
        cell: {seed: record for seed, record in records.items() if set(record.precisions) <= set(cell.precisions)}
        for cell, records in entered.items()
    }
    filled = _filled(table, accepted)
    if reduced:
        return replace(filled, problems=(*index.problems, *filled.problems))
    groups = off_spec_runs(plan, index)
    shown = {record.run_id for runs in (accepted, *(group.runs for group in groups)) for record in _records(runs)}
    strangers = [
        f"passed over: {origin}: {run_id} is no run of this table as it is specified now"
        for run_id, origin in index.kept.get(table.name, ())
        if run_id not in shown
    ]
    beside = []
    for group in groups:
        part = group.table(table)
        runs = dict(zip(part.cells, group.runs.values(), strict=True))
        beside.append(Reduced(group.settings, _filled(part, runs)))
    return replace(filled, problems=(*index.problems, *strangers, *filled.problems), reduced=tuple(beside))


def _records(runs: Runs) -> list[Record]:
    return [record for by_seed in runs.values() for record in by_seed.values()]


def _filled(table: Table, runs: Runs) -> FilledTable:
    """The table with these runs, and the problems that only its metrics have with them."""
    cells, problems = {}, []
    for cell, records in runs.items():
        values = {seed: value for seed, record in records.items() if (value := record.numbers[cell.metric]) is not None}
        for seed in records.keys() - values.keys():
            problems.append(f"passed over: {records[seed].origin}: it has no {cell.metric}, which {cell.name} shows")
        kept = {seed: records[seed] for seed in values}
        cells[cell.row, cell.column] = FilledCell(cell, values, kept, summarise(values.values()) if values else None)
    compared = {key: _compared(table, filled, cells) for key, filled in cells.items()}
    measured = sorted({record.evaluated_on for filled in cells.values() for record in filled.records.values()})
    return FilledTable(table, compared, " and ".join(measured) or "test", tuple(problems))


def _compared(table: Table, filled: FilledCell, cells: Mapping[tuple[Label, Label], FilledCell]) -> FilledCell:
    where = table.baseline_of(filled.cell.row, filled.cell.column)
    baseline = None if where is None else cells.get(where)
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
