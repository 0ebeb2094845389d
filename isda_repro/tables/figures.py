"""Error curves of a table's runs, ready for a paper: readable without colour, and reproducible byte by byte.

There is one panel for each row (and for each combination of leading column labels), with one line for each label of the
last column axis, on a logarithmic axis. Dotted vertical lines mark the drops of the learning rate, thin horizontal ones
the paper's values. Tables whose file asks for a ``detail`` are drawn by ``many_curves`` instead, and searches, whose
columns are the values of a setting, by ``sensitivity``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isda_repro.experiments.plan import Plan
from isda_repro.plotting import logarithmic_errors, panel_grid, write_figure
from isda_repro.runs.records import METRICS
from isda_repro.tables.aggregate import FilledTable
from isda_repro.tables.comparison import competes
from isda_repro.tables.curves import Curve, epoch_label, panels
from isda_repro.tables.many_curves import detailed_figure, mark_drops, mark_paper
from isda_repro.tables.sensitivity import sensitivity_figure

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.figure import Figure

__all__ = ["draw_curves"]

# Colours of Okabe and Ito, which colour-blind readers can tell apart, each with its own dash pattern and marker.
LOOKS: tuple[tuple[str, Any, str], ...] = (
    ("#0072B2", (0, (5, 2)), "o"),
    ("#D55E00", "-", "s"),
    ("#009E73", (0, (1, 1)), "^"),
    ("#CC79A7", (0, (5, 1, 1, 1)), "D"),
    ("#E69F00", (0, (8, 2)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P"),
)


def draw_curves(filled: FilledTable, path: Path, plan: Plan | None = None, runs_dir: Path | None = None) -> list[Path]:
    """Draw a table's error curves, or its errors against a setting, as PNG and SVG.

    Args:
        filled: the table.
        path: file of the figure; the other format is written beside it.
        plan: the table's runs. With ``runs_dir``, runs that have begun and are not finished are drawn as far as they
            are, and marked as unfinished.
        runs_dir: folder of those runs.

    Returns:
        The files written, first the one with the suffix of ``path``; empty if there is nothing to draw.
    """
    how, ylabel = filled.table.figure, f"{filled.error} (%)"
    if how.across is not None:
        return write_figure(path, lambda: sensitivity_figure(filled)) if filled.has_values else []
    drawn = panels(filled, plan, runs_dir)
    if not drawn:
        return []
    if how.detail:
        numbers = f"{METRICS[filled.table.metric]}, bold {competes(filled.table)}"
        return write_figure(path, lambda: detailed_figure(drawn, ylabel, numbers, how))
    abreast = len({column[:-1] for column in filled.table.columns})
    return write_figure(path, lambda: _figure(drawn, ylabel, abreast))


# ------------------------------------------------------------------------------------------------------------- drawing


def _figure(drawn: dict[str, dict[str, Curve]], ylabel: str, abreast: int = 1) -> Figure:
    """Draw all panels. ``abreast`` is the number of panels of one table row, which stay side by side if they fit."""
    figure, grid = panel_grid(len(drawn), abreast)
    labels = list(dict.fromkeys(label for lines in drawn.values() for label in lines))
    for (title, lines), axes in zip(drawn.items(), grid, strict=True):
        for label, curve in lines.items():
            look = LOOKS[labels.index(label) % len(LOOKS)]
            _draw(axes, curve, look, shift=labels.index(label))
            mark_paper(axes, curve, look[0])
        _dress(axes, title, list(lines.values()), ylabel)
    return figure


def _draw(axes: Any, curve: Curve, look: tuple[str, Any, str], shift: int) -> None:
    colour, dashes, marker = look
    epochs = range(1, len(curve.mean) + 1)
    low, mean, high = ([max(e, curve.floor) for e in errors] for errors in (curve.low, curve.mean, curve.high))
    axes.fill_between(epochs, low, high, color=colour, alpha=0.16, linewidth=0)
    spacing = max(1, len(mean) // 10)  # about ten markers per line, shifted between neighbouring lines
    axes.plot(
        epochs, mean, color=colour, linestyle=dashes, label=curve.label,
        marker=marker, markersize=4, markerfacecolor="white", markevery=(shift * spacing // 3 % spacing, spacing),
    )  # fmt: skip


def _dress(axes: Any, title: str, curves: list[Curve], ylabel: str) -> None:
    """Set scales, ticks, the marks of learning rate drops, and the legend."""
    from matplotlib.ticker import MaxNLocator

    paper = [curve.paper for curve in curves if curve.paper is not None]
    least = min([*paper, *(max(error, curve.floor) for curve in curves for error in curve.low)]) * 0.85
    high = min(max(max(error for curve in curves for error in curve.high) * 1.15, 2 * least), 100)
    low = min(least, high / 2)  # at least a factor of two, and no error above 100%
    logarithmic_errors(axes, low, high)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    last = max(len(curve.mean) for curve in curves)
    axes.set_xlim(1 - 0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    mark_drops(axes, curves, label="learning rate drops")
    if paper:
        axes.plot([], [], color="0.4", linewidth=0.6, label="the paper's values")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(epoch_label(curves))
    axes.set_ylabel(ylabel)
    axes.legend(loc="best", fontsize=9, handlelength=2.8)
