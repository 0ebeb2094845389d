"""Text of a table's numbers, shared by all renderers."""

from __future__ import annotations

from collections.abc import Iterable

from isda_repro.console import UNSHOWABLE
from isda_repro.experiments.paper_values import PaperValue
from isda_repro.experiments.table import Cell, Table
from isda_repro.runs.records import METRICS
from isda_repro.tables.aggregate import FilledCell
from isda_repro.tables.intervals import Difference

MINUS = "\N{MINUS SIGN}"
NO_CELL = "\N{EN DASH}"
NOT_RUN = "not run"
DECIMALS = 2

VERDICTS = {"better": " better", "worse": " worse", "open": " open", "unknown": ", no interval"}
"""Verdict -> text after a difference and its interval; the caption explains the words."""


def without_breaks(text: str) -> str:
    """Return text with spaces for line breaks, control characters and what cannot be encoded."""
    return UNSHOWABLE.sub(" ", text)


def format_number(value: float, decimals: int = DECIMALS, sign: bool = False) -> str:
    """Round and format a number, with a typographic minus. Values that round to zero get no sign."""
    text = f"{value:+,.{decimals}f}" if sign else f"{value:,.{decimals}f}"
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def format_value(filled: FilledCell | None) -> str:
    """Format our value of a cell: mean ± standard deviation (n = runs, "of planned" if some have no value)."""
    if filled is None:
        return NO_CELL
    wanted, lost = len(filled.cell.seeds), len(filled.diverged)
    if filled.summary is None:
        return f"{lost} of {wanted} diverged" if lost else NOT_RUN
    n = filled.summary.n
    runs = (f"{n} of {wanted}" if n < wanted else f"{n}") + (f", {lost} diverged" if lost else "")
    return f"{format_spread(filled.summary.mean, filled.summary.std)} (n = {runs})"


def format_paper_value(paper: PaperValue, decimals: int) -> str:
    """Format the paper's value as it prints it, with its number of runs."""
    return f"{format_spread(paper.mean, paper.std, decimals)} (n = {paper.n})"


def format_difference(difference: Difference, runs: int | None = None, decimals: int = DECIMALS) -> str:
    """Format a difference with its 95% interval and its verdict.

    Args:
        difference: method minus baseline.
        runs: number of runs of the larger of the two cells. If the difference is not taken over that many pairs, the
            text says over how many, or that the interval, if there is one, is Welch's. None: it does not.
        decimals: number of decimals.
    """
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f" [{format_number(difference.low, decimals)}, {format_number(difference.high, decimals)}]"
    text = f"{format_number(difference.mean, decimals, sign=True)}{interval}{VERDICTS[difference.verdict]}"
    if runs is None or difference.pairs == runs:
        return text
    if difference.pairs:
        return f"{text}, {difference.pairs} pair{'s' if difference.pairs > 1 else ''}"
    return text if difference.verdict == "unknown" else f"{text}, Welch"


def printed_decimals(values: Iterable[PaperValue]) -> int:
    """Return the largest number of decimals among the paper's numbers of a table."""
    numbers = [one for value in values for one in (value.mean, value.std) if one is not None]
    return max((len(repr(one).partition(".")[2].rstrip("0")) for one in numbers), default=DECIMALS)


def describe_metrics(table: Table) -> str:
    """Describe the metric that the cells show.

    If cells show different metrics, each description is preceded by the labels that belong to that metric alone.
    """
    by_metric: dict[str, list[Cell]] = {}
    for cell in table.cells:
        by_metric.setdefault(cell.metric, []).append(cell)
    if len(by_metric) == 1:
        return METRICS[next(iter(by_metric))]
    said = []
    for metric, cells in by_metric.items():
        common = set.intersection(*({*cell.row, *cell.column} for cell in cells))
        others = {label for other in table.cells if other.metric != metric for label in (*other.row, *other.column)}
        said.append(f"{', '.join(sorted(common - others)) or metric}: {METRICS[metric]}")
    return "; ".join(said)


def format_spread(mean: float, std: float | None, decimals: int = DECIMALS) -> str:
    """Format a mean with its standard deviation, if there is one."""
    return format_number(mean, decimals) + ("" if std is None else f" ± {std:.{decimals}f}")
