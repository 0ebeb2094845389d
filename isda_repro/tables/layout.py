"""Renderer-independent layout of a filled table: header, blocks of lines, caption, notes, and missing runs.

A row of the table becomes a block of lines: our value, the paper's value, and their difference; if cells are compared,
also the method minus its baseline, for our values and for the paper's. So a wide table grows in height and still fits
on a page.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Label, Table
from isda_repro.runs.result_index import Record
from isda_repro.tables import formatting
from isda_repro.tables.aggregate import FilledCell, FilledTable
from isda_repro.tables.comparison import Key, baselines, best, comparison, competes
from isda_repro.tables.cost_columns import CostColumn
from isda_repro.tables.formatting import MINUS, describe_metrics, printed_decimals
from isda_repro.tables.missing import Missing, missing_runs


def caption(filled: FilledTable, cost_columns: Sequence[CostColumn], settings: Sequence[str]) -> str:
    """Return the caption.

    Args:
        filled: the table.
        cost_columns: its columns that no run fills.
        settings: settings in which its runs differ from the specification; if there are any, the paper is not
            mentioned.
    """
    table = filled.table
    said = [
        f"{filled.error.capitalize()} in %, {describe_metrics(table)}; mean ± sample standard deviation "
        f"(divisor n {MINUS} 1) over n seeds.",
        f"Bold: {competes(table)}.",
    ]
    if settings:
        said.insert(0, "These runs are not the table's: they stand beside nothing that the paper prints.")
    has_paper = not settings and any(cell.paper is not None for cell in table.cells)
    if has_paper and any(cell.paper is not None and cell.paper.std is not None for cell in table.cells):
        said.append("The paper does not say whether its ± is of a sample; it is taken for that.")
    if any(cell.difference or (has_paper and cell.paper_difference) for cell in filled.cells.values()):
        papers = "; the paper's is Welch's, from its printed mean, deviation and n" if has_paper else ""
        said.append(
            "Differences have their 95% confidence interval: Student's t over the pairs of runs that share a seed, "
            f"Welch's where there are not two{papers}. Better, worse: the interval lies on one side of 0. Open: the "
            "interval contains 0. No interval: of a single run, or of runs that do not vary. Intervals are not "
            "adjusted for the number of comparisons. A negative difference is a lower error."
        )
        said.append(baselines(table))
    return " ".join([*filter(None, said), *(side.caption for side in cost_columns)])


Kind = Literal["ours", "paper", "minus-paper", "difference", "paper-difference"]


@dataclass(frozen=True)
class Entry:
    """One entry of a line: its text, and the unrounded number behind it, if there is one."""

    text: str = ""
    number: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a block, with one entry for each column of the layout."""

    kind: Kind
    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """The lines of one row of the table."""

    row: Label
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Head:
    """A header label above one or more columns."""

    text: str
    span: int = 1


@dataclass(frozen=True)
class Layout:
    """Everything that a renderer needs. Its texts are not yet escaped."""

    title: str
    filled: FilledTable
    plan: Plan
    cost_columns: tuple[CostColumn, ...]  # the cost columns, which ``columns`` has too
    columns: tuple[Label | CostColumn, ...]
    header: tuple[tuple[Head, ...], ...]  # header lines from the top; the last has a label for each column
    blocks: tuple[Block, ...]
    caption: str
    notes: tuple[str, ...]
    settings: tuple[str, ...]  # how its runs differ from the specification; not empty for a reduced table
    extra: tuple[str, ...]  # the same as overrides (``set=``), if the plan was made with them
    sweep: str  # the command that makes all missing runs
    missing: tuple[Missing, ...]
    reduced: tuple[Layout, ...]

    @property
    def is_of_other_runs(self) -> bool:
        """True if the table consists of runs that were found and fit no plan: then no run can be missing."""
        return bool(self.settings) and not self.extra

    @property
    def has_kinds(self) -> bool:
        """True if lines need a label that says what they are. A table of single lines does not."""
        return any(len(block.lines) > 1 for block in self.blocks)


def layout(
    filled: FilledTable, plan: Plan, sweep: str, extra: Sequence[str] = (), cost_columns: Sequence[CostColumn] = ()
) -> Layout:
    """Lay out a table and the tables of its reduced runs.

    Args:
        filled: the table.
        plan: the plan from which it was filled; the settings in it determine the cost of missing runs.
        sweep: the command that makes all missing runs.
        extra: overrides appended to those of every cell (``set=`` on the command line); with them the table is reduced.
        cost_columns: columns that no run fills, from ``cost_columns.cost_columns``.
    """
    reduced = tuple(_laid_out(one.filled, plan, sweep, tuple(one.settings)) for one in filled.reduced)
    return _laid_out(filled, plan, sweep, tuple(extra), tuple(extra), tuple(cost_columns), reduced)


def _laid_out(
    filled: FilledTable,
    plan: Plan,
    sweep: str,
    settings: tuple[str, ...],
    extra: tuple[str, ...] = (),
    cost_columns: tuple[CostColumn, ...] = (),
    reduced: tuple[Layout, ...] = (),
) -> Layout:
    """Lay out one table.

    Rows without runs are left out if ``settings`` come from runs that were found, not planned.
    """
    table, columns = filled.table, _columns(filled.table, cost_columns)
    found_only = bool(settings) and not extra
    rows = [row for row in table.rows if not found_only or _has_runs(filled, row)]
    return Layout(
        title=f"{table.title}, reduced: {'; '.join(extra)}" if extra else table.title,
        filled=filled,
        plan=plan,
        cost_columns=cost_columns,
        columns=columns,
        header=_header(columns, len(table.columns[0])),
        blocks=tuple(_Rows(filled, columns, with_paper=not settings).block(row) for row in rows),
        caption=caption(filled, cost_columns, settings),
        notes=(*trained_on(filled), *_diverged(filled), *(() if settings else table.notes)),
        settings=settings,
        extra=extra,
        sweep=sweep,
        missing=() if found_only else missing_runs(filled, plan, extra),
        reduced=reduced,
    )


def _has_runs(filled: FilledTable, row: Label) -> bool:
    return any(cell.has_run for key, cell in filled.cells.items() if key[0] == row)


# ------------------------------------------------------------------------------------------------------------- columns


def _columns(table: Table, cost_columns: Sequence[CostColumn]) -> tuple[Label | CostColumn, ...]:
    leading, trailing = ([side for side in cost_columns if side.leads is leads] for leads in (True, False))
    return (*leading, *table.columns, *trailing)


def _header(columns: Sequence[Label | CostColumn], levels: int) -> tuple[tuple[Head, ...], ...]:
    """Return a header line for each axis of the columns. Equal adjacent labels are merged, except in the last line."""
    padded = [(*[""] * (levels - 1), column.title) if isinstance(column, CostColumn) else column for column in columns]
    return (*(tuple(_heads(padded, level)) for level in range(levels - 1)), tuple(Head(one[-1]) for one in padded))


def _heads(labels: Sequence[Label], level: int) -> Iterator[Head]:
    for label, group in itertools.groupby(labels, lambda one: one[: level + 1]):
        yield Head(label[level], len(list(group)))


# -------------------------------------------------------------------------------------------------------------- blocks


class _Rows:
    """Builder of a table's blocks."""

    def __init__(self, filled: FilledTable, columns: Sequence[Label | CostColumn], with_paper: bool) -> None:
        self.filled, self.table, self.columns = filled, filled.table, columns
        papers = [cell.paper for cell in self.table.cells if cell.paper is not None] if with_paper else []
        self.decimals, self.has_paper = printed_decimals(papers), bool(papers)
        ours = {key: cell.mean for key, cell in filled.cells.items() if cell.mean is not None}
        printed = {(cell.row, cell.column): cell.paper.mean for cell in self.table.cells if cell.paper is not None}
        self.bold, self.bold_papers = best(self.table, ours), best(self.table, printed)

    def block(self, row: Label) -> Block:
        """Return the block of a row. Our line is always there; the other lines only if they have an entry."""
        lines = [self._line("ours", "ours" if self.has_paper else "error", row, self._ours)]
        if self.has_paper:
            lines.append(self._line("paper", "paper", row, self._paper))
            lines.append(self._line("minus-paper", f"ours {MINUS} paper", row, self._minus_paper))
        compared = comparison(self.table, row)
        lines.append(self._line("difference", compared, row, self._difference))
        if self.has_paper:
            lines.append(self._line("paper-difference", f"{compared}, paper", row, self._paper_difference))
        return Block(row, (lines[0], *(line for line in lines[1:] if any(entry.text for entry in line.entries))))

    def _line(self, kind: Kind, label: str, row: Label, entry: Callable[[Key, FilledCell | None], Entry]) -> Line:
        entries = [
            _beside(column, row, kind)
            if isinstance(column, CostColumn)
            else entry((row, column), self.filled.cells.get((row, column)))
            for column in self.columns
        ]
        return Line(kind, label, tuple(entries))

    def _ours(self, key: Key, cell: FilledCell | None) -> Entry:
        mean = cell.summary.mean if cell is not None and cell.summary is not None else None
        return Entry(formatting.format_value(cell), mean, key in self.bold)

    def _paper(self, key: Key, cell: FilledCell | None) -> Entry:
        if cell is None or cell.cell.paper is None:
            return Entry()
        return Entry(
            formatting.format_paper_value(cell.cell.paper, self.decimals), cell.cell.paper.mean, key in self.bold_papers
        )

    def _minus_paper(self, key: Key, cell: FilledCell | None) -> Entry:
        if cell is None or cell.cell.paper is None or cell.mean is None:
            return Entry()
        minus = cell.mean - cell.cell.paper.mean
        return Entry(formatting.format_number(minus, sign=True), minus)

    def _difference(self, key: Key, cell: FilledCell | None) -> Entry:
        if cell is None or cell.difference is None or cell.summary is None:
            return Entry()
        other = self.table.baseline_of(*key)
        baseline = self.filled.cells[other].summary if other is not None else None
        runs = max(cell.summary.n, baseline.n) if baseline is not None else None
        return Entry(formatting.format_difference(cell.difference, runs), cell.difference.mean)

    def _paper_difference(self, key: Key, cell: FilledCell | None) -> Entry:
        if cell is None or cell.paper_difference is None:
            return Entry()
        return Entry(formatting.format_difference(cell.paper_difference), cell.paper_difference.mean)


def _beside(side: CostColumn, row: Label, kind: Kind) -> Entry:
    if kind == "ours" and row in side.ours:
        return Entry(side.our_text(row), side.ours[row])
    if kind == "paper" and row in side.papers:
        return Entry(side.papers_text(row), side.papers[row])
    return Entry()


# --------------------------------------------------------------------------------------------------------------- notes


def trained_on(filled: FilledTable) -> tuple[str, ...]:
    """Return a note on the runs' hardware and precision, and one for each difference between runs of unequal ones."""
    records = [record for cell in filled.cells.values() for record in cell.records.values()]
    return (f"Trained on {_said(records)}.", *_unequal(filled)) if records else ()


def _diverged(filled: FilledTable) -> Iterator[str]:
    """Yield a note on the runs that diverged, if there are any."""
    runs = [
        f"{cell.cell.name}, seed {seed} (in epoch {one.run.epoch})"
        for cell in filled.cells.values()
        for seed, one in sorted(cell.diverged.items())
    ]
    if runs:
        yield f"Diverged: {'; '.join(runs)}. No mean has them; a mean that lacks them is not compared."


def _unequal(filled: FilledTable) -> Iterator[str]:
    for cell in filled.cells.values():
        where = filled.table.baseline_of(cell.cell.row, cell.cell.column)
        if cell.difference is None or where is None:
            continue
        ours, theirs = (list(one.records.values()) for one in (cell, filled.cells[where]))
        if {record.trained_on for record in ours} != {record.trained_on for record in theirs}:
            yield (
                f"{cell.cell.name} was trained on {_said(ours)}, and its baseline on {_said(theirs)}: their difference "
                "includes that of hardware or precision."
            )


def _said(records: Iterable[Record]) -> str:
    numbers = Counter(", then ".join(record.trained_on) for record in records)
    return "; ".join(f"{way} ({number} {'run' if number == 1 else 'runs'})" for way, number in sorted(numbers.items()))
