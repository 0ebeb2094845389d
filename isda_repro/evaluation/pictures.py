"""Pictures of an evaluation: the confusion matrix, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isda_repro.console import one_line
from isda_repro.evaluation.measures import Array, Calibration
from isda_repro.plotting import write_figure

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.figure import Figure

NAMED, NUMBERED = 120, 20  # most classes whose names and whose percentages are written
LONGEST = 24  # characters of a name
COLOURS = "Blues"
BLUE, GREY = "#2b6cb0", "#808080"


def draw_confusion(path: Path, confusion: Array, names: Sequence[str]) -> list[Path]:
    """Draw a confusion matrix [C, C] as PNG and SVG: each row in percent of the images of its class.

    Names of classes are written up to 120 classes, and percentages up to 20. The colours follow the square root, and
    the fourth root beyond 120 classes, so that rare confusions are visible beside the diagonal.
    """
    return write_figure(path, lambda: _confusion_figure(confusion, names))


def draw_calibration(path: Path, calibration: Calibration) -> list[Path]:
    """Draw a reliability diagram as PNG and SVG: accuracy over probability, and the share of images in each bin."""
    return write_figure(path, lambda: _calibration_figure(calibration))


def _confusion_figure(confusion: Array, names: Sequence[str]) -> Figure:
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    images, classes = confusion.sum(1, keepdims=True), len(confusion)
    percent = np.divide(100 * confusion, images, out=np.full(confusion.shape, np.nan), where=images > 0)
    side = min(max(0.35 * classes, 3.0), 10.0) if classes <= NAMED else 8.0
    power = 0.5 if classes <= NAMED else 0.25  # one cell of a large matrix is a pixel, and must not be pale as well
    figure = Figure(figsize=(side + 2.2, side + 1.2), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(percent, cmap=COLOURS, norm=PowerNorm(power, vmin=0, vmax=100))
    axes.spines[:].set_visible(True)
    axes.set_facecolor("#e0e0e0")  # of a class without images
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= NAMED:
        size, labels = min(10.0, 0.8 * 72 * side / classes), _labels(names)
        axes.set_xticks(range(classes), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), labels, fontsize=size)
        axes.tick_params(length=min(3.5, size / 2), width=0.5)
    if classes <= NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value > 0:
                colour = "white" if value > 30 else "black"
                text = f"{value:.0f}" if value >= 1 else "<1"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the images of the true class")
    return figure


def _labels(names: Sequence[str]) -> list[str]:
    """Return short names of classes; a name that the font cannot show is replaced by the number of its class."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    shown = (one_line(name) for name in names)
    cut = (name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in shown)
    return [name if all(ord(one) in known for one in name) else str(number) for number, name in enumerate(cut)]


def _calibration_figure(calibration: Calibration) -> Figure:
    from matplotlib.figure import Figure

    bins = len(calibration.images)
    centres, share = (np.arange(bins) + 0.5) / bins, 100 * calibration.images / calibration.images.sum()
    bars: dict[str, Any] = {"width": 1 / bins, "edgecolor": "white", "linewidth": 0.6}
    figure = Figure(figsize=(4.2, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(centres, 100 * np.nan_to_num(calibration.accuracy), color=BLUE, **bars)
    above.plot([0, 1], [0, 100], color=GREY, linestyle="--", label="perfect calibration")
    above.plot(
        calibration.confidence, 100 * calibration.accuracy, "o", color="black", markersize=3, label="mean of bin"
    )
    above.set(xlim=(0, 1), ylim=(0, 100), ylabel="accuracy in %")
    above.set_title(f"expected calibration error {calibration.expected_error:.2f}%", fontsize=10)
    above.legend(loc="upper left", fontsize=8)
    below.bar(centres, share, color=GREY, **bars)
    below.set(xlabel="probability of the predicted class", ylabel="images in %")
    return figure
