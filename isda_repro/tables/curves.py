"""Error curves of a table's runs: the mean over seeds, and a band from the smallest to the largest value.

The curve of a finished run is in its result. A run that is still training, or was stopped, has its ``metrics.jsonl``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from isda_repro.experiments.plan import Plan, Run
from isda_repro.experiments.table import Cell, Label
from isda_repro.runs.records import EpochRecord, RecordError, read_metrics
from isda_repro.tables.aggregate import FilledCell, FilledTable
from isda_repro.tables.comparison import best


@dataclass(frozen=True)
class Curve:
    """One line of a figure. ``mean``, ``low`` and ``high`` have one entry per epoch, in percent."""

    name: str
    seeds: int
    unfinished: str | None  # for example "unfinished: epoch 12 of 160"; None if finished
    mean: list[float]
    low: list[float]
    high: list[float]
    drops: list[int]  # epochs, counted from 1, that are the first at a lower learning rate
    floor: float  # where an error of 0 is drawn on a logarithmic axis: half an image, or half the smallest error
    value: float | None  # the mean printed in the table; None while no run is finished
    paper: float | None = None  # the paper's value
    is_best: bool = False  # the table prints its value in bold
    passes: int = 1  # over the training images in an epoch

    @property
    def label(self) -> str:
        """Text for a legend: name, number of seeds, and progress if unfinished."""
        return f"{self.name} ({', '.join(filter(None, (seeds(self.seeds), self.unfinished)))})"


def curve_of(metric: str) -> str:
    """Return the name of the curve that a metric is computed from: ``test_error`` for ``test_error_last10``."""
    return metric.rpartition("_")[0]


def epoch_label(curves: Iterable[Curve]) -> str:
    """Return the label of the horizontal axis. It has the passes of an epoch if all curves have the same number."""
    passes = {curve.passes for curve in curves}
    return f"epoch (of {passes.pop()} passes)" if len(passes) == 1 and passes != {1} else "epoch"


def panels(filled: FilledTable, plan: Plan | None = None, runs_dir: Path | None = None) -> dict[str, dict[str, Curve]]:
    """Return panel title -> line label -> curve. Cells with nothing to draw are omitted.

    Args:
        filled: the table. A panel is one row with the leading labels of a column, and its lines are the last labels.
            With ``figure: {lines: rows}`` a panel is one column and its lines are the rows.
        plan: the table's runs. If none of a cell's runs is finished, those that have begun are drawn as far as they
            are.
        runs_dir: folder of those runs.
    """
    found: dict[str, dict[str, Curve]] = {}
    by_row = filled.table.figure.lines == "rows"
    lowest = best(filled.table, {key: cell.mean for key, cell in filled.cells.items() if cell.mean is not None})
    for (row, column), cell in filled.cells.items():
        title, line = (column, ", ".join(row)) if by_row else ((*row, *column[:-1]), column[-1])
        paper = None if filled.is_reduced or cell.cell.paper is None else cell.cell.paper.mean
        curve = _finished(line, cell, paper, (row, column) in lowest) if cell.values else None
        if curve is None and plan is not None and runs_dir is not None:
            left = [run for run in plan.get(cell.cell, ()) if run.seed not in cell.diverged]
            curve = _unfinished(line, cell.cell, left, runs_dir)
        if curve is not None:
            found.setdefault(_joined(title), {})[line] = curve
    return found


def _joined(title: Label) -> str:
    return ", ".join(title)


def _finished(name: str, cell: FilledCell, paper: float | None, is_best: bool) -> Curve:
    """Return the curve of a cell's finished runs, which all have the same schedule, up to the last epoch of all."""
    results = list(cell.results().values())
    errors = [result.curves[curve_of(cell.cell.metric)] for result in results]
    floor = 50 / max(result.test_images for result in results)
    drops = learning_rate_drops(results[0].curves["lr"])
    value = None if cell.summary is None else cell.summary.mean
    passes = _passes(results[0].request)
    return replace(_curve(name, None, errors, drops, floor, value), paper=paper, is_best=is_best, passes=passes)


def _passes(settings: Mapping[str, Any]) -> int:
    return settings["recipe"].get("passes") or 1  # older runs do not have this setting


def _unfinished(name: str, cell: Cell, runs: Sequence[Run], runs_dir: Path) -> Curve | None:
    """Return the curve of the runs that have begun, up to the last epoch that all have; None if none has begun."""
    shown = curve_of(cell.metric)
    begun = [so_far for run in runs if (so_far := list(_so_far(runs_dir / run.run_id / "metrics.jsonl", shown)))]
    if not begun:
        return None
    epochs = min(map(len, begun))
    errors = [[getattr(record, shown) for record in so_far[:epochs]] for so_far in begun]
    unfinished = f"unfinished: epoch {epochs} of {runs[0].settings['recipe']['epochs']}"
    drops = learning_rate_drops([record.lr for record in begun[0][:epochs]])
    smallest = min(error for error in itertools.chain(*errors, (100.0,)) if error > 0)
    passes = _passes(runs[0].settings)
    return replace(_curve(name, unfinished, errors, drops, smallest / 2, None), passes=passes)


def _so_far(path: Path, shown: str) -> Iterator[EpochRecord]:
    """Yield the epochs that a run has recorded with this curve, up to a line that is damaged or still being written."""
    try:
        for record in read_metrics(path):
            if isinstance(record, EpochRecord) and getattr(record, shown) is not None:
                yield record
    except (OSError, RecordError):
        return


def _curve(
    name: str,
    unfinished: str | None,
    errors: Sequence[Sequence[float]],
    drops: list[int],
    floor: float,
    value: float | None,
) -> Curve:
    by_epoch = list(zip(*errors, strict=False))
    mean, low, high = ([of(one) for one in by_epoch] for of in (fmean, min, max))
    return Curve(name, len(errors), unfinished, mean, low, high, drops, floor, value)


def seeds(count: int) -> str:
    """Return the number of seeds as text."""
    return f"{count} seed{'s' if count > 1 else ''}"


def learning_rate_drops(rates: Sequence[float]) -> list[int]:
    """Return the epochs, counted from 1, that are the first after a drop of a step-wise learning rate to half or less.

    Schedules that never hold a rate for two epochs, such as a cosine, have no drops.
    """
    steps = list(itertools.pairwise(rates))
    if not any(before == after for before, after in steps):  # a step-wise schedule holds a rate for some time
        return []
    return [epoch for epoch, (before, after) in enumerate(steps, start=2) if after <= before / 2]
