"""Augmentation in two phases: numbers are drawn for a whole epoch, then applied to batches on the device.

Drawing happens on the CPU for every position of the epoch at once, so what happens to the sample at position p is a
function of (seed, epoch, p). Applying is arithmetic on tensors: no random numbers, no wait for the device. It happens
to the pixels, uint8, and, for what is defined there, once more to the normalised floats.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
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
        """Each image and its mirror image are padded, and each row of the crop is copied as a whole out of one."""
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
        # In memory an image is its planes below each other or, in channels_last, one plane of pixels of C numbers.
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        planes = images.permute(0, 2, 3, 1).unsqueeze(1) if channels_last else images.contiguous().unsqueeze(-1)
        rows = take_rows(self._padded(planes), mirrored, draws["crop_top"], left, planes.shape[2], planes.shape[3])
        return rows.squeeze(1).permute(0, 3, 1, 2) if channels_last else rows.squeeze(-1)

    def _padded(self, planes: Tensor) -> Tensor:
        """[N, K, H, W, E] -> padded, and where there are flips mirrored too: [1 or 2, N, K, *, *, E]."""
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
    """``out[n, k, i, j] = sources[source[n], n, k, top[n] + i, left[n] + j]``; [S, N, K, *, *, E] -> [N, K, H, W, E].

    Each row is one copy out of memory: several times faster on a CPU than a gather of pixels, whose index takes eight
    times the bytes of the pixels.
    """
    _, num_images, planes, source_height, source_width, numbers = sources.shape
    device = sources.device
    image_and_plane = torch.arange(num_images * planes, device=device).view(num_images, planes)
    first_row = ((source[:, None] * num_images * planes + image_and_plane) * source_height + top[:, None])[:, :, None]
    first_pixel = (first_row + torch.arange(height, device=device)) * source_width + left[:, None, None]
    # Entry p of this view is the row that begins at pixel p; they overlap.
    pixels = sources.numel() // numbers
    rows = sources.as_strided((pixels - width + 1, width * numbers), (numbers, 1))
    return rows.index_select(0, first_pixel.flatten()).view(num_images, planes, height, width, numbers)


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


class Chain(Augmentation):
    """Several augmentations, applied in the order in which they are given by name.

    The numbers are drawn in that order too, so leaving the last ones out leaves the draws of the others as they were.

    Args:
        steps: name=augmentation; one that is None or false is left out.

    Raises:
        UserError: a step that is neither an augmentation nor left out.
        ValueError: two steps that draw numbers of the same name.
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
        """The numbers of all steps."""
        drawn = [step.draw(num_samples, image_size, generator) for step in self.steps]
        repeated = [name for name, times in Counter(name for draws in drawn for name in draws).items() if times > 1]
        if repeated:
            raise ValueError(f"two augmentations of one chain draw {', '.join(repeated)}")
        return {name: numbers for draws in drawn for name, numbers in draws.items()}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each step's, in turn."""
        for step in self.steps:
            images = step.apply(images, draws)
        return images

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Each step's, in turn."""
        for step in self.steps:
            images = step.apply_normalised(images, draws)
        return images
