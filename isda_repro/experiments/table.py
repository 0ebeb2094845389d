"""Tables and their cells, as specified in ``conf/table/``.

What a table's file says about its curves::

    figure:
      lines: rows          # a panel is a column, its lines are the rows; columns (default): the other way round
      detail: 1            # the epochs after the last drop of the learning rate also get a panel; 2: last but one
      bold: "ISDA*"        # lines that fit this pattern (fnmatch) are heavier, and lie above the others
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
    """How the curves of a table are drawn; without ``detail``, on a logarithmic axis."""

    lines: str = "columns"
    detail: int = 0
    bold: str | None = None


def parse_plot(node: Any) -> PlotSpec:
    """From YAML.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
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
    return found


PRECISIONS = ("fp32", "bf16")
"""What a run's segments can have been trained in."""

Label = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One cell: the overrides that produce it, its seeds, and the paper's value.

    Two cells that show two metrics of the same runs have the same ``slug``.
    """

    row: Label
    column: Label
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    paper: PaperValue | None = None
    needs: tuple[tuple[str, str], ...] = ()  # patterns of rows and columns
    generator: str | None = None  # the kind of trained generator that its runs need
    metric: str = "test_error_last10"  # the field of a Result that it shows
    precisions: tuple[str, ...] = PRECISIONS  # those that it accepts of a run's segments
    labels: Label = ()  # those that name its runs: without those that only choose a metric

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join((*self.row, *self.column))

    @property
    def slug(self) -> str:
        """For folders."""
        labels = self.labels or (*self.row, *self.column)
        return "--".join(re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") for label in labels)


Cells = dict[tuple[Label, Label], Cell]
"""By row and column."""


@dataclass(frozen=True)
class Table:
    """A table as specified; ``cells`` leaves out what the paper has no cell for."""

    name: str
    title: str
    metric: str
    baseline: str | None  # a column's label
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    cells: tuple[Cell, ...]
    precisions: tuple[str, ...] = PRECISIONS  # of the cells that say nothing else
    notes: tuple[str, ...] = ()  # sentences for below the table
    row_baselines: tuple[tuple[str, tuple[Label, ...]], ...] = ()  # pattern of a row -> rows, the best first
    figure: PlotSpec = field(default_factory=PlotSpec)  # how its curves are drawn

    def needed_by(self, cell: Cell) -> set[Cell]:
        """The cells that must be finished before this one is begun."""
        return {
            one
            for one in self.cells
            for row, column in cell.needs
            if label_matches(one.row, row) and label_matches(one.column, column)
        }

    def baseline_of(self, row: Label, column: Label) -> tuple[Label, Label] | None:
        """Row and column of the cell that this one is compared with; None for a baseline, and where there is none."""
        there = {(cell.row, cell.column) for cell in self.cells}
        if (in_column := self.baseline_column(column)) is not None:
            return (row, in_column) if (row, in_column) in there else None
        candidates = next((rows for pattern, rows in self.row_baselines if label_matches(row, pattern)), ())
        best = next((one for one in candidates if (one, column) in there), None)
        return None if best in (None, row) else (best, column)

    def baseline_column(self, column: Label) -> Label | None:
        """The column that this one is compared with; None for the baseline itself and where there is none."""
        if self.baseline is None or self.baseline in column:
            return None
        axis = next(i for i in range(len(column)) if any(other[i] == self.baseline for other in self.columns))
        return (*column[:axis], self.baseline, *column[axis + 1 :])


def join_label(label: Label) -> str:
    """A row or column as a pattern names it."""
    return " / ".join(label)


def label_matches(label: Label, pattern: str) -> bool:
    """Whether a pattern (fnmatch) is of one label of a row or column, or of all of them joined."""
    return any(fnmatch.fnmatchcase(text, pattern) or text == pattern for text in (*label, join_label(label)))
