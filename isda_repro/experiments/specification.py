"""Reader of table specifications: ``conf/table/<name>.yaml`` becomes a ``Table``.

The format is plain YAML, read without Hydra:

    title: ...
    metric: test_error_last10
    baseline: CE                    # a column label: every other column also shows its difference from it
    # or the name of a row, or rows by pattern, the first that has such a cell counts: {"ISDA*": [Basic, Other]}
    seeds: [0, 1, 2]
    precisions: [fp32, bf16]        # accepted precisions of a run; default: both
    notes: [...]                    # sentences printed below the table
    set: []                         # overrides of every cell
    rows:                           # a list of axes; a row is a combination of one label from each axis.
      # A label maps to an override, a list of overrides, or {set:, seeds:, metric:}
      - {ResNet-32: model=resnet32, ResNet-110: {set: model=resnet110, seeds: [0]}}
    columns:                        # the same for columns
      - {CIFAR-10: dataset=cifar10, CIFAR-100: dataset=cifar100}
      - {CE: loss=ce, ISDA: loss=isda}     # a label that only has metric: shows another number of the same runs
    cells:                          # exceptions; a pattern (fnmatch) matches one label of the row or column,
      # or all of them joined by " / "
      - {row: "*-110", column: ISDA, set: loss.lambda_0=1, seeds: [0], precisions: [fp32]}
      - {row: "*-110", column: ISDA, needs: {row: ResNet-32, column: ISDA}}     # starts when those cells are finished
      - {row: ACGAN, needs: {generator: acgan}}                                 # needs a trained generator
    paper:                          # the paper's values, by reference to reported.yaml; null there removes the cell
      table: table2
      names: {CIFAR-10: cifar10, CIFAR-100: cifar100, CE: basic, ISDA: isda}    # our labels -> those of reported.yaml
      inconsistencies: [Appendix B] # places of inconsistencies to mention, besides those in this table
    # or a list per row in column order, each entry a mean, [mean, std] or null:
    # paper: {ResNet-32: [[7.39, 0.10], [7.09, 0.12], 31.20, null]}
    variants:                       # choices that the paper leaves open: table=<name>+<variant> appends these cells
      dropout: {title: ..., baseline: ..., notes: [...], cells: [{row: ISDA, set: model.dropout=0.3}]}

    figure: {lines: rows, ...}      # how its figure is drawn, see ``table.PlotSpec``
    like: table4                    # take missing keys from table4, except variants and figure; notes are joined
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isda_repro.config import CONF_DIR, UnreadableError, parse_plain, read_bounded
from isda_repro.config.naming import UNSAFE
from isda_repro.config.rules import require_conf
from isda_repro.errors import UserError
from isda_repro.experiments.spec_parser import (
    Choice,
    apply_paper,
    check_keys,
    parse_axes,
    parse_choice,
    parse_metric,
    parse_overrides,
    parse_precisions,
    parse_row_baselines,
    parse_seeds,
    parse_sentences,
    require_one_line,
)
from isda_repro.experiments.table import PRECISIONS, Cell, Cells, Label, Table, join_label, label_matches, parse_plot

TABLE_DIR = CONF_DIR / "table"


def table_names(folder: Path = TABLE_DIR) -> list[str]:
    """Return the names of all tables in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_table(name: str, folder: Path = TABLE_DIR) -> Table:
    """Read one specification.

    Args:
        name: a table of ``folder``, or the path of a .yaml file; ``+<variant>`` after either selects a variant.
        folder: where named tables are.

    Raises:
        UserError: there is no such table, or its file is invalid; the message says where, and what is allowed there.
    """
    folders, slash, last = name.rpartition("/")
    file, _, variant = last.partition("+")
    file = folders + slash + file
    is_own = file.endswith((".yaml", ".yml"))
    path = Path(file) if is_own else folder / f"{file}.yaml"
    if not is_own:
        require_conf()
    if not path.exists() or (not is_own and file not in table_names(folder)):
        names = ", ".join(table_names(folder))
        raise UserError(f"there is no table={file}; table= can be {names}, or a file of yours, in .yaml")
    if UNSAFE.search(path.stem):
        raise UserError(f"table={file}: rename the file, to have none of / \\ : ; , # ? % ' \" in its name")
    where = file if is_own else f"conf/table/{file}.yaml"
    try:
        spec = _with_likeness(_read(path), folder)
        return _table(path.stem + name.removeprefix(file), _with_variant(spec, variant) if variant else spec)
    except UnreadableError as error:
        raise UserError(f"{where} {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: a part of it has another form than it must have: {error}") from error


def _read(path: Path) -> Any:
    """Return a table's file as plain containers. It is data, and may come from somebody else."""
    return parse_plain(read_bounded(path), scalar_aliases=True)


_KEYS = (
    *("title", "metric", "baseline", "seeds", "precisions", "notes", "set"),
    *("rows", "columns", "cells", "paper", "variants", "figure"),
)


def _with_likeness(spec: Any, folder: Path) -> Any:
    """Return the specification, with keys that it lacks taken from the table that its ``like:`` names."""
    if not isinstance(spec, dict) or "like" not in spec:
        return spec
    if spec["like"] not in table_names(folder):
        raise UserError(f"like: there is no table {spec['like']}; there are {', '.join(table_names(folder))}")
    other = _read(folder / f"{spec['like']}.yaml")
    taken = {key: value for key, value in other.items() if key not in ("variants", "figure")}
    own = {key: value for key, value in spec.items() if key != "like"}
    notes = (sentence for one in (spec, other) for sentence in parse_sentences(one.get("notes") or [], "notes"))
    return {**taken, **own, "notes": list(notes)}


def _with_variant(spec: Any, name: str) -> Any:
    """Return the specification with the keys of one of its variants; the variant's cells are appended."""
    variants = spec.get("variants") or {} if isinstance(spec, dict) else {}
    if name not in variants:
        raise UserError(f"there is no variant +{name}; there are {', '.join(f'+{one}' for one in variants) or 'none'}")
    variant = variants[name]
    check_keys(variant, ("title", "baseline", "notes", "cells"), f"variants: {name}")
    return {**spec, **variant, "cells": [*(spec.get("cells") or []), *(variant.get("cells") or [])]}


def _table(name: str, spec: Any) -> Table:
    """Build and check the table of a specification."""
    check_keys(spec, _KEYS, "the table")
    for key in ("title", "metric", "seeds", "rows", "columns"):
        if spec.get(key) is None:
            raise UserError(f"{key}: is missing")
    common = Choice(
        parse_overrides(spec.get("set") or [], "set"),
        parse_seeds(spec["seeds"], "seeds"),
        parse_metric(spec["metric"], "metric"),
        parse_precisions(spec.get("precisions", list(PRECISIONS)), "precisions"),
    )
    rows, columns = parse_axes(spec["rows"], "rows"), parse_axes(spec["columns"], "columns")
    cells = {
        (row, column): _cell(row, column, (*row_choices, *column_choices), common)
        for row, row_choices in rows.items()
        for column, column_choices in columns.items()
    }
    _apply_exceptions(cells, spec.get("cells") or [])
    notes = apply_paper(cells, spec.get("paper") or {}, list(rows), list(columns))
    _refuse_common_folders(cells.values())
    in_columns, by_row = _baselines(spec.get("baseline"), list(rows), list(columns))
    table = Table(
        name=name,
        title=require_one_line(spec["title"], "title"),
        metric=spec["metric"],
        baseline=in_columns,
        rows=tuple(rows),
        columns=tuple(columns),
        cells=tuple(cells.values()),
        precisions=common.precisions or PRECISIONS,
        notes=(*parse_sentences(spec.get("notes") or [], "notes"), *notes),
        row_baselines=by_row,
        figure=parse_plot(spec.get("figure")),
    )
    _refuse_circles(table)
    _refuse_words_across(table)
    return table


def _cell(row: Label, column: Label, choices: Sequence[Choice], common: Choice) -> Cell:
    """Build a cell from the choices of its labels.

    Overrides of all choices are concatenated, the table's own first. For seeds and metric the last choice that has them
    counts.
    """
    labels = tuple(label for label, one in zip((*row, *column), choices, strict=True) if not one.only_shows)
    order = (common, *choices)
    return Cell(
        row,
        column,
        tuple(itertools.chain(*(one.overrides for one in order))),
        [one.seeds for one in order if one.seeds is not None][-1],
        metric=[one.metric for one in order if one.metric is not None][-1],
        precisions=common.precisions or PRECISIONS,
        labels=labels,
    )


def _baselines(
    node: Any, rows: list[Label], columns: list[Label]
) -> tuple[str | None, tuple[tuple[str, tuple[Label, ...]], ...]]:
    """Parse ``baseline:`` into a column's label, or into baseline rows by pattern of row."""
    if node is None:
        return None, ()
    if not isinstance(node, dict) and any(node in column for column in columns):
        return str(node), ()
    if not isinstance(node, dict) and node not in map(join_label, rows):
        names = ", ".join(map(join_label, [*columns, *rows]))
        raise UserError(f"baseline: {node} is no column label, and no row; they are {names}")
    return None, parse_row_baselines(node, rows)


def _refuse_common_folders(cells: Iterable[Cell]) -> None:
    """Raise UserError if two cells would store different runs in one folder of results."""
    runs: dict[str, tuple[Any, ...]] = {}
    shown: set[tuple[str, str]] = set()
    for cell in cells:
        same = (cell.overrides, cell.seeds)
        if runs.setdefault(cell.slug, same) != same or (cell.slug, cell.metric) in shown:
            raise UserError(f"two cells would both be stored as {cell.slug}: give them labels that differ in letters")
        shown.add((cell.slug, cell.metric))


def _refuse_circles(table: Table) -> None:
    """Raise UserError if cells need each other in a circle: their runs would never start."""
    settled: set[Cell] = set()
    while new := {cell for cell in table.cells if cell not in settled and table.needed_by(cell) <= settled}:
        settled |= new
    if waiting := [cell.name for cell in table.cells if cell not in settled]:
        raise UserError(f"needs: {waiting[0]} needs, directly or by others, itself")


def _refuse_words_across(table: Table) -> None:
    """Raise UserError if the figure has a setting on its horizontal axis, and the columns are not its values."""
    places: set[tuple[Label, float]] = set()
    for *leading, label in table.columns if table.figure.across is not None else ():
        try:
            place = (tuple(leading), float(label))
        except ValueError:
            place = ((), math.nan)
        if not math.isfinite(place[1]):
            raise UserError(f"figure: across: the column {label} is no number")
        if place in places:
            raise UserError(f"figure: across: two columns have the value {label}")
        places.add(place)


def _apply_exceptions(cells: Cells, exceptions: list[Any]) -> None:
    """Apply ``cells:`` in place: append overrides to all matching cells, and replace the other values given."""
    given: set[tuple[str, str]] = set()
    keys = ("set", "seeds", "precisions")
    for exception in exceptions:
        check_keys(exception, ("row", "column", *keys, "needs"), "cells")
        patterns = (str(exception.get("row", "*")), str(exception.get("column", "*")))
        where = f"cells: row {patterns[0]}, column {patterns[1]}"
        if patterns in given:
            raise UserError(f"{where} is given twice")
        given.add(patterns)
        asked = parse_choice({key: exception[key] for key in keys if key in exception}, where, keys)
        fitting = [key for key in cells if label_matches(key[0], patterns[0]) and label_matches(key[1], patterns[1])]
        if not fitting:
            raise UserError(f"{where} fits no cell")
        generator, needs = _needs(exception.get("needs"), cells, where)
        for key in fitting:
            cell = cells[key]
            cells[key] = replace(
                cell,
                overrides=(*cell.overrides, *asked.overrides),
                seeds=asked.seeds or cell.seeds,
                precisions=asked.precisions or cell.precisions,
                needs=(*cell.needs, *needs),
                generator=generator or cell.generator,
            )


def _needs(
    node: Any, cells: Iterable[tuple[Label, Label]], where: str
) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Parse the ``needs:`` of one exception: the kind of generator, and none or one (row pattern, column pattern)."""
    if node is None:
        return None, ()
    check_keys(node, ("row", "column", "generator"), f"{where}: needs")
    generator = None if node.get("generator") is None else str(node["generator"])
    if not {"row", "column"} & set(node):
        return generator, ()
    row, column = str(node.get("row", "*")), str(node.get("column", "*"))
    if not any(label_matches(one, row) and label_matches(other, column) for one, other in cells):
        raise UserError(f"{where}: needs: row {row}, column {column} fits no cell")
    return generator, ((row, column),)
