"""``conf/table/<name>.yaml`` -> the cells of a table.

    title: ...
    metric: test_error_last10
    baseline: CE                    # a column label: every other column also shows its difference to it
    seeds: [0, 1, 2]
    set: []                         # overrides of every cell
    rows:                           # a list of axes (label -> override, overrides, or {set:, seeds:}); a cell is
      - {ResNet-32: model=resnet32, ResNet-110: {set: model=resnet110, seeds: [0]}}       # the product of all axes
    columns:
      - {CIFAR-10: dataset=cifar10, CIFAR-100: dataset=cifar100}
      - {CE: loss=ce, ISDA: loss=isda}
    cells:                          # exceptions; patterns (fnmatch) fit one label of the row or column, or all of
      - {row: "*-110", column: ISDA, set: loss.lambda_0=1, seeds: [0]}                    # them joined by " / "
      - {row: "*-110", column: ISDA, needs: {row: ResNet-32, column: ISDA}}     # is begun when all those are finished
    paper:                          # in column order: a mean, [mean, std], or null where there is no such cell
      ResNet-32: [[7.39, 0.10], [7.09, 0.12], [31.20, 0.41], [30.27, 0.34]]
    # or paper: table4, where reported.yaml lists the values of each row in this order; rows that are not here are left
    variants:                       # what the paper leaves open: table=<name>+<variant> has these cells: after its own
      dropout: {title: ..., cells: [{row: ISDA, set: model.dropout=0.3}]}

Plain YAML, read without Hydra.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from isda_repro.config import CONF_DIR
from isda_repro.errors import UserError

TABLE_DIR = CONF_DIR / "table"

METRICS = {
    "test_error_last10": "mean of the last 10 epochs",
    "test_error_final": "last epoch",
    "test_error_best": "best epoch, chosen on the images it is reported on",
    "test_top5_error_final": "last epoch, the class not among the five likeliest",
}
"""The fields of a Result that a table can show, and how its caption calls them."""

PRECISIONS = ("fp32", "bf16")
"""What a run's segments can have been trained in."""

Label = tuple[str, ...]


@dataclass(frozen=True)
class PaperValue:
    """What the paper prints in a cell, and of how many runs; a single run has no standard deviation."""

    mean: float
    std: float | None = None
    n: int = 3


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
    generator: str | None = None  # the kind of a trained generator that it needs
    metric: str = "test_error_last10"  # the field of a Result that it shows
    precisions: tuple[str, ...] = PRECISIONS  # what it accepts of a run's segments
    labels: Label = ()  # those that name its runs; without those that only choose a metric

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join((*self.row, *self.column))

    @property
    def slug(self) -> str:
        """For folders."""
        return "--".join(
            re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") for label in (self.labels or (*self.row, *self.column))
        )


@dataclass(frozen=True)
class Table:
    """A table as specified; ``cells`` leaves out what the paper has no cell for."""

    name: str
    title: str
    metric: str
    baseline: str | None
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    cells: tuple[Cell, ...]
    precisions: tuple[str, ...] = PRECISIONS  # of the cells that say nothing else
    notes: tuple[str, ...] = ()  # sentences for below the table

    def needed_by(self, cell: Cell) -> set[Cell]:
        """The cells that must be finished before this one is begun."""
        return {
            one for one in self.cells for row, column in cell.needs if _fits(one.row, row) and _fits(one.column, column)
        }

    def baseline_column(self, column: Label) -> Label | None:
        """The column that this one is compared with; None for the baseline itself and where there is none."""
        if self.baseline is None or self.baseline in column:
            return None
        axis = next(i for i in range(len(column)) if any(other[i] == self.baseline for other in self.columns))
        return (*column[:axis], self.baseline, *column[axis + 1 :])


# ------------------------------------------------------------------------------------------------------------ reading


def table_names(folder: Path = TABLE_DIR) -> list[str]:
    """The tables that exist."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_table(name: str, folder: Path = TABLE_DIR) -> Table:
    """Read one specification: of ``folder``, or a file of one's own, whose name ends in .yaml.

    Raises:
        UserError: there is no such table, or its file is wrong; the message says where and what can be written.
    """
    file, _, variant = name.partition("+")
    is_own = file.endswith((".yaml", ".yml"))
    path = Path(file) if is_own else folder / f"{file}.yaml"
    if not path.is_file():
        known = ", ".join(table_names(folder))
        raise UserError(f"there is no table={file}; table= can be {known}, or a file of yours, in .yaml")
    where = file if is_own else f"conf/table/{file}.yaml"
    try:
        spec = OmegaConf.to_container(OmegaConf.load(path))
        return _table(path.stem if is_own else name, _with_variant(spec, variant) if variant else spec)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # PyYAML's own hierarchy, which OmegaConf lets through; a label given twice is one
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


_KEYS = ("title", "metric", "baseline", "seeds", "set", "rows", "columns", "cells", "paper", "variants")


def _with_variant(spec: Any, name: str) -> Any:
    """The table with the title and the further exceptions of one of its variants."""
    variants = spec.get("variants") or {} if isinstance(spec, dict) else {}
    if name not in variants:
        raise UserError(f"there is no variant +{name}; there are {', '.join(f'+{one}' for one in variants) or 'none'}")
    variant = variants[name]
    _known(variant, ("title", "cells"), f"variants: {name}")
    return {**spec, "title": variant["title"], "cells": [*(spec.get("cells") or []), *variant["cells"]]}


@dataclass(frozen=True)
class _Choice:
    """What one label of one axis, or one exception, asks for."""

    overrides: tuple[str, ...]
    seeds: tuple[int, ...] | None


def _table(name: str, spec: Any) -> Table:
    _known(spec, _KEYS, "the table")
    for key in ("title", "metric", "seeds", "rows", "columns"):
        if spec.get(key) is None:
            raise UserError(f"{key}: is missing")
    if spec["metric"] not in METRICS:
        raise UserError(f"metric: {spec['metric']} is unknown; it can be {', '.join(METRICS)}")
    common = _Choice(_overrides(spec.get("set") or [], "set"), _seeds(spec["seeds"], "seeds"))
    rows, columns = _axes(spec["rows"], "rows"), _axes(spec["columns"], "columns")
    cells = {
        (row, column): _cell(row, column, (common, *row_choices, *column_choices), spec["metric"])
        for row, row_choices in rows.items()
        for column, column_choices in columns.items()
    }
    _apply_exceptions(cells, spec.get("cells") or [])
    paper = _reported(spec["paper"], rows) if isinstance(spec.get("paper"), str) else spec.get("paper") or {}
    _apply_paper(cells, paper, list(rows), list(columns))
    slugs = [cell.slug for cell in cells.values()]
    if twice := sorted({slug for slug in slugs if slugs.count(slug) > 1}):
        raise UserError(f"two cells would both be stored as {twice[0]}: give them labels that differ in letters")
    baseline = spec.get("baseline")
    if baseline is not None and not any(baseline in column for column in columns):
        raise UserError(f"baseline: {baseline} is no column label; they are {', '.join(map(_joined, columns))}")
    title = str(spec["title"])
    table = Table(name, title, spec["metric"], baseline, tuple(rows), tuple(columns), tuple(cells.values()))
    _refuse_circles(table)
    return table


def _refuse_circles(table: Table) -> None:
    """Cells that wait for each other would never be begun."""
    settled: set[Cell] = set()
    while new := {cell for cell in table.cells if cell not in settled and table.needed_by(cell) <= settled}:
        settled |= new
    if waiting := [cell.name for cell in table.cells if cell not in settled]:
        raise UserError(f"needs: {waiting[0]} needs, directly or by others, itself")


def _cell(row: Label, column: Label, choices: Sequence[_Choice], metric: str) -> Cell:
    """All overrides in order; the seeds of the last one that names seeds."""
    seeds = [choice.seeds for choice in choices if choice.seeds is not None][-1]
    return Cell(row, column, tuple(itertools.chain(*(choice.overrides for choice in choices))), seeds, metric=metric)


def _axes(node: Any, where: str) -> dict[Label, tuple[_Choice, ...]]:
    """The product of the axes: label of each -> choice of each."""
    if not isinstance(node, list) or not all(isinstance(axis, dict) and axis for axis in node) or not node:
        raise UserError(f"{where}: must be a list of axes, each of labels with their overrides")
    axes = [[(str(label), _choice(value, f"{where}: {label}")) for label, value in axis.items()] for axis in node]
    return {tuple(label for label, _ in point): tuple(c for _, c in point) for point in itertools.product(*axes)}


def _choice(value: Any, where: str) -> _Choice:
    if not isinstance(value, dict):
        return _Choice(_overrides(value, where), None)
    _known(value, ("set", "seeds"), where)
    seeds = _seeds(value["seeds"], where) if "seeds" in value else None
    return _Choice(_overrides(value.get("set", []), where), seeds)


def _overrides(value: Any, where: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and "=" in item for item in listed):
        raise UserError(f"{where}: {value} must be key=value, or a list of such")
    refuse_seeds(listed, where)
    return tuple(listed)


def refuse_seeds(overrides: Sequence[str], where: str) -> None:
    """A seed among the overrides would silently be replaced by those that the table lists."""
    if any(override.lstrip("+").startswith("seed=") for override in overrides):
        raise UserError(f"{where} sets the seed; the seeds of a table are listed under seeds: in its file")


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) != len(value):
        raise UserError(f"{where}: seeds {value} must be a list of different whole numbers from 0 on")
    return tuple(value)


def _apply_exceptions(cells: dict[tuple[Label, Label], Cell], exceptions: list[Any]) -> None:
    """Each exception adds its overrides behind those of every cell that it fits, and may replace the seeds."""
    given: set[tuple[str, str]] = set()
    for exception in exceptions:
        _known(exception, ("row", "column", "set", "seeds", "needs"), "cells")
        patterns = (str(exception.get("row", "*")), str(exception.get("column", "*")))
        where = f"cells: row {patterns[0]}, column {patterns[1]}"
        if patterns in given:
            raise UserError(f"{where} is given twice")
        given.add(patterns)
        choice = _choice({key: exception[key] for key in ("set", "seeds") if key in exception}, where)
        fitting = [key for key in cells if _fits(key[0], patterns[0]) and _fits(key[1], patterns[1])]
        if not fitting:
            raise UserError(f"{where} fits no cell")
        for key in fitting:
            cell = cells[key]
            seeds, needs = choice.seeds or cell.seeds, (*cell.needs, *_needs(exception.get("needs"), cells, where))
            cells[key] = replace(cell, overrides=(*cell.overrides, *choice.overrides), seeds=seeds, needs=needs)


def _needs(node: Any, cells: Iterable[tuple[Label, Label]], where: str) -> tuple[tuple[str, str], ...]:
    """The patterns of one exception's ``needs:``, none or one of a row and a column."""
    if node is None:
        return ()
    _known(node, ("row", "column"), f"{where}: needs")
    row, column = str(node.get("row", "*")), str(node.get("column", "*"))
    if not any(_fits(one, row) and _fits(other, column) for one, other in cells):
        raise UserError(f"{where}: needs: row {row}, column {column} fits no cell")
    return ((row, column),)


def _reported(name: str, rows: Iterable[Label]) -> dict[str, Any]:
    """What reported.yaml has for our rows: its rows begin with their name, and list ``values`` in column order."""
    text = (resources.files(__package__) / "reported.yaml").read_text(encoding="utf-8")
    reported = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))
    listed = reported.get(name, {}).get("rows", [])
    if not listed or not all("values" in row for row in listed):
        raise UserError(f"paper: reported.yaml lists no values under {name}")
    values = {str(next(iter(row.values()))): row["values"] for row in listed}
    return {label: values[label] for label in map(_joined, rows) if label in values}


def _apply_paper(cells: dict[tuple[Label, Label], Cell], paper: Any, rows: list[Label], columns: list[Label]) -> None:
    """Set the paper's values; a null takes the cell out."""
    labels = {_joined(row): row for row in rows}
    _known(paper, tuple(labels), "paper")
    for label, values in paper.items():
        if not isinstance(values, list) or len(values) != len(columns):
            raise UserError(f"paper: {label} must list {len(columns)} values, one for each column")
        for column, value in zip(columns, values, strict=True):
            key = (labels[str(label)], column)
            if value is None:
                del cells[key]
                continue
            numbers = value if isinstance(value, list) else [value]
            if len(numbers) not in (1, 2) or not all(type(number) in (int, float) for number in numbers):
                raise UserError(f"paper: {label}: {value} must be a number, [mean, std] or null")
            cells[key] = replace(cells[key], paper=PaperValue(*map(float, numbers)))


def _known(node: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(node, dict):
        raise UserError(f"{where} must be a mapping with some of: {', '.join(keys)}")
    if unknown := [str(key) for key in node if str(key) not in keys]:
        raise UserError(f"{where} has the unknown key {unknown[0]}; it can have {', '.join(keys)}")


def _joined(label: Label) -> str:
    return " / ".join(label)


def _fits(label: Label, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) or text == pattern for text in (*label, _joined(label)))
