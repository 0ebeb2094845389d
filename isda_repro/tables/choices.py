"""What one label of an axis, or one exception, asks for; each mistake in it is one sentence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isda_repro.errors import UserError
from isda_repro.runs.records import METRICS
from isda_repro.tables.cells import PRECISIONS, Label, joined


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


def axes(node: Any, where: str) -> dict[Label, tuple[Choice, ...]]:
    """The product of the axes: label of each -> choice of each."""
    if not isinstance(node, list) or not all(isinstance(axis, dict) and axis for axis in node) or not node:
        raise UserError(f"{where}: must be a list of axes, each of labels with their overrides")
    listed = [[(str(label), choice(value, f"{where}: {label}")) for label, value in axis.items()] for axis in node]
    return {tuple(label for label, _ in point): tuple(c for _, c in point) for point in itertools.product(*listed)}


def choice(value: Any, where: str, keys: Sequence[str] = ("set", "seeds", "metric")) -> Choice:
    """An override, a list of them, or a mapping with some of ``keys``."""
    if not isinstance(value, dict):
        return Choice(overrides(value, where))
    known(value, keys, where)
    return Choice(
        overrides(value.get("set", []), where),
        seeds(value["seeds"], where) if "seeds" in value else None,
        metric(value["metric"], f"{where}: metric") if "metric" in value else None,
        precisions(value["precisions"], f"{where}: precisions") if "precisions" in value else None,
    )


def overrides(value: Any, where: str) -> tuple[str, ...]:
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


def seeds(value: Any, where: str) -> tuple[int, ...]:
    """Different whole numbers from 0 on, at least one."""
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) != len(value):
        raise UserError(f"{where}: seeds {value} must be a list of different whole numbers from 0 on")
    return tuple(value)


def metric(value: Any, where: str) -> str:
    """A field of a Result that a table can show."""
    if value not in METRICS:
        raise UserError(f"{where}: {value} is unknown; it can be {', '.join(METRICS)}")
    return str(value)


def precisions(value: Any, where: str) -> tuple[str, ...]:
    """Those that are accepted, at least one."""
    if not isinstance(value, list) or not value or not all(one in PRECISIONS for one in value):
        raise UserError(f"{where}: {value} must be a list with one or more of {', '.join(PRECISIONS)}")
    return tuple(value)


def sentences(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise UserError(f"{where}: must be a list of sentences")
    return tuple(" ".join(one.split()) for one in value)


def row_baselines(node: Any, rows: Sequence[Label]) -> tuple[tuple[str, tuple[Label, ...]], ...]:
    """``baseline:`` where it names rows: one of them, or for patterns of rows one or several, the best first."""
    by_name = {joined(row): row for row in rows}
    found: list[tuple[str, tuple[Label, ...]]] = []
    for pattern, names in (node if isinstance(node, dict) else {"*": node}).items():
        listed = names if isinstance(names, list) else [names]
        if unknown := [str(name) for name in listed if name not in by_name]:
            raise UserError(f"baseline: {unknown[0]} is no row; they are {'; '.join(by_name)}")
        found.append((str(pattern), tuple(by_name[name] for name in listed)))
    return tuple(found)


def known(node: Any, keys: Sequence[str], where: str) -> None:
    """Refuse what is no mapping, or has another key."""
    if not isinstance(node, dict):
        raise UserError(f"{where} must be a mapping with some of: {', '.join(keys)}")
    if unknown := [str(key) for key in node if str(key) not in keys]:
        raise UserError(f"{where} has the unknown key {unknown[0]}; it can have {', '.join(keys)}")
