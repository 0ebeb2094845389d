"""A filled table -> Markdown that also reads well in a terminal.

A column that is compared is followed by a column with its difference to the baseline; a row of which the paper has
values is followed by a row with them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from isda_repro.tables.aggregate import FilledCell, FilledTable
from isda_repro.tables.specification import METRICS, Label, PaperValue, Table
from isda_repro.tables.statistics import Difference

MINUS = "\N{MINUS SIGN}"
NO_CELL = "\N{EN DASH}"


def markdown(filled: FilledTable, sweep: str, extra: Sequence[str] = ()) -> str:
    """The table as Markdown, with a caption and the commands for what is missing.

    Args:
        filled: the table.
        sweep: the command that runs all that is missing.
        extra: the overrides behind those of every cell, which then belong to the commands.
    """
    table = filled.table
    lines = [
        f"## {table.title}",
        "",
        *_grid(_header(table), [line for row in table.rows for line in _rows(filled, row)]),
    ]
    lines += ["", _caption(filled)]
    if extra:
        lines += ["", f"Reduced: every run has {', '.join(f'`{override}`' for override in extra)}."]
    if missing := [cell for cell in filled.cells.values() if cell.missing]:
        lines += ["", f"Not run yet; `{sweep}` runs all of it:", ""]
        lines += [_missing(cell, extra) for cell in missing]
    return "\n".join(lines) + "\n"


def _header(table: Table) -> list[str]:
    header = [""]
    for column in table.columns:
        header.append(", ".join(column))
        if table.baseline_column(column) is not None:
            header.append(f"{_method(table, column)} {MINUS} {table.baseline}")
    return header


def _method(table: Table, column: Label) -> str:
    """The part of a column's label in which it differs from its baseline."""
    baseline = table.baseline_column(column) or column
    return next(mine for mine, theirs in zip(column, baseline, strict=True) if mine != theirs)


def _rows(filled: FilledTable, row: Label) -> list[list[str]]:
    """Our line of a row, and the paper's if it has one."""
    ours, papers = [", ".join(row)], [f"{', '.join(row)} (paper)"]
    for column in filled.table.columns:
        cell = filled.cells.get((row, column))
        ours.append(_value(cell))
        papers.append(_paper_value(cell.cell.paper if cell else None))
        baseline = filled.table.baseline_column(column)
        if baseline is not None:
            ours.append(_difference(cell.difference if cell else None))
            papers.append(_paper_difference(cell, filled.cells.get((row, baseline))))
    return [ours, papers] if any(papers[1:]) else [ours]


def _value(cell: FilledCell | None) -> str:
    if cell is None:
        return NO_CELL
    if cell.summary is None:
        return "not run"
    wanted = f" of {len(cell.cell.seeds)}" if cell.missing else ""
    return f"{_number(cell.summary.mean)}{_spread(cell.summary.std)} (n = {cell.summary.n}{wanted})"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    pairs = {0: "unpaired", 1: "1 pair"}.get(difference.pairs, f"{difference.pairs} pairs")
    return f"{_number(difference.mean, sign=True)}{_spread(difference.std)} ({pairs})"


def _paper_value(paper: PaperValue | None) -> str:
    return f"{_number(paper.mean)}{_spread(paper.std)}" if paper else ""


def _paper_difference(cell: FilledCell | None, baseline: FilledCell | None) -> str:
    if cell is None or baseline is None or cell.cell.paper is None or baseline.cell.paper is None:
        return ""
    return _number(cell.cell.paper.mean - baseline.cell.paper.mean, sign=True)


def _number(value: float, sign: bool = False) -> str:
    text = f"{value:+.2f}" if sign else f"{value:.2f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)


def _spread(std: float | None) -> str:
    return "" if std is None else f" ± {std:.2f}"


def _caption(filled: FilledTable) -> str:
    what = f"{filled.evaluated_on.capitalize()} error in %, {METRICS[filled.table.metric]}"
    caption = f"{what}; mean ± sample standard deviation over n seeds."
    if filled.table.baseline is None:
        return caption
    return f"{caption} Differences are taken seed by seed: mean ± sample standard deviation over the pairs."


def _missing(filled: FilledCell, extra: Sequence[str]) -> str:
    """The command of the first missing seed stands for the others."""
    seeds = filled.missing
    command = shlex.join(["python", "train.py", *filled.cell.overrides, *extra, f"seed={seeds[0]}"])
    return f"- {filled.cell.name}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: `{command}`"


def _grid(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, padded so that its columns also line up as plain text."""
    grid = [[text.replace("|", "\\|") for text in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in grid)) for i in range(len(header))]
    rule = [("-" * width if i == 0 else "-" * (width - 1) + ":") for i, width in enumerate(widths)]
    padded = [
        [t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(r, widths, strict=True))] for r in grid
    ]
    return [f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:])]
