"""Confusion matrix and errors of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isda_repro.evaluation.calibration import Array


class ClassError(NamedTuple):
    """Classification of the images of one class."""

    number: int
    images: int
    error: float | None  # share of wrongly classified images, in percent; None without an image
    taken_for: int | None  # the other class that its images are most often taken for; None if all are right
    times: int  # how often they are


def confusion_matrix(targets: Array, predicted: Array, num_classes: int) -> Array:
    """Return how many images of each class (row) were predicted as each class (column), int64 [C, C].

    Args:
        targets: labels, int64 [N].
        predicted: predicted classes, int64 [N].
        num_classes: C.
    """
    cells = targets * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_errors(confusion: Array) -> list[ClassError]:
    """Return the error of each class of a confusion matrix [C, C], in order of the classes."""
    images, wrong = confusion.sum(1), confusion - np.diag(np.diag(confusion))
    most = wrong.argmax(1)
    return [
        ClassError(
            number,
            count,
            100 * int(wrong[number].sum()) / count if count else None,
            int(most[number]) if wrong[number].any() else None,
            int(wrong[number, most[number]]),
        )
        for number, count in enumerate(images.tolist())
    ]


def worst_classes(errors: Sequence[ClassError], count: int) -> list[ClassError]:
    """Return up to ``count`` classes with the largest errors above 0, the largest first."""
    some = [one for one in errors if one.error]
    return sorted(some, key=lambda one: -(one.error or 0))[:count]
