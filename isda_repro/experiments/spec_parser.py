"""Parsing the parts of a table's file: axes, choices, exceptions, and the paper's values beside the cells.

Each mistake in the file is reported in one sentence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isda_repro.errors import UserError
from isda_repro.experiments.paper_values import PaperValue, inconsistencies, paper_value, paper_values
from isda_repro.experiments.table import PRECISIONS, Cells, Label, join_label
from isda_repro.runs.records import METRICS


@dataclass(frozen=True)
class Choice:
    """Overrides, and what replaces the table's own; None where it does not."""

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    metric: str | None = None
    precisions: tuple[str, ...] | None = None

    @property
    def only_shows(self) -> bool:
        """Whether it chooses what is shown of the same runs, and makes no others."""
        return self.metric is not None and not self.overrides and self.seeds is None


def parse_axes(node: Any, where: str) -> dict[Label, tuple[Choice, ...]]:
    """The product of the axes: label of each -> choice of each."""
    if not isinstance(node, list) or not all(isinstance(axis, dict) and axis for axis in node) or not node:
        raise UserError(f"{where}: must be a list of axes, each of labels with their overrides")
    listed = [
        [(str(label), parse_choice(value, f"{where}: {label}")) for label, value in axis.items()] for axis in node
    ]
    return {tuple(label for label, _ in point): tuple(c for _, c in point) for point in itertools.product(*listed)}


def parse_choice(value: Any, where: str, keys: Sequence[str] = ("set", "seeds", "metric")) -> Choice:
    """An override, a list of them, or a mapping with some of ``keys``."""
    if not isinstance(value, dict):
        return Choice(parse_overrides(value, where))
    check_keys(value, keys, where)
    return Choice(
        parse_overrides(value.get("set", []), where),
        parse_seeds(value["seeds"], where) if "seeds" in value else None,
        parse_metric(value["metric"], f"{where}: metric") if "metric" in value else None,
        parse_precisions(value["precisions"], f"{where}: precisions") if "precisions" in value else None,
    )


def parse_overrides(value: Any, where: str) -> tuple[str, ...]:
    """One or a list, each key=value, none of them the seed."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and "=" in item for item in listed):
        raise UserError(f"{where}: {value} must be key=value, or a list of such")
    refuse_seeds(listed, where)
    return tuple(listed)


def refuse_seeds(overrides: Sequence[str], where: str) -> None:
    """A seed among the overrides would silently be replaced by those that the table lists."""
    if any(override.lstrip("+").startswith("seed=") for override in overrides):
        raise UserError(f"{where} sets the seed; the seeds of a table are listed under seeds: in its file")


def parse_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Different whole numbers from 0 on, at least one."""
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) != len(value):
        raise UserError(f"{where}: seeds {value} must be a list of different whole numbers from 0 on")
    return tuple(value)


def parse_metric(value: Any, where: str) -> str:
    """A field of a Result that a table can show."""
    if value not in METRICS:
        raise UserError(f"{where}: {value} is unknown; it can be {', '.join(METRICS)}")
    return str(value)


def parse_precisions(value: Any, where: str) -> tuple[str, ...]:
    """Those that are accepted, at least one."""
    if not isinstance(value, list) or not value or not all(one in PRECISIONS for one in value):
        raise UserError(f"{where}: {value} must be a list with one or more of {', '.join(PRECISIONS)}")
    return tuple(value)


def parse_sentences(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise UserError(f"{where}: must be a list of sentences")
    return tuple(" ".join(one.split()) for one in value)


def parse_row_baselines(node: Any, rows: Sequence[Label]) -> tuple[tuple[str, tuple[Label, ...]], ...]:
    """``baseline:`` where it names rows: one of them, or for patterns of rows one or several, the best first."""
    by_name = {join_label(row): row for row in rows}
    found: list[tuple[str, tuple[Label, ...]]] = []
    for pattern, names in (node if isinstance(node, dict) else {"*": node}).items():
        listed = names if isinstance(names, list) else [names]
        if unknown := [str(name) for name in listed if name not in by_name]:
            raise UserError(f"baseline: {unknown[0]} is no row; they are {'; '.join(by_name)}")
        found.append((str(pattern), tuple(by_name[name] for name in listed)))
    return tuple(found)


def check_keys(node: Any, keys: Sequence[str], where: str) -> None:
    """Refuse what is no mapping, or has another key."""
    if not isinstance(node, dict):
        raise UserError(f"{where} must be a mapping with some of: {', '.join(keys)}")
    if unknown := [str(key) for key in node if str(key) not in keys]:
        raise UserError(f"{where} has the unknown key {unknown[0]}; it can have {', '.join(keys)}")


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
        check_keys(node, ("table", "names", "inconsistencies"), "paper")
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
    labels = {join_label(row): row for row in rows}
    check_keys(node, tuple(labels), "paper")
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
    check_keys(names, tuple(sorted(labels)), "paper: names")
    reported = paper_values(table)
    found: Values = {}
    for row, column in itertools.product(rows, columns):
        name, way = (tuple(str(names.get(label, label)) for label in one) for one in (row, column))
        if name not in reported:
            raise UserError(
                f"paper: {table} has no row {join_label(name)}; it has {'; '.join(map(join_label, reported))}"
            )
        values = reported[name]
        if way not in values:
            has = "; ".join(map(join_label, values))
            raise UserError(f"paper: {table} has no {join_label(way)} for {join_label(name)}; it has {has}")
        found[row, column] = values[way]
    return found


def _inconsistencies(table: str, elsewhere: Any) -> tuple[str, ...]:
    """Those in a table of the paper, and those in further places, by the names that reported.yaml has for them."""
    listed = inconsistencies()
    places = [one.where for one in listed]
    if unknown := [str(place) for place in parse_sentences(elsewhere, "paper: inconsistencies") if place not in places]:
        raise UserError(f"paper: inconsistencies: there is none in {unknown[0]}; they are in {'; '.join(places)}")
    return tuple(str(one) for one in listed if table in one.tables or one.where in elsewhere)
