"""Decoding, cropping and scaling of image files to pixels of one size.

Worker processes do this image by image, because files differ in size; everything after it runs in batches on the
device. Pillow decodes, except for ordinary JPEG files, which simplejpeg decodes faster with the same library and to the
same pixels. torchvision scales uint8 pixels, several times faster than Pillow and within one grey level of it.
"""

import errno
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isda_repro.errors import UserError

ATTEMPTS = 10  # tries to draw a crop that fits before falling back to the centre, as in torchvision's RandomResizedCrop
PPM_HEADER = re.compile(rb"P6\n([1-9]\d{0,8}) ([1-9]\d{0,8})\n255\n")
JPEG_BEGINS = b"\xff\xd8\xff"
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (),  # read under a wrong name only: a .gif file is mostly an animation
}
"""Formats that are decoded, and the extensions of the files that are used. Pillow is not asked for any other format."""

MAX_PIXELS = 2**27  # 400 MB as RGB; more than any camera takes, except panoramas and the largest of telephones
MAX_FILE_BYTES = 2**30
LONGEST = 1000  # times the shorter side: scaling the shorter side to 256 pixels makes a longer strip fill the memory
MAX_SCANNED = 20 * MAX_PIXELS  # each scan of a progressive JPEG goes over all pixels; there are usually about 10
SCAN, SCAN_BYTES = b"\xff\xda", 12  # the marker that a scan begins with, and the least number of bytes that it has
DARK = 16  # an image of 16 bits whose levels are all below this share of 256 would be almost black
Box = tuple[int, int, int, int]  # top, left, height, width


class UnreadableError(Exception):
    """The bytes are not an image, or a damaged one; the message is a phrase that gives the reason."""


def unreadable_because(error: UnreadableError | OSError) -> str:
    """Return why an image cannot be read.

    Raises:
        OSError: the error itself, if too many files are open: it says nothing about the image.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise error
    return str(error)


@dataclass(frozen=True)
class Crop:
    """Crop of an image, scaled to a square of ``size`` pixels.

    Args:
        size: side of the output in pixels.
        kind: ``random_resized``, a random part of the image, drawn anew in each epoch; or ``center``, the centre of the
            image after its shorter side has been scaled to ``resize``.
        resize: shorter side for ``center``; None is 8/7 of ``size``, for example 256 for 224.
        scale: smallest and largest share of the image's area, for ``random_resized``.
        ratio: smallest and largest aspect ratio (width over height), for ``random_resized``.
        flip: mirror left-right with probability 1/2; it costs nothing here.

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
        """Crop and scale pixels uint8 [H, W, 3] to uint8 [size, size, 3]."""
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
        """Shorter side of the image before a ``center`` crop, in pixels."""
        return self.resize or round(self.size * 8 / 7)

    def box(self, height: int, width: int, generator: torch.Generator) -> Box:
        """Draw a random box as torchvision's RandomResizedCrop does: area and aspect ratio first, then the position."""
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
    """Return the largest centred box whose aspect ratio is within ``ratio``."""
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        crop_width = max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def shorter_side(height: int, width: int, length: int) -> tuple[int, int]:
    """Return (height, width) scaled to a shorter side of ``length``, rounded down as torchvision's Resize does."""
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def scaled(image: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """Scale a box of the image uint8 [H, W, 3] bilinearly with antialiasing; return uint8 [*size, 3]."""
    from torchvision.transforms.v2 import functional

    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    if (height, width) == size:
        return part
    # Contiguous, because otherwise torchvision converts to planes, which makes scaling and later steps slower.
    resized: Tensor = functional.resize_image(part.contiguous().permute(2, 0, 1), list(size), antialias=True)
    return resized.permute(1, 2, 0)


def decoded(content: bytes | bytearray) -> Tensor:
    """Decode an image file's content to pixels, uint8 [H, W, 3], by the rules of ``RULES``.

    Raises:
        UnreadableError: the content is not an image of ``FORMATS``, is damaged, has more than ``MAX_PIXELS`` pixels or
            a side ``LONGEST`` times the other, or has levels that cannot be converted to 8 bits by a rule.
    """
    for decode in (_packed_pixels, _ordinary_jpeg):
        if (pixels := decode(content)) is not None:
            return pixels
    with _opened(content) as image:
        pixels_HW3 = _converted(image, _shift(image))
    return torch.from_numpy(pixels_HW3)


@contextmanager
def _opened(content: bytes | bytearray) -> Iterator[Any]:
    """Open an image with Pillow, and turn every error in the block into an ``UnreadableError``."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
            _check_size(image.height, image.width, content)
            yield image
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        known = f"it is not a {', '.join(FORMATS)} image"
        raise UnreadableError(known if content else "the file is empty") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"it has more than {MAX_PIXELS:,} pixels, which is the limit") from error
    except Exception as error:  # Pillow's decoders raise many types of exceptions
        text = " ".join(str(error).split())
        reason = text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
        raise UnreadableError(reason or type(error).__name__) from error


def _check_size(height: int, width: int, content: bytes | bytearray) -> None:
    """Check the size that an image's header states, before memory is allocated for its pixels.

    Raises:
        UnreadableError: the image is too large or too long.
    """
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise UnreadableError(f"it has {width:,} x {height:,} pixels, and the limit is {MAX_PIXELS:,}")
    if max(height, width) > LONGEST * min(height, width):
        raise UnreadableError(
            f"it has {width:,} x {height:,} pixels: one side is more than {LONGEST:,} times the other"
        )
    may_be_many = content.startswith(JPEG_BEGINS) and pixels * len(content) // SCAN_BYTES > MAX_SCANNED
    if may_be_many and pixels * (scans := content.count(SCAN)) > MAX_SCANNED:
        raise UnreadableError(f"it is a JPEG file that goes over {pixels:,} pixels in {scans:,} scans")


def _packed_pixels(content: bytes | bytearray) -> Tensor | None:
    """Return a view of the pixels of a PPM file as ``packing.py`` writes it; None for any other file.

    Raises:
        UnreadableError: the image is too large or too long.
    """
    header = PPM_HEADER.match(content) if isinstance(content, bytearray) else None
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    if len(content) - header.end() != height * width * 3:
        return None
    _check_size(height, width, content)
    return torch.frombuffer(content, dtype=torch.uint8, offset=header.end()).view(height, width, 3)


def _ordinary_jpeg(content: bytes | bytearray) -> Tensor | None:
    """Return the pixels of an undamaged colour (YCbCr) JPEG file; None for any other file.

    Raises:
        UnreadableError: the image is too large or too long.
    """
    import simplejpeg

    if not content.startswith(JPEG_BEGINS):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours != "YCbCr":
            return None
        _check_size(height, width, content)
        return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB"))
    except ValueError:
        return None  # Pillow reads more variants, tolerates more, and has better error messages


# --------------------------------------------------------------------------------- images that are no 8-bit photographs

RULES = {
    "grey levels": "repeated in all three channels",
    "1 bit per pixel": "black and white",
    "a palette": "its colours are used",
    "CMYK": "converted to RGB without a colour profile",
    "another colour space": "converted to RGB by Pillow",
    "transparency": "dropped: the colours below it are used",
    "16 bits per level": "the upper byte is kept",
    "several frames": "the first one is used",
    "EXIF orientation": "ignored, as ImageFolder does: rotate the files if it matters (Pillow turns TIFF files itself)",
}
"""Peculiarities of images, and the rule by which each is read; pixels are those of torchvision's ImageFolder, except
that ImageFolder clips most levels of 16 bits to white."""

SPACES = {"L": "grey levels", "LA": "grey levels", "1": "1 bit per pixel", "P": "a palette", "PA": "a palette"}
SPACES |= {"CMYK": "CMYK", "RGB": "", "RGBA": "", "RGBX": "", "RGBa": "", "La": "grey levels"}
ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")


def peculiarities(content: bytes | bytearray) -> tuple[str, list[str]]:
    """Return the format of an image, and the keys of ``RULES`` that apply to it.

    Raises:
        UnreadableError: the content cannot be opened as an image.
    """
    with _opened(content) as image:
        deep, levels = _shift(image) > 0, "grey levels" if image.mode.startswith("I") else "another colour space"
        found = {
            SPACES.get(image.mode, levels): True,
            "transparency": image.mode in ALPHA or "transparency" in image.info,
            "16 bits per level": deep,
            "several frames": getattr(image, "n_frames", 1) > 1,
            "EXIF orientation": image.getexif().get(EXIF_ORIENTATION, 1) != 1,
        }
        kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG file with a second picture in it
    return kind, [name for name, applies in found.items() if name and applies]


EXIF_ORIENTATION = 0x0112


def _shift(image: Any) -> int:
    """Return by how many bits an image's levels exceed 8; call it before the pixels are loaded, which forgets them."""
    raw = str([tile[3] for tile in image.tile])  # e.g. RGB;16B
    if "I;12" in raw:
        return 4
    return 8 if ";16" in raw or image.mode.startswith("I") else 0


def _converted(image: Any, shift: int) -> np.ndarray[Any, Any]:
    """Convert a Pillow image, whose levels exceed 8 bits by ``shift``, to pixels uint8 [H, W, 3].

    Raises:
        UnreadableError: the result would not show what the image does.
    """
    if image.mode == "F":
        raise UnreadableError("its levels are floating-point numbers without a stated range: save it with 8 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if image.mode == "I" and not 0 <= levels.min() <= levels.max() < 2**16:
            raise UnreadableError("its levels are integers outside of 0 to 65,535: save it with 8 bits")
        pixels = np.repeat((levels >> shift).astype(np.uint8)[:, :, None], 3, axis=2)
    else:
        coloured = image if image.mode == "RGB" else image.convert("RGB")
        _check_drawing(image, coloured)
        pixels = np.array(coloured)
    if shift and pixels.max() < DARK:
        raise UnreadableError(
            f"its {8 + shift}-bit levels only use the lowest sixteenth of their range, so that it would be almost "
            "black: scale its levels and save it with 8 bits"
        )
    return pixels


def _check_drawing(image: Any, coloured: Any) -> None:
    """Refuse an image that shows something only by its transparency: without it, all pixels have one colour.

    Raises:
        UnreadableError: it is such an image.
    """
    if image.mode not in ALPHA and not (image.mode == "P" and "transparency" in image.info):
        return
    if all(low == high for low, high in coloured.getextrema()):
        low, high = image.convert("RGBA").getchannel("A").getextrema()
        if low != high:
            raise UnreadableError("all its pixels have one colour, and only their transparency differs: save it as RGB")
