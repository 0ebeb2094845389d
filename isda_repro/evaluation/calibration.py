"""Calibration: whether a classifier is right as often as its probabilities say.

The expected calibration error is that of Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3,
with 15 bins of equal width, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
