"""Cutout (DeVries and Taylor, 2017): one square of each training image is blanked."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isda_repro.data.augment import Augmentation, Draws
from isda_repro.errors import UserError


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Blank one square, its centre uniform over the pixels of the image, the square clipped at the border.

    So an image loses at least a quarter of the square, and on average less than the whole. The published code's square
    reaches from length // 2 above the centre to length // 2 below it, which for an even length is this one too.

    Args:
        length: side of the square in pixels; 16 on CIFAR-10, 8 on CIFAR-100 in the paper that introduces it; 0: none.
        fill: ``mean``, zero after normalisation, as there (section 3.2); or ``black``, zero before it, as in the ISDA
            authors' code.

    Raises:
        UserError: a length below zero, or an unknown fill.
    """

    length: int
    fill: Literal["mean", "black"] = "mean"

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 0:
            raise UserError(f"The length of Cutout's square is {self.length!r}, but must be a whole number of pixels.")
        if self.fill not in ("mean", "black"):
            raise UserError(f"Cutout's fill={self.fill!r} must be 'mean' or 'black'.")

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """``cutout_row`` and ``cutout_column``, the square's centre: int64 [N] in [0, H) and [0, W)."""
        return {
            name: torch.randint(size, (num_samples,), generator=generator)
            for name, size in zip(("cutout_row", "cutout_column"), image_size, strict=True)
        }

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The images themselves, unless they are blanked before they are normalised."""
        return self._blank(_dense_copy(images), draws) if self.fill == "black" else images

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Write zeros, which are the mean, into the square, unless it is black already."""
        return self._blank(images, draws) if self.fill == "mean" else images

    def _blank(self, images: Tensor, draws: Draws) -> Tensor:
        """Write zeros, only where the square is: a mask of the whole image takes twice as long on a CPU."""
        num_images, channels, height, width = images.shape
        around = torch.arange(self.length, device=images.device) - self.length // 2

        def places(centre: Tensor, size: int) -> Tensor:  # those beyond the border are moved to it, into the square
            return (centre[:, None] + around).clamp(0, size - 1)

        rows_NL, columns_NL = places(draws["cutout_row"], height), places(draws["cutout_column"], width)
        pixels = (rows_NL[:, :, None] * width + columns_NL[:, None, :]).flatten(1)
        if images.is_contiguous(memory_format=torch.channels_last):
            first = torch.arange(num_images, device=images.device) * (height * width)
            flat = images.permute(0, 2, 3, 1).view(-1, channels)
            flat.index_fill_(0, (first[:, None] + pixels).flatten(), 0)
        else:
            images.view(num_images, channels, height * width).scatter_(2, pixels[:, None].expand(-1, channels, -1), 0)
        return images


def _dense_copy(images: Tensor) -> Tensor:
    """Copy images, which may be a view, in the layout that they have."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return images.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
