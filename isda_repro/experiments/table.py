"""Tables and their cells, as specified in ``conf/table/``.

A table's file describes its figure of error curves like this::

    figure:
      lines: rows          # one panel per column with a line for each row; columns (default): the other way round
      detail: 1            # enlarge the epochs after the last drop of the learning rate; 2: after the last but one
      bold: "ISDA*"        # draw lines that match this pattern (fnmatch) heavier and above the rest
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field, fields
from typing import Any

from isda_repro.errors import UserError
from isda_repro.experiments.paper_values import PaperValue


@dataclass(frozen=True)
class PlotSpec:
    """Layout of a table's figure: error curves, or, with ``across``, errors against a setting.

    Without ``detail`` error curves are drawn on a logarithmic axis.
    """

    lines: str = "columns"
    detail: int = 0
    bold: str | None = None
    across: str | None = None  # name of the setting whose values are the last labels of the columns


def parse_plot(node: Any) -> PlotSpec:
    """Parse a table's ``figure:``; None gives the defaults.

    Raises:
        UserError: a key is unknown or a value is invalid.
    """
    keys = [field.name for field in fields(PlotSpec)]
    if node is None:
        return PlotSpec()
    if not isinstance(node, dict) or set(node) - set(keys):
        raise UserError(f"figure: {node} must be a mapping with some of: {', '.join(keys)}")
    found = PlotSpec(**node)
    if found.lines not in ("columns", "rows"):
        raise UserError(f"figure: lines: {found.lines} must be columns or rows")
    if type(found.detail) is not int or found.detail < 0:
        raise UserError(f"figure: detail: {found.detail} must be a number of drops of the learning rate")
    if found.bold is not None and not isinstance(found.bold, str):
        raise UserError(f"figure: bold: {found.bold} must be a pattern of labels")
    if found.across is not None and (not isinstance(found.across, str) or found != PlotSpec(across=found.across)):
        raise UserError(f"figure: across: {found.across} must be the name of a setting, and stand alone")
    return found


PRECISIONS = ("fp32", "bf16")
"""Precisions in which a segment of a run can have been trained."""

Label = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the overrides that produce its runs, its seeds, and the paper's value.

    Two cells that show two metrics of the same runs have the same ``slug``.
    """

    row: Label
    column: Label
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    paper: PaperValue | None = None
    needs: tuple[tuple[str, str], ...] = ()  # (row pattern, column pattern) of cells that must finish first
    generator: str | None = None  # the kind of trained generator that its runs need
    metric: str = "test_error_last10"  # the field of a Result that it shows
    precisions: tuple[str, ...] = PRECISIONS  # runs with a segment in another precision are not accepted
    labels: Label = ()  # row and column labels that name its runs: without those that only select a metric

    @property
    def name(self) -> str:
        """All labels joined by commas, for messages."""
        return ", ".join((*self.row, *self.column))

    @property
    def slug(self) -> str:
        """Name of the cell's folder under ``results/``: its labels in lower case, joined by ``--``."""
        labels = self.labels or (*self.row, *self.column)
        return "--".join(re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") for label in labels)


Cells = dict[tuple[Label, Label], Cell]
"""Cells by their row and column."""


@dataclass(frozen=True)
class Table:
    """A table as its file specifies it. ``cells`` omits combinations for which the paper has no cell."""

    name: str
    title: str
    metric: str
    baseline: str | None  # a column label; a column is compared with the one that has this label in its place, if any
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    cells: tuple[Cell, ...]
    precisions: tuple[str, ...] = PRECISIONS  # default of its cells
    notes: tuple[str, ...] = ()  # sentences printed below the table
    row_baselines: tuple[tuple[str, tuple[Label, ...]], ...] = ()  # (row pattern, its baseline rows, preferred first)
    figure: PlotSpec = field(default_factory=PlotSpec)

    def needed_by(self, cell: Cell) -> set[Cell]:
        """Return the cells that must be finished before the runs of ``cell`` start."""
        return {
            one
            for one in self.cells
            for row, column in cell.needs
            if label_matches(one.row, row) and label_matches(one.column, column)
        }

    def baseline_of(self, row: Label, column: Label) -> tuple[Label, Label] | None:
        """Return row and column of the cell that a cell is compared with.

        None if the cell is a baseline itself, or if the table has no baseline for it.
        """
        there = {(cell.row, cell.column) for cell in self.cells}
        if (in_column := self.baseline_column(column)) is not None:
            return (row, in_column) if (row, in_column) in there else None
        candidates = next((rows for pattern, rows in self.row_baselines if label_matches(row, pattern)), ())
        best = next((one for one in candidates if (one, column) in there), None)
        return None if best in (None, row) else (best, column)

    def baseline_column(self, column: Label) -> Label | None:
        """Return the column that a column is compared with; None for a baseline column, and if the table has none."""
        if self.baseline is None or self.baseline in column:
            return None
        axes = (axis for axis in range(len(column)) if any(other[axis] == self.baseline for other in self.columns))
        axis = next(axes, None)
        return None if axis is None else (*column[:axis], self.baseline, *column[axis + 1 :])


def join_label(label: Label) -> str:
    """Return the labels of a row or column as one text, as patterns and ``paper:`` name it."""
    return " / ".join(label)


def label_matches(label: Label, pattern: str) -> bool:
    """Return whether a pattern (fnmatch) matches one label of a row or column, or all of them joined by " / "."""
    return any(fnmatch.fnmatchcase(text, pattern) or text == pattern for text in (*label, join_label(label)))
