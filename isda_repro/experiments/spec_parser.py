"""Parsers for the parts of a table's file: axes, choices, overrides, and the paper's values of the cells.

Every function here raises UserError, with one sentence that names the place in the file, if its part is malformed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isda_repro.console import UNPRINTABLE
from isda_repro.errors import UserError
from isda_repro.experiments.paper_values import PaperValue, inconsistencies, paper_value, paper_values
from isda_repro.experiments.table import PRECISIONS, Cells, Label, join_label
from isda_repro.runs.records import METRICS

MOST_LABELS = 1000  # rows, and columns


@dataclass(frozen=True)
class Choice:
    """Settings behind one label of an axis: overrides, and replacements for the table's own values (None: none)."""

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    metric: str | None = None
    precisions: tuple[str, ...] | None = None

    @property
    def only_shows(self) -> bool:
        """True if the choice selects what is shown of the same runs, without changing the runs."""
        return self.metric is not None and not self.overrides and self.seeds is None


def parse_axes(node: Any, where: str) -> dict[Label, tuple[Choice, ...]]:
    """Parse a list of axes into their product: the labels of each combination, with the choice behind each label."""
    if not isinstance(node, list) or not all(isinstance(axis, dict) and axis for axis in node) or not node:
        raise UserError(f"{where}: must be a list of axes, each of labels with their overrides")
    if (count := math.prod(map(len, node))) > MOST_LABELS:
        raise UserError(f"{where}: the axes give {count:,} combinations, and can give {MOST_LABELS:,}")
    listed = [
        [(require_one_line(label, where), parse_choice(value, f"{where}: {label}")) for label, value in axis.items()]
        for axis in node
    ]
    return {tuple(label for label, _ in point): tuple(c for _, c in point) for point in itertools.product(*listed)}


def parse_choice(value: Any, where: str, keys: Sequence[str] = ("set", "seeds", "metric")) -> Choice:
    """Parse an override, a list of overrides, or a mapping with some of ``keys``."""
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
    """Parse an override ``key=value``, or a list of them. None of them may set the seed."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and "=" in item for item in listed):
        raise UserError(f"{where}: {value} must be key=value, or a list of such")
    refuse_seeds(listed, where)
    return tuple(require_one_line(item, where) for item in listed)


def require_one_line(value: object, where: str) -> str:
    """Return a text, which is part of names, of tables and of job scripts, if it is one line without a tab."""
    if UNPRINTABLE.search(str(value)):
        raise UserError(f"{where}: {str(value)[:60]!a} must be one line")
    return str(value)


def refuse_seeds(overrides: Sequence[str], where: str) -> None:
    """Raise UserError if an override sets the seed, which the seeds listed by the table would silently replace."""
    if any(override.lstrip("+").startswith("seed=") for override in overrides):
        raise UserError(f"{where} sets the seed; the seeds of a table are listed under seeds: in its file")


def parse_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Parse a list of one or more distinct integers that are not negative."""
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) != len(value):
        raise UserError(f"{where}: seeds {value} must be a list of different whole numbers from 0 on")
    return tuple(value)


def parse_metric(value: Any, where: str) -> str:
    """Parse the name of a field of a Result that a table can show."""
    if not isinstance(value, str) or value not in METRICS:
        raise UserError(f"{where}: {value} is unknown; it can be {', '.join(METRICS)}")
    return str(value)


def parse_precisions(value: Any, where: str) -> tuple[str, ...]:
    """Parse a list of one or more accepted precisions."""
    if not isinstance(value, list) or not value or not all(one in PRECISIONS for one in value):
        raise UserError(f"{where}: {value} must be a list with one or more of {', '.join(PRECISIONS)}")
    return tuple(value)


def parse_sentences(value: Any, where: str) -> tuple[str, ...]:
    """Parse a list of sentences, joining their lines."""
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise UserError(f"{where}: must be a list of sentences")
    return tuple(" ".join(one.split()) for one in value)


def parse_row_baselines(node: Any, rows: Sequence[Label]) -> tuple[tuple[str, tuple[Label, ...]], ...]:
    """Parse a ``baseline:`` that names rows.

    It is the name of a row, or a mapping from patterns of rows to one or several names, the preferred first. A single
    name is the baseline of all rows.
    """
    by_name = {join_label(row): row for row in rows}
    found: list[tuple[str, tuple[Label, ...]]] = []
    for pattern, names in (node if isinstance(node, dict) else {"*": node}).items():
        listed = names if isinstance(names, list) else [names]
        if unknown := [str(name) for name in listed if name not in by_name]:
            raise UserError(f"baseline: {unknown[0]} is no row; they are {'; '.join(by_name)}")
        found.append((str(pattern), tuple(by_name[name] for name in listed)))
    return tuple(found)


def check_keys(node: Any, keys: Sequence[str], where: str) -> None:
    """Raise UserError if ``node`` is not a mapping, or has a key that is not among ``keys``."""
    if not isinstance(node, dict):
        raise UserError(f"{where} must be a mapping with some of: {', '.join(keys)}")
    if unknown := [str(key) for key in node if str(key) not in keys]:
        raise UserError(f"{where} has the unknown key {unknown[0]}; it can have {', '.join(keys)}")


BF16 = (
    "Networks are computed in fp32, as presumably the paper's were, or in bf16 where compute=auto chooses that; head, "
    "loss, statistics and weights are fp32 in both. What that does to an error has not been measured."
)
"""Note below each of the paper's tables that accepts bf16."""

Values = dict[tuple[Label, Label], PaperValue | None]


def apply_paper(cells: Cells, node: Any, rows: list[Label], columns: list[Label]) -> tuple[str, ...]:
    """Set the paper's values in ``cells`` from a table's ``paper:``, and delete the cells that the paper does not have.

    Returns:
        Notes on the comparison: the paper's inconsistencies that concern the table, and a note on precision.

    Raises:
        UserError: a row, column or place is unknown, or a value is malformed.
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
    """Parse values that are listed in the table's own file, in the order of its columns."""
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
    """Look up the values in reported.yaml. Every cell must have an entry there, which may be null."""
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
    """Return the paper's inconsistencies in one of its tables, and those in further places.

    Args:
        table: the table, as reported.yaml names it.
        elsewhere: a list of further places, as ``Inconsistency.where`` names them.
    """
    listed = inconsistencies()
    places = [one.where for one in listed]
    if unknown := [str(place) for place in parse_sentences(elsewhere, "paper: inconsistencies") if place not in places]:
        raise UserError(f"paper: inconsistencies: there is none in {unknown[0]}; they are in {'; '.join(places)}")
    return tuple(str(one) for one in listed if table in one.tables or one.where in elsewhere)
