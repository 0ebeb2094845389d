"""HTML page of the report: a single file that contains everything and may not load anything else.

The plotting library and the runs are embedded as compressed text, which the browser unpacks when they are needed. A
content security policy allows only the page's own scripts, identified by their digests, and no requests at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from isda_repro.errors import UserError
from isda_repro.report.evidence import Evidence, Shown
from isda_repro.report.runs import described
from isda_repro.report.table_progress import STATES, TableProgress, petaflop_of, progress_of
from isda_repro.sweeps.sweep import SweepOptions, sweep_command
from isda_repro.tables.aggregate import FilledCell, FilledTable
from isda_repro.tables.cost_columns import cost_columns
from isda_repro.tables.costs import SOURCE
from isda_repro.tables.layout import layout
from isda_repro.tables.render.html import html


def cells_of(shown: Shown, numbers: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the cells of a table for JSON.

    Their keys are ``<table>/<slug>``, or ``<table>/reduced-<n>/<slug>`` in its reduced tables.

    Args:
        shown: the table.
        numbers: run id -> index of the run on the page.
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
    """Return one cell for JSON. Missing seeds are listed only for the table itself, not for its reduced tables."""
    name = ", ".join(cell.cell.labels) or cell.cell.name
    return {
        "table": filled.table.name,
        "name": name if is_whole else f"{name} (reduced)",
        "runs": [numbers[cell.records[seed].run_id] for seed in sorted(cell.records)],
        "missing": list(cell.missing) if is_whole else [],
        "diverged": [f"seed {seed}: {one.said}" for seed, one in sorted(cell.diverged.items())],
        "command": shlex.join(["python", "train.py", *cell.cell.overrides]),  # without seed=
    }


SCRIPTS = ("unpack.js", "tables.js", "panels.js", "plots.js", "runs.js", "details.js", "start.js")
"""Scripts of the page, in this order. ``theme.js`` comes earlier, so that the page never shows the wrong colours."""


@dataclass(frozen=True)
class TablePart:
    """One table of the page: its progress and its HTML."""

    progress: TableProgress
    html: str


def page(evidence: Evidence, runs_dir: Path, results_dir: Path) -> str:
    """Return the whole page.

    Args:
        evidence: tables and results.
        runs_dir: folder of the runs.
        results_dir: folder of stored results, and of our measurements of ISDA's cost.
    """
    data, library = _data(evidence), _plotly()
    theme, behaviour = _asset("theme.js"), "\n".join(map(_asset, SCRIPTS))
    text: str = _template().render(
        parts=[_part(shown, runs_dir, results_dir) for shown in evidence.tables],
        states=STATES,
        source=SOURCE,
        counts=_counts(evidence),
        finished=len(evidence.results),
        others=len(evidence.results.keys() - evidence.runs.keys()),
        hardware=_named(evidence, "hardware"),
        problems=evidence.problems,
        petaflop_left=petaflop_of(evidence.left),
        epochs_each=data["epochs_each"],
        thinned=any(result.epochs > data["epochs_each"] for _, result in evidence.results.values()),
        begin=_sweep(_quickest(evidence.tables), runs_dir, results_dir),
        style=_asset("style.css"),
        theme=theme,
        behaviour=behaviour,
        digests=[_digest(theme), _digest(behaviour), library.digest],
        library=library.packed,
        data=_packed(json.dumps(data, separators=(",", ":"), allow_nan=False)),  # NaN is no JSON for a browser
    )
    return text.encode(errors="backslashreplace").decode()  # names in a table file may hold what cannot be encoded


def _counts(evidence: Evidence) -> list[str]:
    """Return how many runs are finished: of the paper's tables, and of this project's own. A run counts once."""
    of_paper = {name for shown in evidence.tables if shown.is_of_paper for name in shown.runs}
    groups = {"the paper's tables": of_paper, "this project's own tables": evidence.runs.keys() - of_paper}
    return [
        f"{len(runs & evidence.results.keys()):,} of {len(runs):,} run{'s' if len(runs) != 1 else ''} of {tables}"
        for tables, runs in groups.items()
        if runs
    ]


def _part(shown: Shown, runs_dir: Path, results_dir: Path) -> TablePart:
    columns = cost_columns(shown.filled.table, shown.plan, results_dir)
    laid_out = layout(shown.filled, shown.plan, _sweep(shown, runs_dir, results_dir), cost_columns=columns)
    return TablePart(progress_of(shown, runs_dir), html(laid_out, level=3))


def _quickest(tables: Sequence[Shown]) -> Shown:
    """Return the table that the page suggests to start with: the demo, which takes minutes, or else the first."""
    return next((shown for shown in tables if shown.filled.table.name == "demo"), tables[0])


def _sweep(shown: Shown, runs_dir: Path, results_dir: Path) -> str:
    return sweep_command(SweepOptions(shown.given, runs_dir=str(runs_dir), results_dir=str(results_dir)))


def _data(evidence: Evidence) -> dict[str, Any]:
    """Return everything that the page's scripts read, for JSON."""
    data = described(evidence.results, evidence.runs)
    numbers = {run["id"]: number for number, run in enumerate(data["runs"])}
    cells: dict[str, Any] = {}
    for shown in evidence.tables:
        cells |= cells_of(shown, numbers)
    titles = {shown.filled.table.name: shown.filled.table.title for shown in evidence.tables}
    return {**data, "cells": cells, "tables": titles}


def _named(evidence: Evidence, key: str) -> list[str]:
    """Return the distinct values of a key in the segments of all runs, sorted."""
    segments = (segment for _, result in evidence.results.values() for segment in result.segments)
    return sorted({str(segment[key]) for segment in segments if segment.get(key)})


def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise _missing(error) from error
    loader = PackageLoader("isda_repro.report", "assets")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")


class _Library(NamedTuple):
    digest: str
    packed: str


@cache
def _plotly() -> _Library:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise _missing(error) from error
    script: str = get_plotlyjs()
    return _Library(_digest(script), _packed(script))


def _missing(error: ImportError) -> UserError:
    return UserError(f"{error.name} is not installed, which the report is made with: pip install 'isda_repro[report]'")


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return a script's digest in the syntax of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    """Compress text and encode it as ASCII. Equal texts give equal bytes."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
