"""Calibration of the runs of a table, before and after temperature scaling: records, a table and a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from isda_repro.evaluation.classifier import FinishedRun
from isda_repro.evaluation.outputs import Measured
from isda_repro.evaluation.predictions import predict_test
from isda_repro.evaluation.temperature import losses_at
from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Cell, Label, Table
from isda_repro.files import write_output
from isda_repro.plotting import panel_grid, write_figure
from isda_repro.runs.records import AnyRecord, RecordError, as_json
from isda_repro.runs.strict_json import Percent, Positive, Text, read_json, reason
from isda_repro.tables.comparison import differing_labels
from isda_repro.tables.curves import seeds
from isda_repro.tables.figures import LOOKS
from isda_repro.tables.formatting import format_difference, format_spread
from isda_repro.tables.intervals import Difference, difference, summarise
from isda_repro.tables.render.markdown import escaped

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


def measure(run: FinishedRun) -> CalibrationRecord | None:
    """Evaluate a finished run, and measure its calibration before and after temperature scaling.

    Returns:
        The measures; None if the run has too few errors for temperature scaling, see ``scale``.

    Raises:
        UserError: an image cannot be read, or an output of the network is not finite.
    """
    predictions = predict_test(run)
    found = Measured(predictions, run.source)
    assert predictions.targets is not None
    assert predictions.logits is not None
    if found.scaled is None:
        return None
    return CalibrationRecord(
        run_id=run.cfg.run_id,
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
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
            raise RecordError("it has no list of runs")
        return {one.run_id: one for one in map(CalibrationRecord.from_json, content["runs"])}
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {reason(error)}") from error


def write_records(path: Path, records: Records) -> None:
    """Write records as JSON, a line for each run, in the order of their ids."""
    lines = (json.dumps(as_json(records[name]), sort_keys=True) for name in sorted(records))
    write_output(path, '{\n"runs": [\n' + ",\n".join(lines) + "\n]\n}\n")


def cells_with(records: Records, plan: Plan) -> dict[Cell, dict[int, CalibrationRecord]]:
    """Return the cells that have records, each with its records by seed; of cells with the same runs the first."""
    found: dict[Cell, dict[int, CalibrationRecord]] = {}
    for cell, runs in plan.items():
        of_cell = {run.seed: records[run.run_id] for run in runs if run.run_id in records}
        if of_cell and all(cell.slug != other.slug for other in found):
            found[cell] = of_cell
    return found


def markdown(table: Table, plan: Plan, records: Records) -> str:
    """Return the measures as a Markdown table, with the differences from the baseline and their intervals."""
    measured = cells_with(records, plan)
    by_key = {(cell.row, cell.column): found for cell, found in measured.items()}
    lines = [
        "| | n | " + " | ".join(one.heading for one in MEASURES) + " |",
        "| --- | --- |" + " ---: |" * len(MEASURES),
    ]
    for cell, found in measured.items():
        name, planned = escaped(", ".join(_names(cell))), len(cell.seeds)
        runs = f"{planned}" if len(found) == planned else f"{len(found)} of {planned}"
        lines.append(_line(name, runs, [_value(found, one) for one in MEASURES]))
        key = table.baseline_of(cell.row, cell.column)
        if key is not None and key in by_key:
            differences = [_difference(found, by_key[key], one) for one in MEASURES]
            baseline = escaped(differing_labels((cell.row, cell.column), key)[1])
            lines.append(_line(f"{name} minus {baseline}", _pairs(differences[0]), _compared(differences)))
    return "\n".join(lines)


def _names(cell: Cell) -> Label:
    """Return the labels that name the runs of a cell, without those that only select a metric."""
    return cell.labels or (*cell.row, *cell.column)


def _line(label: str, count: str, values: Sequence[str]) -> str:
    return f"| {label} | {count} | {' | '.join(values)} |"


def _value(found: Mapping[int, CalibrationRecord], one: Measure) -> str:
    summary = summarise(one.of(record) for record in found.values())
    return format_spread(summary.mean, summary.std, one.decimals)


def _difference(
    mine: Mapping[int, CalibrationRecord], other: Mapping[int, CalibrationRecord], one: Measure
) -> Difference:
    values = ({seed: one.of(record) for seed, record in of.items()} for of in (mine, other))
    return difference(*values)


def _compared(differences: Sequence[Difference]) -> list[str]:
    return [
        format_difference(found, decimals=one.decimals) if one.is_compared else ""
        for found, one in zip(differences, MEASURES, strict=True)
    ]


def _pairs(found: Difference) -> str:
    return {0: "unpaired", 1: "1 pair"}.get(found.pairs, f"{found.pairs} pairs")


def draw(path: Path, table: Table, plan: Plan, records: Records) -> list[Path]:
    """Draw the loss of each cell against the temperature as PNG and SVG; return both paths.

    Panels and lines are those of the table's error curves: a panel for each row, or each column, of the table.
    """
    return write_figure(path, lambda: _figure(table, plan, records))


def _figure(table: Table, plan: Plan, records: Records) -> Figure:
    panels: dict[str, dict[str, list[CalibrationRecord]]] = {}
    for cell, found in cells_with(records, plan).items():
        title, line = _place(cell, by_row=table.figure.lines == "rows")
        panels.setdefault(title, {})[line] = [*found.values()]
    figure, grid = panel_grid(len(panels))
    labels = list(dict.fromkeys(_place(cell, by_row=table.figure.lines == "rows")[1] for cell in plan))
    for (title, lines), axes in zip(panels.items(), grid, strict=True):
        for label, of_cell in lines.items():
            _draw(axes, label, of_cell, LOOKS[labels.index(label) % len(LOOKS)])
        _dress(axes, title, max(record.loss for of_cell in lines.values() for record in of_cell))
    return figure


def _place(cell: Cell, by_row: bool) -> tuple[str, str]:
    """Return the title of a cell's panel and the label of its line; ``by_row``: each row is a line."""
    row, column = ([label for label in labels if label in _names(cell)] for labels in (cell.row, cell.column))
    title, line = (column, row) if by_row else ([*row, *column[:-1]], column[-1:])
    return ", ".join(title), ", ".join(line)


def _draw(axes: Axes, label: str, records: Sequence[CalibrationRecord], look: tuple[str, Any, str]) -> None:
    """Draw mean and range over seeds, with a marker at the lowest mean."""
    colour, dashes, marker = look
    losses = np.array([record.losses for record in records])
    mean = losses.mean(0)
    axes.fill_between(TEMPERATURES, losses.min(0), losses.max(0), color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        TEMPERATURES, mean, color=colour, linestyle=dashes, label=f"{label} ({seeds(len(records))})",
        marker=marker, markersize=6, markevery=[int(mean.argmin())],
    )  # fmt: skip


def _dress(axes: Axes, title: str, highest: float) -> None:
    """Set scales, labels and the legend; ``highest`` is the largest loss without scaling."""
    axes.axvline(1, color="0.5", linewidth=0.7)
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.set_ylim(top=1.1 * highest)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("temperature, by which all logits are divided")
    axes.set_ylabel("negative log-likelihood")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.legend(loc="lower left", fontsize=9)
