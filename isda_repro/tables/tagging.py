"""Under which words W&B finds the runs of a table and of its cells. Nothing of this is part of a run's name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from isda_repro.tables.plan import Plan, Run
from isda_repro.tables.specification import Cell, Table

LONGEST_TAG = 64  # characters; W&B takes no longer ones


def cell_tag(table: Table, cell: Cell) -> str:
    """``<table>/<cell>``: a tag of the cell's runs, and their group; one that is too long ends in a hash."""
    tag = f"{table.name}/{cell.slug}"
    if len(tag) <= LONGEST_TAG:
        return tag
    digest = hashlib.sha256(tag.encode()).hexdigest()[:8]
    return f"{tag[: LONGEST_TAG - len(digest) - 1]}-{digest}"


def tagged(table: Table, plan: Plan) -> Plan:
    """The plan, whose runs W&B will group by cell, tag with table and cell, and give the cell's number.

    A run of two cells is grouped with the first. What the user has set comes first, and stays.
    """
    cells: dict[str, list[Cell]] = {}
    for cell, runs in plan.items():
        for run in runs:
            cells.setdefault(run.run_id, []).append(cell)
    return {cell: tuple(_tagged(table, run, cells[run.run_id]) for run in runs) for cell, runs in plan.items()}


def _tagged(table: Table, run: Run, cells: list[Cell]) -> Run:
    tracking: Mapping[str, Any] = run.settings["tracking"]
    if tracking["mode"] == "none":
        return run
    tags = [*(tracking.get("tags") or ()), table.name, *(cell_tag(table, cell) for cell in cells)]
    found_by = {
        "group": tracking.get("group") or cell_tag(table, cells[0]),
        "tags": list(dict.fromkeys(tags)),
        "tables": list(dict.fromkeys([*(tracking.get("tables") or ()), table.name])),
        "table_metric": tracking.get("table_metric") or cells[0].metric,
    }
    return replace(run, settings={**run.settings, "tracking": {**tracking, **found_by}})
