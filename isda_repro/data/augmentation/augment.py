"""Augmentation in two phases: random numbers are drawn for a whole epoch, then applied to batches on the device.

Drawing happens on the CPU for every position of the epoch at once, so the augmentation of the sample at position p is a
function of (seed, epoch, p). Applying is tensor arithmetic without random numbers and without synchronising with the
device. It works on uint8 pixels; augmentations that are defined on normalised images use ``apply_normalised``.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isda_repro.errors import UserError

# Named tensors with one row per sample: a batch or a rank takes `{name: numbers[a:b]}`.
Draws = Mapping[str, Tensor]

IMAGES_AT_ONCE = 256


class Augmentation(ABC):
    """Base class of augmentations: each output image is a function of the input image and its own draws alone.

    Because samples do not influence each other, a loader may apply an augmentation to a batch, to a rank's part of it
    or to a window of many batches, with the same result. The names of the draws are unique to the augmentation, so a
    sequence of augmentations can merge its draws into one mapping.
    """

    #: True if applying it to many images at once is much faster than applying it batch by batch.
    wants_many: bool = False
    #: Names of draws that ``apply`` needs on the CPU because they choose what is computed; the rest go to the device.
    host_draws: frozenset[str] = frozenset()

    @abstractmethod
    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw the random numbers for ``num_samples`` images of ``image_size`` (H, W).

        Returns:
            CPU tensors with ``num_samples`` rows.
        """

    @abstractmethod
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment uint8 images [n, C, H, W] on a device, given n rows of the draws; return uint8 [n, C, H, W].

        The input may be a view of the data set in memory, so it must not be written to. A channels_last input gives a
        channels_last output.
        """

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment the normalised images, float32 [n, C, H, W], with the same draws; may work in place."""
        return images


@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    """Augmentation that leaves the images unchanged."""

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Return no draws."""
        return {}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Return ``images``."""
        return images


@dataclass(frozen=True)
class PadCropFlip(Augmentation):
    """Baseline augmentation: pad each side, crop a random window of the original size, mirror half of the images.

    Args:
        padding: pixels on each side; the window's corner is uniform over the (2 padding + 1)^2 positions.
        padding_mode: ``zeros`` (black, before the normalisation) or ``reflect``
            (without repeating the border, as in the authors' code).
        flip: mirror each image left-right with probability 1/2.

    Raises:
        UserError: padding below zero or, for ``reflect``, not smaller than the image; an unknown padding mode.
    """

    padding: int = 4
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.padding, int) or isinstance(self.padding, bool) or self.padding < 0:
            raise UserError(f"padding={self.padding} must be a whole number of pixels, from 0 on.")
        if self.padding_mode not in ("zeros", "reflect"):
            raise UserError(f"padding_mode={self.padding_mode!r} must be 'zeros' or 'reflect'.")
        if not isinstance(self.flip, bool):
            raise UserError(f"flip={self.flip!r} must be true or false.")

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw ``crop_top`` and ``crop_left``, int64 [N] in [0, 2 padding], and, if flipping, ``flip``, bool [N]."""
        if self.padding_mode == "reflect" and self.padding >= min(image_size):
            raise UserError(f"padding={self.padding} with 'reflect' must be smaller than the image, {image_size}.")

        def corners() -> Tensor:
            return torch.randint(2 * self.padding + 1, (num_samples,), generator=generator)

        draws = {"crop_top": corners(), "crop_left": corners()}
        if self.flip:  # drawn last, so that the crops are the same without flipping
            draws["flip"] = torch.randint(2, (num_samples,), generator=generator, dtype=torch.bool)
        return draws

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Pad each image and its mirror image, then copy the crop out of one of them, a whole row at a time."""
        if not self.padding and not self.flip:
            return images
        if images.device.type == "cpu" and len(images) > IMAGES_AT_ONCE:
            cut = {name: numbers.split(IMAGES_AT_ONCE) for name, numbers in draws.items()}
            parts = enumerate(images.split(IMAGES_AT_ONCE))
            return torch.cat([self.apply(part, {name: cut[name][i] for name in cut}) for i, part in parts])
        left, mirrored = draws["crop_left"], torch.zeros_like(draws["crop_left"])
        if self.flip:
            mirrored = draws["flip"].long()
            left = torch.where(draws["flip"], 2 * self.padding - left, left)
        # In memory an image is C consecutive planes or, in channels_last, one plane whose pixels have C numbers.
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        planes = images.permute(0, 2, 3, 1).unsqueeze(1) if channels_last else images.contiguous().unsqueeze(-1)
        rows = take_rows(self._padded(planes), mirrored, draws["crop_top"], left, planes.shape[2], planes.shape[3])
        return rows.squeeze(1).permute(0, 3, 1, 2) if channels_last else rows.squeeze(-1)

    def _padded(self, planes: Tensor) -> Tensor:
        """Pad [N, K, H, W, E] and, if flipping, stack the mirrored images behind it: [1 or 2, N, K, *, *, E]."""
        height, width = planes.shape[2:4]
        if self.padding_mode == "reflect":
            for dimension, size in ((2, height), (3, width)):
                places = torch.arange(-self.padding, size + self.padding, device=planes.device).abs()
                planes = planes.index_select(dimension, (size - 1) - ((size - 1) - places).abs())
            return torch.stack([planes, planes.flip(3)]) if self.flip else planes[None]
        count, planes_each, _, _, numbers = planes.shape
        around = 2 * self.padding
        padded = planes.new_zeros(1 + self.flip, count, planes_each, height + around, width + around, numbers)
        inside = padded[:, :, :, self.padding : self.padding + height, self.padding : self.padding + width]
        inside[0].copy_(planes)
        if self.flip:
            inside[1].copy_(planes.flip(3))
        return padded


def take_rows(sources: Tensor, source: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Copy crops: ``out[n, k, i, j] = sources[source[n], n, k, top[n] + i, left[n] + j]``.

    ``sources`` is [S, N, K, *, *, E] and the output [N, K, H, W, E]. Each row of a crop is one copy in memory. On a CPU
    this is several times faster than gathering pixels, whose index takes eight times the bytes of the pixels.
    """
    _, num_images, planes, source_height, source_width, numbers = sources.shape
    device = sources.device
    image_and_plane = torch.arange(num_images * planes, device=device).view(num_images, planes)
    first_row = ((source[:, None] * num_images * planes + image_and_plane) * source_height + top[:, None])[:, :, None]
    first_pixel = (first_row + torch.arange(height, device=device)) * source_width + left[:, None, None]
    # Entry p of this view is the row of `width` pixels that begins at pixel p, so entries overlap.
    pixels = sources.numel() // numbers
    rows = sources.as_strided((pixels - width + 1, width * numbers), (numbers, 1))
    return rows.index_select(0, first_pixel.flatten()).view(num_images, planes, height, width, numbers)


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Blank one square per image, clipped at the border. Its centre is uniform over the pixels of the image.

    An image therefore loses at least a quarter of the square, and on average less than the whole. In the published code
    the square reaches from length // 2 above the centre to length // 2 below it; for an even length that is the same
    square.

    Args:
        length: side of the square in pixels. The paper that introduces Cutout uses 16 on CIFAR-10 and 8 on CIFAR-100.
            0 turns it off.
        fill: ``mean`` (zero after normalisation, as in section 3.2 of that paper) or ``black`` (zero before
            normalisation, as in the ISDA authors' code).

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
        """Draw the centres of the squares, int64 [N]: ``cutout_row`` in [0, H) and ``cutout_column`` in [0, W)."""
        return {
            name: torch.randint(size, (num_samples,), generator=generator)
            for name, size in zip(("cutout_row", "cutout_column"), image_size, strict=True)
        }

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Blank a copy of the images if ``fill`` is ``black``; otherwise return ``images``."""
        return self._blank(_dense_copy(images), draws) if self.fill == "black" else images

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Set the square to 0, the mean, in place if ``fill`` is ``mean``; otherwise return ``images``."""
        return self._blank(images, draws) if self.fill == "mean" else images

    def _blank(self, images: Tensor, draws: Draws) -> Tensor:
        """Set the square to 0 in place by index; a mask of the whole image takes twice as long on a CPU."""
        num_images, channels, height, width = images.shape
        around = torch.arange(self.length, device=images.device) - self.length // 2

        def places(centre: Tensor, size: int) -> Tensor:  # clamping repeats border pixels, which are in the square
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
    """Return a dense copy of ``images``, which may be a view, in the same memory format."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return images.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Chain(Augmentation):
    """Sequence of augmentations, applied in the order of the keyword arguments.

    The random numbers are drawn in the same order, so leaving out the last steps does not change the draws of the
    earlier ones.

    Args:
        steps: name=augmentation; a step that is None or false is left out.

    Raises:
        UserError: a step that is neither an augmentation, None nor false.
        ValueError: two steps draw numbers of the same name (raised by ``draw``).
    """

    def __init__(self, **steps: Augmentation | bool | None) -> None:
        self.steps: list[Augmentation] = []
        for name, step in steps.items():
            if isinstance(step, Augmentation):
                self.steps.append(step)
            elif step is not None and step is not False:
                raise UserError(
                    f"augmentation.{name}={step} must be false, which leaves it out, or settings of its own."
                )
        self.wants_many = any(step.wants_many for step in self.steps)
        self.host_draws = frozenset().union(*(step.host_draws for step in self.steps))

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw the numbers of all steps and merge them into one mapping."""
        drawn = [step.draw(num_samples, image_size, generator) for step in self.steps]
        repeated = [name for name, times in Counter(name for draws in drawn for name in draws).items() if times > 1]
        if repeated:
            raise ValueError(f"two augmentations of one chain draw {', '.join(repeated)}")
        return {name: numbers for draws in drawn for name, numbers in draws.items()}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply each step in turn."""
        for step in self.steps:
            images = step.apply(images, draws)
        return images

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply each step's ``apply_normalised`` in turn."""
        for step in self.steps:
            images = step.apply_normalised(images, draws)
        return images
