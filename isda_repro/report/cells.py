"""What a click on a cell opens: its runs, and the command for those that are missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from isda_repro.report.evidence import Shown
from isda_repro.tables.aggregate import FilledCell, FilledTable


def cells_of(shown: Shown, numbers: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The cells of a table, for JSON, by ``<table>/<slug>`` and, in its reduced parts, ``<table>/reduced-<n>/<slug>``.

    Args:
        shown: the table.
        numbers: run id -> number of the run on the page.
    """
    cells: dict[str, dict[str, Any]] = {}
    for place, part in _parts(shown.filled):
        for cell in part.cells.values():
            cells.setdefault(f"{place}/{cell.cell.slug}", _cell(shown.filled, cell, numbers, part is shown.filled))
    return cells


def _parts(filled: FilledTable) -> Iterator[tuple[str, FilledTable]]:
    yield filled.table.name, filled
    for number, part in enumerate(filled.reduced):
        yield f"{filled.table.name}/reduced-{number}", part.filled


def _cell(filled: FilledTable, cell: FilledCell, numbers: Mapping[str, int], is_whole: bool) -> dict[str, Any]:
    name = ", ".join(cell.cell.labels) or cell.cell.name
    return {
        "table": filled.table.name,
        "name": name if is_whole else f"{name} (reduced)",
        "runs": [numbers[cell.records[seed].run_id] for seed in sorted(cell.records)],
        "missing": list(cell.missing) if is_whole else [],
        "command": shlex.join(["python", "train.py", *cell.cell.overrides]),  # and seed=
    }
