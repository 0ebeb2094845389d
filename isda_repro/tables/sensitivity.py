"""Figure of a search: the error against a setting, such as lambda_0, with a point for each run.

There is one panel for each row (and for each combination of leading column labels). Runs with one seed are joined by a
thin line, the means over seeds by a heavy one. A value of which not all runs have finished says so below its tick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isda_repro.plotting import logarithmic_errors, panel_grid
from isda_repro.tables.aggregate import FilledCell, FilledTable
from isda_repro.tables.curves import seeds

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 20  # ratio of the largest to the smallest value above zero from which the setting's axis is logarithmic
SPREAD = 4  # the same of errors


def sensitivity_figure(filled: FilledTable) -> Figure:
    """Draw all panels that have a value."""
    by_title: dict[str, dict[float, FilledCell]] = {}
    for (row, (*leading, last)), cell in filled.cells.items():
        by_title.setdefault(", ".join((*row, *leading)), {})[float(last)] = cell
    drawn = {title: cells for title, cells in by_title.items() if any(cell.values for cell in cells.values())}
    figure, grid = panel_grid(len(drawn), abreast=len({column[:-1] for column in filled.table.columns}))
    for (title, cells), axes in zip(drawn.items(), grid, strict=True):
        _draw(axes, dict(sorted(cells.items())))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(str(filled.table.figure.across))
        axes.set_ylabel(f"{filled.error} (%)")
    return figure


def _draw(axes: Axes, cells: dict[float, FilledCell]) -> None:
    """Draw the runs and means of one panel, whose cells are in the order of their values."""
    above_zero = [value for value in cells if value > 0]
    if above_zero and max(above_zero) > WIDE * min(above_zero):
        axes.set_xscale("symlog", linthresh=min(above_zero), linscale=0.5)  # linear below
    by_seed: dict[int, dict[float, float]] = {}
    for value, cell in cells.items():
        for seed, error in cell.values.items():
            by_seed.setdefault(seed, {})[value] = error
    means = {value: cell.summary.mean for value, cell in cells.items() if cell.summary is not None}
    lines = [*by_seed.values()] if len(by_seed) > 1 else []
    for number, errors in enumerate(lines):
        label = None if number else "each seed"
        axes.plot([*errors], [*errors.values()], color="#0072B2", linewidth=0.6, marker="o", markersize=3, label=label)
    label = f"mean of {seeds(len(by_seed))}" if lines else seeds(1)
    axes.plot([*means], [*means.values()], color="#D55E00", marker="s", markersize=4.5, label=label)
    all_errors = [error for errors in by_seed.values() for error in errors.values()]
    if max(all_errors) > SPREAD * min(all_errors) > 0:
        logarithmic_errors(axes, 0.85 * min(all_errors), min(1.15 * max(all_errors), 100))
    second_line = any(_runs(cell) != " " for cell in cells.values())
    axes.set_xticks(
        [*cells], [f"{value:g}\n{_runs(cell)}" if second_line else f"{value:g}" for value, cell in cells.items()]
    )
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.legend(loc="best", fontsize=9)


def _runs(cell: FilledCell) -> str:
    """Return how many runs of a cell have diverged or finished, if not all have finished."""
    wanted = len(cell.cell.seeds)
    finished = f"n = {len(cell.values)} of {wanted}" if cell.missing and cell.values else ""
    diverged = f"{len(cell.diverged)} of {wanted} diverged" if cell.diverged else ""
    return ", ".join(filter(None, (finished, diverged))) or ("not run" if cell.missing else " ")
