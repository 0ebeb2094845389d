"""A table's ``paper:`` -> the paper's value of each cell, and what of the paper does not fit together there."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from isda_repro.errors import UserError
from isda_repro.tables.cells import Cells, Label, joined
from isda_repro.tables.choices import known, sentences
from isda_repro.tables.reported import PaperValue, inconsistencies, paper_value, paper_values

BF16 = (
    "Networks are computed in fp32, as presumably the paper's were, or in bf16 where compute=auto chooses that; head, "
    "loss, statistics and weights are fp32 in both. What that does to an error has not been measured."
)
"""Below each table of the paper that accepts bf16."""

Values = dict[tuple[Label, Label], PaperValue | None]


def apply_paper(cells: Cells, node: Any, rows: list[Label], columns: list[Label]) -> tuple[str, ...]:
    """Set the paper's values by a table's ``paper:``, and take out the cells that the paper does not have.

    Returns:
        What is to be said of the comparison: the paper's inconsistencies that belong to the table, and of precision.

    Raises:
        UserError: a row, column or place is not there, or a value is none.
    """
    if isinstance(node, dict) and "table" in node:
        known(node, ("table", "names", "inconsistencies"), "paper")
        values = _referred(str(node["table"]), node.get("names") or {}, rows, columns)
        takes_bf16 = any("bf16" in cell.precisions for cell in cells.values())
        places = _inconsistencies(str(node["table"]), node.get("inconsistencies") or [])
        notes = (*[BF16] * takes_bf16, *places)
    else:
        values, notes = _listed(node, rows, columns), ()
    for key, value in values.items():
        if value is None:
            del cells[key]
        else:
            cells[key] = replace(cells[key], paper=value)
    return notes


def _listed(node: Any, rows: list[Label], columns: list[Label]) -> Values:
    """Values that stand in the table's own file, in column order."""
    labels = {joined(row): row for row in rows}
    known(node, tuple(labels), "paper")
    found: Values = {}
    for label, values in node.items():
        if not isinstance(values, list) or len(values) != len(columns):
            raise UserError(f"paper: {label} must list {len(columns)} values, one for each column")
        for column, value in zip(columns, values, strict=True):
            try:
                found[labels[str(label)], column] = paper_value(value)
            except UserError as error:
                raise UserError(f"paper: {label}: {error}") from None
    return found


def _referred(table: str, names: Any, rows: list[Label], columns: list[Label]) -> Values:
    """Values of reported.yaml: every cell has one there, or a null."""
    labels = {label for one in (*rows, *columns) for label in one}
    known(names, tuple(sorted(labels)), "paper: names")
    reported = paper_values(table)
    found: Values = {}
    for row, column in itertools.product(rows, columns):
        name, way = (tuple(str(names.get(label, label)) for label in one) for one in (row, column))
        if name not in reported:
            raise UserError(f"paper: {table} has no row {joined(name)}; it has {'; '.join(map(joined, reported))}")
        values = reported[name]
        if way not in values:
            has = "; ".join(map(joined, values))
            raise UserError(f"paper: {table} has no {joined(way)} for {joined(name)}; it has {has}")
        found[row, column] = values[way]
    return found


def _inconsistencies(table: str, elsewhere: Any) -> tuple[str, ...]:
    """Those in a table of the paper, and those in further places, by the names that reported.yaml has for them."""
    listed = inconsistencies()
    places = [one.where for one in listed]
    if unknown := [str(place) for place in sentences(elsewhere, "paper: inconsistencies") if place not in places]:
        raise UserError(f"paper: inconsistencies: there is none in {unknown[0]}; they are in {'; '.join(places)}")
    return tuple(str(one) for one in listed if table in one.tables or one.where in elsewhere)
