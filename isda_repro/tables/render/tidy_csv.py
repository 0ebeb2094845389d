"""CSV renderer for further computation (RFC 4180): one line for each cell of each table, numbers unrounded.

Errors and differences are in percent. Absent values are empty. Cost columns give lines too, with their own ``metric``.
So do the cells of reduced tables, whose field ``reduced`` names the settings that differ from the table's.

A name that begins like a formula of a spreadsheet (``= + - @``) gets an apostrophe in front, which spreadsheets hide.
"""

from __future__ import annotations

import csv as standard
import io
from collections.abc import Iterator, Sequence
from typing import Any

from isda_repro.files import harmless_cell
from isda_repro.tables.aggregate import FilledCell
from isda_repro.tables.cost_columns import CostColumn
from isda_repro.tables.formatting import without_breaks
from isda_repro.tables.intervals import Difference
from isda_repro.tables.layout import Layout
from isda_repro.tables.missing import Missing, command

FIELDS = (
    *("table", "reduced", "row", "column", "metric", "evaluated_on"),
    *("n", "mean", "std", "seeds", "seeds_missing", "seeds_diverged"),
    *("paper_n", "paper_mean", "paper_std", "minus_paper"),
    *("baseline", "difference", "difference_std", "pairs", "low", "high", "verdict"),
    *("paper_difference", "paper_low", "paper_high", "paper_verdict"),
    *("command", "petaflop_of_a_run", "hours_of_a_run", "hours_on"),
)
NAMES = ("table", "reduced", "row", "column", "baseline")  # fields that hold text of a table file


def csv_file(layouts: Sequence[Layout]) -> str:
    """Return several tables below one header."""
    text = io.StringIO()
    writer = standard.DictWriter(text, FIELDS)
    writer.writeheader()
    for layout in layouts:
        writer.writerows({key: _harmless(key, value) for key, value in line.items()} for line in _lines(layout))
    return text.getvalue()


def _harmless(field: str, value: Any) -> Any:
    """Return a value that no spreadsheet takes for a formula. Table files, which name things, may be a stranger's."""
    if not isinstance(value, str):
        return value
    text = without_breaks(value)
    return harmless_cell(text) if field in NAMES else text


def _lines(layout: Layout) -> Iterator[dict[str, Any]]:
    """Yield the lines of a table: its cells, its cost columns, and then those of its reduced tables."""
    of_table = {"table": layout.filled.table.name, "reduced": "; ".join(layout.settings)}
    missing = {one.cell.slug: one for one in layout.missing}
    for cell in layout.filled.cells.values():
        if cell.has_run or not layout.is_of_other_runs:
            yield {
                **of_table,
                "row": " / ".join(cell.cell.row),
                "column": " / ".join(cell.cell.column),
                **_ours(layout, cell),
                **({} if layout.settings else _papers(cell)),
                **_compared(layout, cell),
                **_costs(missing.get(cell.cell.slug) if cell.missing else None),
            }
    for side in layout.cost_columns:
        yield from ({**of_table, **line} for line in _side(layout, side))
    for one in layout.reduced:
        yield from _lines(one)


def _ours(layout: Layout, filled: FilledCell) -> dict[str, Any]:
    cell, summary = filled.cell, filled.summary
    line: dict[str, Any] = {"metric": cell.metric, "n": len(filled.values), "seeds": _joined(sorted(filled.values))}
    if not layout.is_of_other_runs:
        line["seeds_missing"] = _joined(filled.missing)
        line["seeds_diverged"] = _joined(sorted(filled.diverged))
        line["command"] = command(filled, layout.extra)
    if summary is not None:
        line |= {"mean": summary.mean, "std": summary.std, "evaluated_on": layout.filled.evaluated_on}
    return line


def _papers(filled: FilledCell) -> dict[str, Any]:
    paper = filled.cell.paper
    if paper is None:
        return {}
    line: dict[str, Any] = {"paper_n": paper.n, "paper_mean": paper.mean, "paper_std": paper.std}
    if filled.mean is not None:
        line["minus_paper"] = filled.mean - paper.mean
    if filled.paper_difference is not None:
        line |= {f"paper_{key}": value for key, value in _interval(filled.paper_difference).items()}
    return line


def _compared(layout: Layout, filled: FilledCell) -> dict[str, Any]:
    baseline = layout.filled.table.baseline_of(filled.cell.row, filled.cell.column)
    line = {"baseline": " / ".join((*baseline[0], *baseline[1]))} if baseline is not None else {}
    if filled.difference is None:
        return line
    pairs = {"difference_std": filled.difference.std, "pairs": filled.difference.pairs}
    return {**line, **_interval(filled.difference), **pairs}


def _interval(difference: Difference) -> dict[str, Any]:
    return {
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "verdict": difference.verdict,
    }


def _costs(missing: Missing | None) -> dict[str, Any]:
    """Return the cost fields of a cell with missing runs; the hours are those of the first estimate."""
    if missing is None or missing.cost is None:
        return {}
    line: dict[str, Any] = {"petaflop_of_a_run": missing.cost.petaflop}
    if missing.cost.estimates:
        first = missing.cost.estimates[0]
        line |= {"hours_of_a_run": first.hours, "hours_on": f"{first.gpu}{', at least' if first.at_least else ''}"}
    return line


def _side(layout: Layout, side: CostColumn) -> Iterator[dict[str, Any]]:
    for block in layout.blocks:
        ours, papers = side.ours.get(block.row), side.papers.get(block.row)
        line: dict[str, Any] = {"row": " / ".join(block.row), "column": side.title, "metric": side.name}
        if ours is not None and papers is not None:
            line["minus_paper"] = ours - papers
        yield {**line, "mean": ours, "paper_mean": papers}


def _joined(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))
