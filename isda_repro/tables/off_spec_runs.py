"""Runs that differ from a cell only in settings which make them shorter, smaller or cheaper.

They enter no cell. They fill separate tables, one for each set of such settings, whose titles name the settings. So do
runs in a precision that the cell does not accept, and runs with a seed that it does not list.

A run that differs in any other setting, such as learning rate or loss, is another experiment, and appears in no table
of the cell. This includes runs with images held out of the training set: their error is no test error, and searches
have their own tables for it. So do runs that are stored for another table, and not for this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import orjson

from isda_repro.config import request, rescaled
from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Cell, Table
from isda_repro.runs.result_index import Ended, ResultIndex, asked

EPOCHS, MILESTONES = "recipe.epochs", "recipe.schedule.milestones"
MAY_DIFFER = (EPOCHS, MILESTONES, "recipe.passes", "recipe.batch_size", "dataset.train_limit", "dataset.test_limit")
MAY_DIFFER_BELOW = "compute."
HANDED_ON = ("dataset.source.train_limit", "dataset.source.test_limit")  # copies of dataset.train_limit, test_limit

Free = Mapping[str, Any]


class Deviation(NamedTuple):
    """Differences between a run and its cell."""

    settings: tuple[tuple[str, str], ...]  # (key, value of the run), for example ("recipe.epochs", "12")
    precisions: tuple[str, ...]  # precisions of the run that the cell does not accept
    is_other_seed: bool  # the cell does not list the run's seed


@dataclass
class OffSpecGroup:
    """All runs that differ from their cells in the same way."""

    way: Deviation
    runs: dict[Cell, dict[int, Ended]] = field(default_factory=dict)
    _instead: dict[str, dict[str, None]] = field(default_factory=dict)  # key -> values of the cells, each once

    def add(self, cell: Cell, record: Ended, theirs: Free) -> None:
        """Add a run with its nearest cell, and that cell's settings."""
        self.runs.setdefault(cell, {})[record.seed] = record
        for key, _ in self.way.settings:
            self._instead.setdefault(key, {})[_text(theirs.get(key))] = None

    @property
    def settings(self) -> tuple[str, ...]:
        """Descriptions of the differences, one phrase each."""
        said = [f"{key}={value} instead of {' or '.join(self._instead[key])}" for key, value in self.way.settings]
        if self.way.precisions:
            said.append(f"{' and '.join(self.way.precisions)}, which the cells do not accept")
        if self.way.is_other_seed:
            said.append("seeds that the cells do not list")
        return tuple(said)

    def table(self, whole: Table) -> Table:
        """Return the part of a table that has such runs, without the paper's values."""
        overrides = tuple(f"{key}={value}" for key, value in self.way.settings)
        cells = tuple(
            replace(
                cell, overrides=(*cell.overrides, *overrides), seeds=tuple(runs), paper=None, needs=(),
                precisions=(*cell.precisions, *self.way.precisions),
            )
            for cell, runs in self.runs.items()
        )  # fmt: skip
        rows, columns = {cell.row for cell in cells}, {cell.column for cell in cells}
        return replace(
            whole,
            title=f"{whole.title}, reduced: {'; '.join(self.settings)}",
            rows=tuple(row for row in whole.rows if row in rows),
            columns=tuple(column for column in whole.columns if column in columns),
            cells=cells,
            notes=(),
        )


def off_spec_runs(plan: Plan, index: ResultIndex, table: str) -> list[OffSpecGroup]:
    """Find the indexed runs that differ from a cell of the plan only in permitted ways.

    Each run is assigned to the nearest cell. Runs are grouped by how they differ.

    Args:
        plan: the table's cells and their runs.
        index: all available results, of whatever tables.
        table: the table's name.
    """
    kept = {name: {run_id for run_id, _ in stored} for name, stored in index.kept.items()}
    of_others = set[str]().union(*(ids for name, ids in kept.items() if name != table)) - kept.get(table, set())
    cells: dict[bytes, dict[bytes, list[Cell]]] = {}
    for cell, runs in plan.items():
        settings = runs[0].settings
        own = asked(request(settings), settings["choice"])
        cells.setdefault(_divided(own)[0], {}).setdefault(own, []).append(cell)
    groups: dict[Deviation, OffSpecGroup] = {}
    for body, records in index.by_request.items():
        fixed, free = _divided(body)
        for cell, theirs in _nearest(free, cells.get(fixed, {})):
            differing = tuple((key, _text(free.get(key))) for key in _differing(free, theirs))
            for record in records:
                refused = tuple(name for name in record.precisions if name not in cell.precisions)
                way = Deviation(differing, refused, record.seed not in cell.seeds)
                if any(way) and record.run_id not in of_others:
                    groups.setdefault(way, OffSpecGroup(way)).add(cell, record, theirs)
    for group in groups.values():
        group.runs = {cell: dict(sorted(group.runs[cell].items())) for cell in plan if cell in group.runs}
    return sorted(groups.values(), key=lambda group: group.settings)


def _nearest(free: Free, cells: Mapping[bytes, list[Cell]]) -> Iterator[tuple[Cell, Free]]:
    """Yield the cells with the fewest differing settings: one, or several that show other numbers of the same runs."""
    candidates = [(theirs, fitting) for own, fitting in cells.items() if _may_be(free, theirs := _divided(own)[1])]
    if candidates:
        theirs, fitting = min(candidates, key=lambda one: len(_differing(free, one[0])))
        yield from ((cell, theirs) for cell in fitting)


def _may_be(free: Free, theirs: Free) -> bool:
    """Return whether schedules are compatible: with equal epochs, milestones must be equal too."""
    return free.get(EPOCHS) != theirs.get(EPOCHS) or free.get(MILESTONES) == theirs.get(MILESTONES)


def _differing(free: Free, theirs: Free) -> list[str]:
    """Return the settings that differ, except milestones that only follow from a different number of epochs."""
    keys = [key for key in sorted({*free, *theirs}) if free.get(key) != theirs.get(key)]
    if MILESTONES in keys and free.get(MILESTONES) == _following(free, theirs):
        keys.remove(MILESTONES)
    return keys


def _following(free: Free, theirs: Free) -> list[int] | None:
    milestones = theirs.get(MILESTONES)
    return None if milestones is None else rescaled(milestones, theirs[EPOCHS], free[EPOCHS])


@cache
def _divided(body: bytes) -> tuple[bytes, Free]:
    """Divide a request into the settings that must equal the cell's, and those that may differ (key -> value)."""
    requested, choices = orjson.loads(body)
    flat = dict(_flat(requested, ""))
    free = {key: value for key, value in flat.items() if key in MAY_DIFFER or key.startswith(MAY_DIFFER_BELOW)}
    fixed = {key: value for key, value in flat.items() if key not in free and key not in HANDED_ON}
    return orjson.dumps([fixed, choices], option=orjson.OPT_SORT_KEYS), free


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """Return a value as the command line takes it; a setting that a request omits is null."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
