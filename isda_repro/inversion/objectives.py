"""Equations 15 and 16: the objective of an inversion, and the feature map f through which its gradients flow.

Shapes: N images, D numbers of each, A features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from isda_repro.gan import ImageGenerator
from isda_repro.models import Network

IMAGES_AT_ONCE = 500
HALF_RANGE = 127.5  # uint8 -> [-1, 1]


class FeatureMap:
    """The features of a trained network, whose weights stay as they are; in evaluation mode.

    Args:
        network: on its device.
        mean, std: per channel, by which the network's images were normalised, in units where the largest pixel is 1.
        memory_format: that the network is run in.
    """

    def __init__(
        self,
        network: Network,
        mean: Sequence[float],
        std: Sequence[float],
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        weight = network.head.weight
        self.device, self.memory_format = weight.device, memory_format
        mean_C11, std_C11 = (
            torch.tensor(list(one), dtype=weight.dtype, device=self.device)[:, None, None] for one in (mean, std)
        )
        # (x + 1) / 2 of [-1, 1], less the mean, by the deviation: one product and one sum
        self._scale, self._shift = 0.5 / std_C11, (0.5 - mean_C11) / std_C11

    def __call__(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], float [N, 3, H, W] -> features [N, A]."""
        normalised = images * self._scale + self._shift
        features: Tensor = self.network(normalised.contiguous(memory_format=self.memory_format)).features
        return features

    @torch.no_grad()
    def of_pixels(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 3, H, W], any number of them, on any device -> features [N, A]."""
        parts = (part.to(self.device) for part in images.split(IMAGES_AT_ONCE))
        return torch.cat([self(in_unit_range(part).to(self._scale.dtype)) for part in parts])


def in_unit_range(pixels: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1], as generators make images."""
    return pixels.float() / HALF_RANGE - 1


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
