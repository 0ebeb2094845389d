"""An image file's bytes become pixels of one size: decoded, cropped, scaled.

This is what worker processes do, image by image, because files differ in size; all that follows happens in batches on
the device. Decoding is Pillow's, or for ordinary JPEG files simplejpeg's, which has the same library inside, gives the
same pixels and is faster; scaling is torchvision's on uint8 (several times faster than Pillow's, and within one grey
level of it).
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isda_repro.errors import UserError

ATTEMPTS = 10  # at a crop that fits, before the middle of the image is taken, as torchvision's RandomResizedCrop does
PPM_HEADER = re.compile(rb"P6\n(\d{1,9}) (\d{1,9})\n255\n")
JPEG_BEGINS = b"\xff\xd8\xff"
Box = tuple[int, int, int, int]  # top, left, height, width


class UnreadableError(Exception):
    """Bytes that are no image, or a damaged one; the reason, in a phrase."""


@dataclass(frozen=True)
class Crop:
    """What is taken out of an image, and the size that it gets.

    Args:
        size: the sides of the square that comes out, in pixels.
        kind: ``random_resized``, a random part of the image, anew in each epoch; or ``center``, the middle of the image
            after its shorter side has been scaled to ``resize``.
        resize: for ``center``; None is 8/7 of the size, 256 for 224.
        scale: for ``random_resized``: share of the image's area, least and most.
        ratio: likewise: width over height, least and most.
        flip: whether to mirror left-right with probability 1/2; it costs nothing here.

    Raises:
        UserError: numbers out of range, or an unknown kind.
    """

    size: int
    kind: Literal["random_resized", "center"] = "random_resized"
    resize: int | None = None
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("random_resized", "center"):
            raise UserError(f"The crop {self.kind!r} must be 'random_resized' or 'center'.")
        for name, value in (("image size", self.size), ("resize", self.size if self.resize is None else self.resize)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"The {name} {value!r} must be a whole number of pixels.")
        if self.resize is not None and self.resize < self.size:
            raise UserError(f"resize={self.resize} is smaller than the {self.size} pixels that are taken out then.")
        if not isinstance(self.flip, bool):
            raise UserError(f"The crop's flip={self.flip!r} must be true or false.")
        for name, highest in (("scale", 1.0), ("ratio", math.inf)):
            object.__setattr__(self, name, _rising_pair(name, getattr(self, name), highest))

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels uint8 [H, W, 3] -> uint8 [size, size, 3]."""
        height, width = image.shape[:2]
        if self.kind == "random_resized":
            cropped = scaled(image, self.box(height, width, generator), (self.size, self.size))
        else:
            shorter = scaled(image, (0, 0, height, width), shorter_side(height, width, self.resized))
            top, left = (round((side - self.size) / 2) for side in shorter.shape[:2])
            cropped = shorter[top : top + self.size, left : left + self.size]
        return cropped.flip(1) if self.flip and torch.rand((), generator=generator) < 0.5 else cropped

    @property
    def resized(self) -> int:
        """The shorter side, for ``center``."""
        return self.resize or round(self.size * 8 / 7)

    def box(self, height: int, width: int, generator: torch.Generator) -> Box:
        """Where a random part of the image is: torchvision's rule, area and shape first, then the place."""
        numbers = torch.rand(2 * ATTEMPTS + 2, generator=generator, dtype=torch.float64).tolist()
        low, high = (math.log(ratio) for ratio in self.ratio)
        for attempt in range(ATTEMPTS):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * numbers[2 * attempt])
            ratio = math.exp(low + (high - low) * numbers[2 * attempt + 1])
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(numbers[-2] * (height - crop_height + 1))
                left = int(numbers[-1] * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        return _middle(height, width, self.ratio)


def _rising_pair(name: str, pair: object, highest: float) -> tuple[float, float]:
    numbers = tuple(pair) if isinstance(pair, Sequence) else ()
    if all(isinstance(number, int | float) for number in numbers) and len(numbers) == 2:
        low, high = numbers
        if 0 < low <= high <= highest:
            return low, high
    raise UserError(f"The crop's {name} {pair} must be two rising numbers above 0, up to {highest:g}.")


def _middle(height: int, width: int, ratio: Sequence[float]) -> Box:
    """The largest part in the middle whose shape is allowed."""
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def shorter_side(height: int, width: int, length: int) -> tuple[int, int]:
    """Height and width after the shorter of them has become ``length``, rounded down as torchvision's Resize does."""
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def scaled(image: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """A part of uint8 [H, W, 3], scaled bilinearly with antialiasing: uint8 [*size, 3]."""
    from torchvision.transforms.v2 import functional

    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    if (height, width) == size:
        return part
    # A dense part: of others it would make planes, which is slower by itself and when they become pixels again.
    resized: Tensor = functional.resize_image(part.contiguous().permute(2, 0, 1), list(size), antialias=True)
    return resized.permute(1, 2, 0)


def decoded(content: bytes | bytearray) -> Tensor:
    """An image file's content -> its pixels, uint8 [H, W, 3]; grey, palette and CMYK become red, green and blue.

    16-bit grey levels lose their lower byte. The orientation that a camera notes is not followed: torchvision's
    ImageFolder does not follow it either, and published weights are trained on such pixels.

    Raises:
        UnreadableError: no image, or a damaged one.
    """
    from PIL import Image

    for quick in (_packed_pixels, _ordinary_jpeg):
        if (pixels := quick(content)) is not None:
            return pixels
    try:
        with Image.open(io.BytesIO(content)) as image:
            return torch.from_numpy(np.array(_coloured(image)))
    except Exception as error:  # Pillow's decoders raise whatever their formats make them
        text = str(error).replace("\n", " ") if content else "the file is empty"
        raise UnreadableError(text if isinstance(error, OSError) else f"{type(error).__name__}: {text}") from error


def _packed_pixels(content: bytes | bytearray) -> Tensor | None:
    """Those of a file as ``packing.py`` writes it, without a copy; None of others."""
    header = PPM_HEADER.match(content) if isinstance(content, bytearray) else None
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    if len(content) - header.end() != height * width * 3:
        return None
    return torch.frombuffer(content, dtype=torch.uint8, offset=header.end()).view(height, width, 3)


def _ordinary_jpeg(content: bytes | bytearray) -> Tensor | None:
    """The pixels of a JPEG file in colour that nothing is wrong with; None otherwise."""
    import simplejpeg

    if not content.startswith(JPEG_BEGINS):
        return None
    try:
        if simplejpeg.decode_jpeg_header(content)[2] != "YCbCr":
            return None
        return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB"))
    except ValueError:
        return None  # Pillow knows more kinds, forgives more, and says better what is wrong


def _coloured(image: Any) -> Any:
    """A Pillow image -> the same in RGB."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
