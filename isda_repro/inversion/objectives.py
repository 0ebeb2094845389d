"""The objectives of an inversion (equations 15 and 16), and the feature map f that they are differentiated through.

Shapes: N images, D noise inputs of the generator (the vector z), A features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from isda_repro.gan.sampling import IMAGES_AT_ONCE, ImageGenerator
from isda_repro.models import Network

HALF_RANGE = 127.5  # uint8 -> [-1, 1]


class FeatureMap:
    """Features of a trained network in evaluation mode, with fixed weights.

    Args:
        network: the network, on its device.
        mean, std: statistics of each channel that the network's images were normalised with, for pixels in [0, 1].
        memory_format: memory format of the network's input.
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
        # ((x + 1) / 2 - mean) / std for x in [-1, 1], as one product and one sum
        self._scale, self._shift = 0.5 / std_C11, (0.5 - mean_C11) / std_C11

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features [N, A] of float images [N, 3, H, W] in [-1, 1]."""
        normalised = images * self._scale + self._shift
        features: Tensor = self.network(normalised.contiguous(memory_format=self.memory_format)).features
        return features

    @torch.no_grad()
    def of_pixels(self, images: Tensor) -> Tensor:
        """Return the features [N, A] of uint8 images [N, 3, H, W], in chunks; they may be on any device."""
        parts = (part.to(self.device) for part in images.split(IMAGES_AT_ONCE))
        return torch.cat([self(in_unit_range(part).to(self._scale.dtype)) for part in parts])


def in_unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float in [-1, 1], the range of the generators."""
    return pixels.float() / HALF_RANGE - 1


class Distances(NamedTuple):
    """The two terms of equation 15, each [N]."""

    features: Tensor  # |f(G(z^)) - a|^2
    pixels: Tensor  # |G(z^) - x|^2, of pixels in [-1, 1]


def normalised(numbers: Tensor) -> Tensor:
    """Return z^ = (z - mean) / std of each row of [N, D], with the sample standard deviation (divisor D - 1)."""
    deviation, mean = torch.std_mean(numbers, dim=1, keepdim=True)
    return (numbers - mean) / deviation


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return ``|one - other|_2^2`` of each row, [N]."""
    return (one - other).square().flatten(1).sum(1)


@dataclass(frozen=True)
class Reversal:
    """A generator G and a feature map f, both fixed.

    Args:
        generator: the images' generator. If it takes a class or codes, it gets each image's label, and zeros as codes.
        features: the network's features.
    """

    generator: ImageGenerator
    features: FeatureMap

    def images(self, numbers: Tensor, labels: Tensor) -> Tensor:
        """Return G(z^) in [-1, 1] for z [N, D]."""
        codes = numbers.new_zeros(len(numbers), self.generator.game.codes)
        return self.generator.images(normalised(numbers), codes, labels)

    def distances(self, numbers: Tensor, labels: Tensor, features: Tensor, images: Tensor) -> Distances:
        """Return the distances of G(z^) from features [N, A] and from images in [-1, 1]."""
        made = self.images(numbers, labels)
        return Distances(squared_distance(self.features(made), features), squared_distance(made, images))

    def first_objective(
        self, numbers: Tensor, labels: Tensor, features: Tensor, images: Tensor, eta: float | Tensor
    ) -> Tensor:
        """Return the objective of Step I (equation 15), [N]."""
        of_features, of_pixels = self.distances(numbers, labels, features, images)
        return of_features + eta * of_pixels

    def second_objective(self, numbers: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Return the objective of Step II (equation 16), [N]."""
        return squared_distance(self.features(self.images(numbers, labels)), features)
