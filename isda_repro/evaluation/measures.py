"""Measures of labelled predictions: calibration, the confusion matrix, and the errors of the classes.

The expected calibration error is that of Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3,
with 15 bins of equal width, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

BINS = 15
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Calibration:
    """Images by the probability of their predicted class, in B bins of equal width from 0 to 1.

    Args:
        images: number of images in each bin, int64 [B].
        confidence: mean probability of the predicted class in each bin, float64 [B]; NaN in an empty bin.
        accuracy: share of rightly classified images in each bin, float64 [B]; NaN in an empty bin.
    """

    images: Array
    confidence: Array
    accuracy: Array

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean over images of |accuracy - confidence| of their bin, in percent."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(100 * (gaps @ self.images) / self.images.sum())


def calibrate(probabilities: Array, right: Array, bins: int = BINS) -> Calibration:
    """Put images into bins by the probability of their predicted class; a bin contains its upper edge.

    Args:
        probabilities: probability of the predicted class of each image, float64 [N], N at least 1.
        right: whether the prediction is right, bool [N].
        bins: number of bins B.
    """
    edges = np.linspace(0, 1, bins + 1)
    number = np.digitize(probabilities, edges[1:-1], right=True)
    images = np.bincount(number, minlength=bins)
    sums = (np.bincount(number, weights=weights, minlength=bins) for weights in (probabilities, right))
    means = (np.divide(total, images, out=np.full(bins, np.nan), where=images > 0) for total in sums)
    return Calibration(images, *means)


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
