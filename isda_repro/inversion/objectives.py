"""Equations 15 and 16: what is minimised over the numbers that a generator is given.

Shapes: N images, D numbers of each, A features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from isda_repro.gan import ImageGenerator
from isda_repro.inversion.features import FeatureMap


class Distances(NamedTuple):
    """Both terms of equation 15, each [N]."""

    features: Tensor  # |f(G(z^)) - a|^2
    pixels: Tensor  # |G(z^) - x|^2, of pixels in [-1, 1]


def normalised(numbers: Tensor) -> Tensor:
    """z^ = (z - mean) / std of each row [N, D]; the deviation is the sample's, divided by D - 1."""
    deviation, mean = torch.std_mean(numbers, dim=1, keepdim=True)
    return (numbers - mean) / deviation


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """``|one - other|_2^2`` of each row, [N]."""
    return (one - other).square().flatten(1).sum(1)


@dataclass(frozen=True)
class Reversal:
    """A generator G and a network's features f, both fixed.

    Args:
        generator: of images; of more than noise it is given each image's label, and codes of zero.
        features: of the network.
    """

    generator: ImageGenerator
    features: FeatureMap

    def images(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """G(z^) in [-1, 1], of z [N, D]."""
        codes = numbers.new_zeros(len(numbers), self.generator.game.codes)
        return self.generator.images(normalised(numbers), codes, labels)

    def distances(self, numbers: Tensor, labels: Tensor, features: Tensor, images: Tensor) -> Distances:
        """How far G(z^) is from features [N, A] and from images in [-1, 1]."""
        made = self.images(numbers, labels)
        return Distances(squared_distance(self.features(made), features), squared_distance(made, images))

    def first_objective(
        self, numbers: Tensor, labels: Tensor, features: Tensor, images: Tensor, eta: float | Tensor
    ) -> Tensor:
        """Equation 15, [N]."""
        of_features, of_pixels = self.distances(numbers, labels, features, images)
        return of_features + eta * of_pixels

    def second_objective(self, numbers: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Equation 16, [N]."""
        return squared_distance(self.features(self.images(numbers, labels)), features)
