"""A table's runs -> the lines of its figure: the mean over seeds, in a band from the smallest to the largest.

A finished run's curve is in its result; one that is still running, or was stopped, has left its ``metrics.jsonl``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from isda_repro.experiments.plan import Plan, Run
from isda_repro.experiments.table import Label
from isda_repro.runs.records import EpochRecord, RecordError, read_metrics
from isda_repro.tables.aggregate import FilledCell, FilledTable


@dataclass(frozen=True)
class Curve:
    """One line: an entry an epoch, in percent."""

    name: str
    seeds: int
    unfinished: str | None  # "unfinished: epoch 12 of 160"
    mean: list[float]
    low: list[float]
    high: list[float]
    drops: list[int]  # the epochs, counted from 1, that are the first at a lower learning rate
    floor: float  # half an image: where an error of 0 is drawn on a logarithmic axis
    value: float | None  # the mean of the table; None while no run is finished

    @property
    def label(self) -> str:
        """For a legend."""
        return f"{self.name} ({', '.join(filter(None, (seeds(self.seeds), self.unfinished)))})"


def panels(filled: FilledTable, plan: Plan | None = None, runs_dir: Path | None = None) -> dict[str, dict[str, Curve]]:
    """Panel title -> line label -> curve; cells without a run that has got anywhere are left out.

    Args:
        filled: the table. A panel is one row and the leading labels of a column, its lines are the last ones; where
            ``figure: {lines: rows}`` says so, a panel is a column and its lines are the rows.
        plan: its runs. Of a cell of which none is finished, those that have begun are drawn as far as they are.
        runs_dir: where those are.
    """
    found: dict[str, dict[str, Curve]] = {}
    by_row = filled.table.figure.lines == "rows"
    for (row, column), cell in filled.cells.items():
        title, line = (column, ", ".join(row)) if by_row else ((*row, *column[:-1]), column[-1])
        curve = _finished(line, cell) if cell.values else None
        if curve is None and plan is not None and runs_dir is not None:
            curve = _unfinished(line, plan.get(cell.cell, ()), runs_dir)
        if curve is not None:
            found.setdefault(_joined(title), {})[line] = curve
    return found


def _joined(title: Label) -> str:
    return ", ".join(title)


def _finished(name: str, cell: FilledCell) -> Curve:
    """All runs of a cell have the same number of epochs and the same schedule."""
    results = list(cell.results().values())
    errors = [result.curves["test_error"] for result in results]
    floor = 50 / max(result.test_images for result in results)
    drops = learning_rate_drops(results[0].curves["lr"])
    value = None if cell.summary is None else cell.summary.mean
    return _curve(name, None, errors, drops, floor, value)


def _unfinished(name: str, runs: Sequence[Run], runs_dir: Path) -> Curve | None:
    """As far as all have got that have begun."""
    begun = [so_far for run in runs if (so_far := list(_so_far(runs_dir / run.run_id / "metrics.jsonl")))]
    if not begun:
        return None
    epochs = min(map(len, begun))
    errors = [[record.test_error for record in so_far[:epochs]] for so_far in begun]
    unfinished = f"unfinished: epoch {epochs} of {runs[0].settings['recipe']['epochs']}"
    drops = learning_rate_drops([record.lr for record in begun[0][:epochs]])
    smallest = min(error for error in itertools.chain(*errors, (100.0,)) if error > 0)
    return _curve(name, unfinished, errors, drops, smallest / 2, None)


def _so_far(path: Path) -> Iterator[EpochRecord]:
    """The epochs of a run, up to a line that is being written, or damaged."""
    try:
        for record in read_metrics(path):
            if isinstance(record, EpochRecord):
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
    by_epoch = list(zip(*errors, strict=True))
    mean, low, high = ([of(one) for one in by_epoch] for of in (fmean, min, max))
    return Curve(name, len(errors), unfinished, mean, low, high, drops, floor, value)


def seeds(count: int) -> str:
    """How many."""
    return f"{count} seed{'s' if count > 1 else ''}"


def learning_rate_drops(rates: Sequence[float]) -> list[int]:
    """The epochs, counted from 1, at which a step-wise schedule drops; none of a cosine, which falls all the time."""
    steps = list(itertools.pairwise(rates))
    if not any(before == after for before, after in steps):  # a step-wise schedule holds a rate for some time
        return []
    return [epoch for epoch, (before, after) in enumerate(steps, start=2) if after <= before / 2]
