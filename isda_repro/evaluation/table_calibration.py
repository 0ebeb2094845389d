"""Calibration of the runs of a table, before and after temperature scaling: records, a table and a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from isda_repro.errors import UserError
from isda_repro.evaluation.classifier import FinishedRun
from isda_repro.evaluation.outputs import Measured
from isda_repro.evaluation.predictions import predict_test
from isda_repro.evaluation.temperature import losses_at
from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Cell, Table
from isda_repro.files import write_output
from isda_repro.plotting import panel_grid, write_figure
from isda_repro.runs.records import AnyRecord, RecordError, as_json
from isda_repro.runs.strict_json import Count, Percent, Positive, Text, read_json, reason
from isda_repro.tables.comparison import differing_labels
from isda_repro.tables.figures import LOOKS
from isda_repro.tables.formatting import format_difference, format_spread
from isda_repro.tables.intervals import difference, summarise

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPERATURES = np.geomspace(0.5, 8, 33).tolist()  # of the figure
Loss = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord(AnyRecord):
    """Measures of one trained run on the images that it is evaluated on; losses are negative log-likelihoods."""

    kind: ClassVar[str] = "calibration"
    schemas: ClassVar = (1,)
    run_id: Text
    seed: Count
    evaluated_on: Literal["test", "holdout"]
    images: Positive
    error: Percent
    loss: Loss
    calibration_error: Percent  # expected calibration error
    temperatures: Annotated[list[Temperature], Field(min_length=2, max_length=2)]  # see ``Scaled``
    scaled_loss: Loss
    scaled_calibration_error: Percent
    losses: Annotated[list[Loss], Field(min_length=len(TEMPERATURES), max_length=len(TEMPERATURES))]  # at TEMPERATURES
    hardware: Text  # on which they were measured, in fp32


@dataclass(frozen=True)
class Measure:
    """A column of the table: its heading, the decimals that are printed, and the number that a record has for it."""

    heading: str
    decimals: int
    of: Callable[[CalibrationRecord], float]
    is_compared: bool = True


MEASURES = (
    Measure("error (%)", 2, lambda one: one.error),
    Measure("NLL", 3, lambda one: one.loss),
    Measure("ECE (%)", 2, lambda one: one.calibration_error),
    Measure("temperature", 2, lambda one: sum(one.temperatures) / 2, is_compared=False),
    Measure("NLL, scaled", 3, lambda one: one.scaled_loss),
    Measure("ECE, scaled (%)", 2, lambda one: one.scaled_calibration_error),
)

Records = dict[str, CalibrationRecord]
"""Records by run id."""


def measure(run: FinishedRun) -> CalibrationRecord:
    """Evaluate a finished run, and measure its calibration before and after temperature scaling.

    Raises:
        UserError: an image cannot be read, an output of the network is not finite, or there is only one image.
    """
    predictions = predict_test(run)
    found = Measured(predictions, run.source)
    assert predictions.targets is not None
    assert predictions.logits is not None
    if found.scaled is None:
        raise UserError(f"{run.cfg.run_id} has one evaluated image, and temperature scaling needs two")
    return CalibrationRecord(
        run_id=run.cfg.run_id,
        seed=run.cfg.seed,
        evaluated_on=run.source.evaluated_on,
        images=len(predictions.images),
        error=predictions.evaluation.error,
        loss=predictions.evaluation.loss,
        calibration_error=found.calibration.expected_error,
        temperatures=list(found.scaled.temperatures),
        scaled_loss=found.scaled.loss,
        scaled_calibration_error=found.scaled.calibration.expected_error,
        losses=losses_at(predictions.logits, predictions.targets, TEMPERATURES),
        hardware=run.compute.hardware,
    )


def read_records(path: Path) -> Records:
    """Return the records of a file that ``write_records`` has written; none if there is no file.

    Raises:
        RecordError: the file cannot be read, or is not such a file; the message names it.
    """
    if not path.exists():
        return {}
    try:
        found = [CalibrationRecord.from_json(one) for one in read_json(path)["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: {reason(error)}") from error
    return {one.run_id: one for one in found}


def write_records(path: Path, records: Records) -> None:
    """Write records as JSON, a line for each run, in the order of their ids."""
    lines = (json.dumps(as_json(records[name]), sort_keys=True) for name in sorted(records))
    write_output(path, '{\n"runs": [\n' + ",\n".join(lines) + "\n]\n}\n")


def cells_with(records: Records, plan: Plan) -> Iterator[tuple[Cell, dict[int, CalibrationRecord]]]:
    """Yield each cell that has records, with its records by seed; of cells with the same runs the first."""
    seen = set()
    for cell, runs in plan.items():
        found = {run.seed: records[run.run_id] for run in runs if run.run_id in records}
        if found and cell.slug not in seen:
            seen.add(cell.slug)
            yield cell, found


def markdown(table: Table, plan: Plan, records: Records) -> str:
    """Return the measures as a Markdown table, with the differences from the baseline and their intervals."""
    measured = dict(cells_with(records, plan))
    by_key = {(cell.row, cell.column): found for cell, found in measured.items()}
    lines = [
        "| | n | " + " | ".join(one.heading for one in MEASURES) + " |",
        "| --- | --- |" + " ---: |" * len(MEASURES),
    ]
    for cell, found in measured.items():
        lines.append(_line(cell.name, _count(len(found), len(cell.seeds)), partial(_value, found)))
        key = table.baseline_of(cell.row, cell.column)
        if key is not None and key in by_key:
            pairs = len(found.keys() & by_key[key].keys())
            label = f"{cell.name} minus {differing_labels((cell.row, cell.column), key)[1]}"
            count = f"{pairs} pair" if pairs == 1 else f"{pairs} pairs"
            lines.append(_line(label, count, partial(_compared, found, by_key[key])))
    return "\n".join(lines)


def _line(label: str, count: str, cell: Callable[[Measure], str]) -> str:
    return f"| {label} | {count} | {' | '.join(cell(one) for one in MEASURES)} |"


def _count(runs: int, planned: int) -> str:
    return f"{runs}" if runs == planned else f"{runs} of {planned}"


def _value(found: Mapping[int, CalibrationRecord], one: Measure) -> str:
    summary = summarise(one.of(record) for record in found.values())
    return format_spread(summary.mean, summary.std, one.decimals)


def _compared(mine: Mapping[int, CalibrationRecord], other: Mapping[int, CalibrationRecord], one: Measure) -> str:
    if not one.is_compared:
        return ""
    values = ({seed: one.of(record) for seed, record in of.items()} for of in (mine, other))
    return format_difference(difference(*values), decimals=one.decimals)


def draw(path: Path, plan: Plan, records: Records) -> list[Path]:
    """Draw the loss of each cell against the temperature as PNG and SVG, a panel for each row; return both paths."""
    return write_figure(path, lambda: _figure(plan, records))


def _figure(plan: Plan, records: Records) -> Figure:
    measured = list(cells_with(records, plan))
    rows = list(dict.fromkeys(cell.row for cell, _ in measured))
    figure, grid = panel_grid(len(rows))
    for row, axes in zip(rows, grid, strict=True):
        _draw(axes, {", ".join(cell.column): [*found.values()] for cell, found in measured if cell.row == row})
        axes.set_title(", ".join(row), fontsize=10)
    return figure


def _draw(axes: Axes, lines: Mapping[str, list[CalibrationRecord]]) -> None:
    """Draw mean and range over seeds of each line, with a marker at the lowest mean."""
    highest = 0.0
    for number, (label, records) in enumerate(lines.items()):
        colour, dashes, marker = LOOKS[number % len(LOOKS)]
        losses = np.array([record.losses for record in records])
        mean = losses.mean(0)
        text = f"{label} (n = {len(records)})"
        axes.fill_between(TEMPERATURES, losses.min(0), losses.max(0), color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            TEMPERATURES, mean, color=colour, linestyle=dashes, marker=marker, markevery=[int(mean.argmin())],
            markersize=6, label=text,
        )  # fmt: skip
        highest = max(highest, *(record.loss for record in records))
    axes.axvline(1, color="0.5", linewidth=0.7)
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.set_ylim(top=1.1 * highest)
    axes.set_xlabel("temperature, by which all logits are divided")
    axes.set_ylabel("negative log-likelihood")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.legend(loc="lower left", fontsize=9)
