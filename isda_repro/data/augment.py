"""Augmentation in two phases: numbers are drawn for a whole epoch, then applied to batches on the device.

Drawing happens on the CPU for every position of the epoch at once, so what happens to the sample at position p is a
function of (seed, epoch, p). Applying is arithmetic on tensors: no random numbers, no wait for the device. It happens
to the pixels, uint8, and, for what is defined there, once more to the normalised floats.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from isda_repro.errors import UserError

# Named numbers, the samples along the first dimension of each: `{name: numbers[a:b]}` is what a batch or a rank takes.
Draws = Mapping[str, Tensor]

IMAGES_AT_ONCE = 256


class Augmentation(ABC):
    """What is done to each training image, as a function of the image and of its own draws alone.

    Because no sample sees another, a loader may apply it to a batch, to a rank's part of one or to a window of many
    batches, and the images are the same. Names in the draws are unique to the augmentation, so several can follow each
    other by merging their draws and applying one after another.
    """

    #: Whether many images at once are much faster than a batch at a time.
    wants_many: bool = False
    #: The draws that ``apply`` wants on the CPU, because they choose what is computed; the others go to the device.
    host_draws: frozenset[str] = frozenset()

    @abstractmethod
    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Numbers for ``num_samples`` images of ``image_size`` (H, W): CPU tensors with ``num_samples`` rows."""

    @abstractmethod
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Images uint8 [n, C, H, W] on a device, with n rows of the draws -> uint8 [n, C, H, W].

        The input may be a view of the resident images, so it is never written to; a channels_last input gives a
        channels_last output.
        """

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """What follows when the images are normalised, float32 [n, C, H, W], the same draws; may write to them."""
        return images


@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    """Images as they are."""

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """No numbers."""
        return {}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The images themselves."""
        return images


@dataclass(frozen=True)
class PadCropFlip(Augmentation):
    """Pad each side, crop a random window of the old size, mirror half of the images: the baseline augmentation.

    Args:
        padding: pixels on each side; the window's corner is uniform over the (2 padding + 1)^2 places.
        padding_mode: ``zeros`` (black, before normalisation, as in the works the paper cites) or ``reflect`` (without
            repeating the border, as in the authors' code).
        flip: whether to mirror left-right with probability 1/2.

    Raises:
        UserError: padding below zero or, for ``reflect``, not smaller than the image; an unknown padding mode.
    """

    padding: int = 4
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"padding={self.padding} must be zero or more pixels.")
        if self.padding_mode not in ("zeros", "reflect"):
            raise UserError(f"padding_mode={self.padding_mode!r} must be 'zeros' or 'reflect'.")
        if not isinstance(self.flip, bool):
            raise UserError(f"flip={self.flip!r} must be true or false.")

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """``crop_top`` and ``crop_left`` int64 [N] in [0, 2 padding], and ``flip`` bool [N]."""
        if self.padding_mode == "reflect" and self.padding >= min(image_size):
            raise UserError(f"padding={self.padding} with 'reflect' must be smaller than the image, {image_size}.")

        def corners() -> Tensor:
            return torch.randint(2 * self.padding + 1, (num_samples,), generator=generator)

        draws = {"crop_top": corners(), "crop_left": corners()}
        if self.flip:  # last, so that switching it off leaves the crops as they were
            draws["flip"] = torch.randint(2, (num_samples,), generator=generator, dtype=torch.bool)
        return draws

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """One gather does the crop and the flip."""
        if not self.padding and not self.flip:
            return images
        height, width = images.shape[-2:]
        rows_NH = draws["crop_top"][:, None] + torch.arange(height, device=images.device)
        columns_NW = torch.arange(width, device=images.device)
        if self.flip:
            columns_NW = torch.where(draws["flip"][:, None], columns_NW.flip(0), columns_NW)
        columns_NW = draws["crop_left"][:, None] + columns_NW
        if self.padding_mode == "zeros":
            return take_pixels(F.pad(images, [self.padding] * 4), rows_NH, columns_NW)
        return take_pixels(
            images, _mirrored(rows_NH - self.padding, height), _mirrored(columns_NW - self.padding, width)
        )


def _mirrored(coordinates: Tensor, size: int) -> Tensor:
    """Coordinates up to size - 1 beyond either border -> where a reflecting border finds them."""
    return (size - 1) - ((size - 1) - coordinates.abs()).abs()


def take_pixels(images: Tensor, rows_NH: Tensor, columns_NW: Tensor) -> Tensor:
    """``out[n, c, i, j] = images[n, c, rows[n, i], columns[n, j]]``; [N, C, *, *] -> [N, C, H, W].

    In memory an image is a matrix: its planes below each other [C H, W], or in channels_last its pixels side by side
    [H, W C]. The channel joins the rows or the columns, and one flat gather does the rest, at the same speed for both
    (several times that of advanced indexing on a CPU). Its index is eight times the size of the pixels: of many images
    at once it would not stay in a CPU's cache.
    """
    if len(images) > IMAGES_AT_ONCE:
        parts = zip(*(tensor.split(IMAGES_AT_ONCE) for tensor in (images, rows_NH, columns_NW)), strict=True)
        return torch.cat([take_pixels(*part) for part in parts])
    num_images, channels, _, source_width = images.shape
    height, width = rows_NH.shape[1], columns_NW.shape[1]
    channel = torch.arange(channels, device=images.device)
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        source = images.permute(0, 2, 3, 1)
        rows, row_length = rows_NH, source_width * channels
        columns = (columns_NW[:, :, None] * channels + channel).flatten(1)
    else:
        source = images.contiguous()
        rows, row_length = (channel[:, None] * images.shape[2] + rows_NH[:, None, :]).flatten(1), source_width
        columns = columns_NW
    index = (rows * row_length)[:, :, None] + columns[:, None, :]
    taken = source.flatten(1).gather(1, index.flatten(1))
    if channels_last:
        return taken.view(num_images, height, width, channels).permute(0, 3, 1, 2)
    return taken.view(num_images, channels, height, width)
