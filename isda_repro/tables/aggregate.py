"""Aggregation of finished runs into the cells of a table.

A run enters a cell only by its run id, which is a hash of its settings, and only if all its segments were trained in
precisions that the cell accepts. Runs that differ from a cell in known ways fill separate tables beside it, see
``Reduced`` and ``off_spec_runs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from isda_repro.experiments.plan import Plan, evaluated_on
from isda_repro.experiments.table import Cell, Label, Table
from isda_repro.runs.records import Result
from isda_repro.runs.result_index import Ended, Record, ResultIndex
from isda_repro.runs.sources import FoundDiverged
from isda_repro.tables.intervals import Difference, Summary, difference, summarise, welch
from isda_repro.tables.off_spec_runs import off_spec_runs

Runs = Mapping[Cell, Mapping[int, Ended]]


@dataclass(frozen=True)
class FilledCell:
    """A cell with the values of its finished runs; ``values`` is empty if no run has finished."""

    cell: Cell
    values: dict[int, float] = field(default_factory=dict)  # seed -> value of the cell's metric
    records: dict[int, Record] = field(default_factory=dict)  # seed -> record
    diverged: dict[int, FoundDiverged] = field(default_factory=dict)  # seed -> a run that has no result for this reason
    summary: Summary | None = None
    difference: Difference | None = None  # from the baseline, if both cells have a mean that can be compared
    paper_difference: Difference | None = None  # the same from the paper's values, if it has both

    @property
    def missing(self) -> tuple[int, ...]:
        """Seeds that have not been run to their end."""
        return tuple(seed for seed in self.cell.seeds if seed not in self.values and seed not in self.diverged)

    @property
    def has_run(self) -> bool:
        """True if one of its runs has a value or diverged."""
        return bool(self.values or self.diverged)

    @property
    def mean(self) -> float | None:
        """Mean that can be compared with those of other cells: None without a value, and if a run has diverged."""
        return None if self.summary is None or self.diverged else self.summary.mean

    def results(self) -> dict[int, Result]:
        """Read the whole results again, by seed: for curves, and for all that is known of each run.

        Raises:
            RecordError: a file has changed or disappeared since it was indexed.
        """
        return {seed: record.read() for seed, record in self.records.items()}


ERRORS = {
    "test": "test error",
    "holdout": "error on held-out images",
    "holdout and test": "error on held-out or test images",
}
"""Name of the error that is measured on each kind of images."""


@dataclass(frozen=True)
class FilledTable:
    """A table filled with the results that exist. All renderers and figures start from it."""

    table: Table
    cells: dict[tuple[Label, Label], FilledCell]
    evaluated_on: str  # test | holdout | holdout and test
    problems: tuple[str, ...]  # one sentence for each result that was passed over
    reduced: tuple[Reduced, ...] = ()
    is_reduced: bool = False  # its runs differ from the specification, so that the paper's values do not belong to them

    @property
    def error(self) -> str:
        """Name of what its numbers are."""
        return ERRORS[self.evaluated_on]

    @property
    def has_runs(self) -> bool:
        """True if a run has a value or diverged."""
        return any(filled.has_run for filled in self.cells.values())

    @property
    def has_values(self) -> bool:
        """True if there is a result that has the metric of its cell."""
        return any(filled.values for filled in self.cells.values())


@dataclass(frozen=True)
class Reduced:
    """A separate table of runs that differ from a table's cells only in the named settings.

    It has only cells with such runs.
    """

    settings: tuple[str, ...]  # "recipe.epochs=12 instead of 160", "bf16, which the cells do not accept"
    filled: FilledTable


def aggregate(table: Table, plan: Plan, index: ResultIndex, reduced: bool = False) -> FilledTable:
    """Fill a table with the results of its runs.

    Args:
        table: the specification from which ``plan`` was expanded.
        plan: the table's cells and their runs.
        index: all available results, of whatever tables.
        reduced: True if the plan's settings are not the table's own (``set=``). Then results stored for the table are
            expected not to fit, so they are not reported, and no separate tables are added.
    """
    entered = {cell: {run.seed: index.ended[run.run_id] for run in runs if run.run_id in index.ended}
               for cell, runs in plan.items()}  # fmt: skip
    accepted = {
        cell: {seed: record for seed, record in records.items() if set(record.precisions) <= set(cell.precisions)}
        for cell, records in entered.items()
    }
    planned = evaluated_on(plan)
    filled = _filled(table, accepted, planned)
    if reduced:
        return replace(filled, problems=(*index.problems, *filled.problems), is_reduced=True)
    groups = off_spec_runs(plan, index, table.name)
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
        beside.append(Reduced(group.settings, _filled(part, runs, planned)))
    problems = [*index.problems, *strangers, *filled.problems]
    problems += [problem for one in beside if not one.filled.has_runs for problem in one.filled.problems]
    return replace(filled, problems=tuple(problems), reduced=tuple(one for one in beside if one.filled.has_runs))


def _records(runs: Runs) -> list[Ended]:
    return [record for by_seed in runs.values() for record in by_seed.values()]


def _filled(table: Table, runs: Runs, planned: str) -> FilledTable:
    """Fill the table with these runs. Its problems are the runs that lack the metric of their cell.

    ``planned`` is what ``evaluated_on`` is without any run.
    """
    cells, problems = {}, []
    for cell, ended in runs.items():
        diverged = {seed: one for seed, one in ended.items() if isinstance(one, FoundDiverged)}
        records = {seed: one for seed, one in ended.items() if isinstance(one, Record)}
        values = {seed: value for seed, record in records.items() if (value := record.numbers[cell.metric]) is not None}
        for seed in records.keys() - values.keys():
            problems.append(f"passed over: {records[seed].origin}: it has no {cell.metric}, which {cell.name} shows")
        kept = {seed: records[seed] for seed in values}
        summary = summarise(values.values()) if values else None
        cells[cell.row, cell.column] = FilledCell(cell, values, kept, diverged, summary)
    compared = {key: _compared(table, filled, cells) for key, filled in cells.items()}
    measured = sorted({record.evaluated_on for filled in cells.values() for record in filled.records.values()})
    return FilledTable(table, compared, " and ".join(measured) or planned, tuple(problems))


def _compared(table: Table, filled: FilledCell, cells: Mapping[tuple[Label, Label], FilledCell]) -> FilledCell:
    """Return a filled cell with its differences from the baseline added, if it has one."""
    where = table.baseline_of(filled.cell.row, filled.cell.column)
    baseline = None if where is None else cells.get(where)
    if baseline is None:
        return filled
    ours, theirs = filled.cell.paper, baseline.cell.paper
    return replace(
        filled,
        difference=None if filled.mean is None or baseline.mean is None else difference(filled.values, baseline.values),
        paper_difference=welch(ours.mean, ours.std, ours.n, theirs.mean, theirs.std, theirs.n)
        if ours is not None and theirs is not None
        else None,
    )
