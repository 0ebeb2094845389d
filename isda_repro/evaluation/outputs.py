"""Files of an evaluation, and the lines that are printed.

CSV files are written with Python's ``csv`` (RFC 4180, UTF-8). Names of classes and files may be anybody's: characters
that cannot be printed are escaped, and a name that a spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isda_repro.console import one_line
from isda_repro.data import Source
from isda_repro.evaluation.measures import (
    BINS,
    Array,
    Calibration,
    ClassError,
    calibrate,
    class_errors,
    confusion_matrix,
    worst_classes,
)
from isda_repro.evaluation.pictures import draw_calibration, draw_confusion
from isda_repro.evaluation.predictions import Predictions
from isda_repro.evaluation.temperature import Scaled, scale
from isda_repro.files import harmless_cell, write_output
from isda_repro.training.evaluate import errors_of_groups

PER_CLASS, CONFUSION, PREDICTIONS, SUMMARY = "per_class.csv", "confusion.csv", "predictions.csv", "summary.json"
CONFUSION_PICTURE, CALIBRATION_PICTURE = "confusion.png", "calibration.png"
PICTURES = [CONFUSION_PICTURE, CALIBRATION_PICTURE]
FILES = [PER_CLASS, CONFUSION, PREDICTIONS, SUMMARY, *PICTURES, *(one.replace(".png", ".svg") for one in PICTURES)]
WORST = 5  # classes that are printed


class Measured:
    """Measures of labelled predictions.

    Args:
        predictions: predictions with labels.
        source: the data set that they are of.
    """

    def __init__(self, predictions: Predictions, source: Source) -> None:
        assert predictions.targets is not None
        assert predictions.logits is not None
        self.predictions, self.names = predictions, source.class_names
        targets, predicted = predictions.targets.numpy(), predictions.predicted.numpy()
        self.confusion: Array = confusion_matrix(targets, predicted, len(self.names))
        images, counts = self.confusion.sum(1), source.train_counts
        of_groups = errors_of_groups((images - self.confusion.diagonal()).tolist(), images.tolist(), counts)
        self.mean, *groups = of_groups
        named = zip(("many_shot", "medium_shot", "few_shot"), groups, strict=True)
        self.groups = {name: one for name, one in named if one is not None and len({*counts}) > 1}
        self.classes: list[ClassError] = class_errors(self.confusion)
        self.calibration: Calibration = calibrate(predictions.probabilities[:, 0].numpy(), targets == predicted)
        self.scaled: Scaled | None = scale(predictions.logits, predictions.targets)

    def lines(self) -> list[str]:
        """Return the lines that are printed: loss and errors, calibration, and the worst classes."""
        loss, error, top5, _ = self.predictions.evaluation
        calibration = self.calibration.expected_error
        lines = [
            f"loss {loss:.4f}, error {error:.2f}%" + ("" if top5 is None else f", top-5 error {top5:.2f}%"),
            f"expected calibration error {calibration:.2f}% ({BINS} bins); the loss is the negative log-likelihood",
        ]
        if self.scaled is not None:
            temperatures = " and ".join(f"{one:.2f}" for one in self.scaled.temperatures)
            calibration = self.scaled.calibration.expected_error
            lines.append(
                f"logits divided by {temperatures}, fitted on the other half of the images: "
                f"loss {self.scaled.loss:.4f}, expected calibration error {calibration:.2f}%"
            )
        if self.groups:
            of_groups = (f"{name.replace('_', '-')} {error:.2f}%" for name, error in self.groups.items())
            lines.append(f"mean error of the classes {self.mean:.2f}%: {', '.join(of_groups)}")
        if worst := worst_classes(self.classes, WORST):
            lines.append(f"worst classes: {', '.join(self._in_words(one) for one in worst)}")
        if missing := self.predictions.unreadable:
            lines.append(f"{missing:,} images cannot be read and are left out")
        return lines

    def _in_words(self, one: ClassError) -> str:
        mostly = "" if one.taken_for is None else f", mostly taken for {one_line(self.names[one.taken_for])}"
        return f"{one_line(self.names[one.number])} ({one.error:.2f}% of {one.images:,}{mostly})"

    def summary(self) -> dict[str, Any]:
        """Return all measures for JSON; errors are in percent, and a bin without images has null."""
        loss, error, top5, _ = self.predictions.evaluation
        found, edges = self.calibration, [number / BINS for number in range(BINS + 1)]
        means = zip(found.confidence.tolist(), found.accuracy.tolist(), found.images.tolist(), strict=True)
        return {
            "images": len(self.predictions.images),
            "unreadable_images": self.predictions.unreadable,
            "classes": len(self.names),
            "negative_log_likelihood": loss,
            "error": error,
            **({} if top5 is None else {"top5_error": top5}),
            "mean_error_of_classes": self.mean,
            **{f"{name}_error": error for name, error in self.groups.items()},
            "expected_calibration_error": found.expected_error,
            **({} if self.scaled is None else {"temperature_scaling": _as_json(self.scaled)}),
            "calibration": [
                {
                    "from": edges[number],
                    "to": edges[number + 1],
                    "images": images,
                    "mean_probability": confidence if images else None,
                    "accuracy": accuracy if images else None,
                }
                for number, (confidence, accuracy, images) in enumerate(means)
            ],
        }


def _as_json(scaled: Scaled) -> dict[str, Any]:
    return {
        "temperatures": list(scaled.temperatures),
        "negative_log_likelihood": scaled.loss,
        "expected_calibration_error": scaled.calibration.expected_error,
    }


def write_evaluation(folder: Path, measured: Measured, about: Mapping[str, Any]) -> None:
    """Write all ``FILES`` into a folder, which ``folder_for`` has checked; ``summary.json`` is the last one.

    Args:
        folder: the folder of ``output=``.
        measured: what is written.
        about: further entries of ``summary.json``: what was evaluated.
    """
    names = measured.names
    write_output(folder / PREDICTIONS, predictions_csv(measured.predictions, names))
    write_output(folder / PER_CLASS, per_class_csv(measured.classes, names))
    write_output(folder / CONFUSION, confusion_csv(measured.confusion, names))
    draw_confusion(folder / CONFUSION_PICTURE, measured.confusion, names)
    draw_calibration(folder / CALIBRATION_PICTURE, measured.calibration)
    write_output(folder / SUMMARY, json.dumps({**about, **measured.summary()}, indent=1) + "\n")


def prediction_line(predictions: Predictions, row: int, names: Sequence[str]) -> str:
    """Return one line: the image, and its likeliest classes with their probabilities."""
    likeliest, probabilities = predictions.likeliest[row].tolist(), predictions.probabilities[row].tolist()
    shares = (f"{one_line(names[one])} {share:.1%}" for one, share in zip(likeliest, probabilities, strict=True))
    return f"{predictions.images[row]}: {', '.join(shares)}"


# The first columns of each file are its mark: see CSV_MARKS of isda_repro/files.py.


def predictions_csv(predictions: Predictions, names: Sequence[str]) -> str:
    """Return a line for each image: its label, if it is known, its likeliest classes, and their probabilities."""
    count = predictions.likeliest.shape[1]
    header = ["image", "true_class", "predicted_class", "probability"]
    header += [f"{what}_{place}" for place in range(2, count + 1) for what in ("class", "probability")]
    cells = [_cell(name) for name in names]
    targets = predictions.targets
    labels = [""] * len(predictions.images) if targets is None else [cells[label] for label in targets.tolist()]
    shares = ([f"{one:.6g}" for one in of_image] for of_image in predictions.probabilities.tolist())
    ranked = zip(predictions.likeliest.tolist(), shares, strict=True)
    rows = (
        [_cell(image), label, *(one for number, share in zip(*of_image, strict=True) for one in (cells[number], share))]
        for image, label, of_image in zip(predictions.images, labels, ranked, strict=True)
    )
    return _csv(header, rows)


def per_class_csv(errors: Sequence[ClassError], names: Sequence[str]) -> str:
    """Return a line for each class: its number, name, images, error in percent, and what it is mostly taken for."""
    header = ["class", "class_name", "images", "error_of_class", "mostly_taken_for", "times"]
    others = ("" if one.taken_for is None else _cell(names[one.taken_for]) for one in errors)
    rows = (
        [one.number, _cell(names[one.number]), one.images, "" if one.error is None else one.error, other, one.times]
        for one, other in zip(errors, others, strict=True)
    )
    return _csv(header, rows)


def confusion_csv(confusion: Array, names: Sequence[str]) -> str:
    """Return the numbers of images: a line for each true class, and a column for each predicted class."""
    cells = [_cell(name) for name in names]
    rows = ([name, *counts] for name, counts in zip(cells, confusion.tolist(), strict=True))
    return _csv([r"true class \ predicted class", *cells], rows)


def _cell(name: str) -> str:
    return harmless_cell(one_line(name))


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
