"""Generated images among real ones: which of an epoch's samples they are, and of which class.

Of the samples of an epoch, counted from 1 in the order in which they are trained on, each sixth (for a share of 1/6) is
a generated image: the batch of samples s to e has ``floor(e / 6) - floor(s / 6)`` of them, whatever its size and
however it is divided among processes.
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
    """Whatever makes images of classes."""

    def sample(self, labels: Tensor, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
        """uint8 [n, C, H, W], an image of each of ``labels[part]``; the draws are made for all of ``labels``."""


@dataclass(frozen=True)
class Synthetic:
    """Generated images for a loader.

    Args:
        source: makes them.
        fraction: of the samples of an epoch; taken for the nearest fraction with a denominator up to 1000.
        covers_all: whether an epoch goes on until it has had every real image, so that it has more steps; otherwise
            each generated image stands in the place of a real one, another one in each epoch, and has its class.

    Raises:
        UserError: a fraction that is not between 0 and 1, or too close to one of them.
    """

    source: ImageSource
    fraction: float
    covers_all: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"synthetic.fraction={self.fraction} must be a number from 0.001 to 0.999")

    @property
    def share(self) -> Fraction:
        """The fraction, exactly: 1/6 is no floating-point number."""
        return Fraction(self.fraction).limit_denominator(LARGEST_DENOMINATOR)

    def samples_of_epoch(self, real: int) -> int:
        """How many samples an epoch has, of ``real`` images that it would have without."""
        share = self.share
        return real + int(real * share / (1 - share)) if self.covers_all else real

    def count(self, start: int, stop: int) -> int:
        """How many of the samples ``start`` to ``stop`` are generated."""
        return int(stop * self.share) - int(start * self.share)

    def positions(self, samples: int) -> Tensor:
        """Which of an epoch's samples are generated: bool [samples]."""
        numerator, denominator = self.share.numerator, self.share.denominator
        ends = torch.arange(samples + 1) * numerator // denominator
        return ends.diff() > 0
