"""Generated images among real ones: which samples of an epoch are generated, and of which class.

The samples of an epoch are counted from 1 in the order in which they are trained on. For a share of 1/6, every sixth
sample is a generated image. The batch of samples s to e has ``floor(e / 6) - floor(s / 6)`` of them, for any batch size
and any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from isda_repro.errors import UserError

LARGEST_DENOMINATOR = 1000


class ImageSource(Protocol):
    """Generator of images of given classes."""

    def sample(self, labels: Tensor, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
        """Return an image for each of ``labels[part]``, uint8 [n, C, H, W].

        The random numbers are drawn for all of ``labels``, so that the images do not depend on the number of processes.
        """


@dataclass(frozen=True)
class Synthetic:
    """Generated images for a loader.

    Args:
        source: generator of the images.
        fraction: share of generated images among the samples of an epoch, rounded to the nearest fraction with a
            denominator up to 1000.
        covers_all: extend the epoch until it has used every real image, so that it has more steps. Otherwise each
            generated image replaces a real one, a different one in each epoch, and has its class.

    Raises:
        UserError: a fraction that is not between 0 and 1, or that rounds to 0 or 1.
    """

    source: ImageSource
    fraction: float
    covers_all: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"synthetic.fraction={self.fraction} must be a number from 0.001 to 0.999")

    @property
    def share(self) -> Fraction:
        """Exact fraction: 1/6 is not a floating-point number."""
        return Fraction(self.fraction).limit_denominator(LARGEST_DENOMINATOR)

    def samples_of_epoch(self, real: int) -> int:
        """Return the number of samples of an epoch that has ``real`` samples without generated images."""
        share = self.share
        return real + int(real * share / (1 - share)) if self.covers_all else real

    def positions(self, samples: int) -> Tensor:
        """Return a mask of the generated samples of an epoch, bool [samples]."""
        numerator, denominator = self.share.numerator, self.share.denominator
        ends = torch.arange(samples + 1) * numerator // denominator
        return ends.diff() > 0
