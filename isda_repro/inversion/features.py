"""f: images as a generator makes them -> deep features of a fixed network, through which gradients flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
