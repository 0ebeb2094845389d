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
        return images.masked_fill(self._square(images, draws), 0) if self.fill == "black" else images

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """With zeros, the mean, in the square, unless it is black already."""
        return images.masked_fill_(self._square(images, draws), 0) if self.fill == "mean" else images

    def _square(self, images: Tensor, draws: Draws) -> Tensor:
        """Where the square is: bool [n, 1, H, W]."""

        def inside(centre: Tensor, size: int) -> Tensor:
            first = centre[:, None] - self.length // 2
            place = torch.arange(size, device=images.device)
            return (place >= first) & (place < first + self.length)

        rows_NH = inside(draws["cutout_row"], images.shape[-2])
        columns_NW = inside(draws["cutout_column"], images.shape[-1])
        return (rows_NH[:, :, None] & columns_NW[:, None, :]).unsqueeze(1)
