"""Sheets of images: uint8 tensors arranged in a grid on white, and written as PNG."""

from __future__ import annotations

import io
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from isda_repro.files import write_output

GAP = 2  # pixels between images, before enlarging
ENLARGED_TO = 64  # approximate height of an image in the sheet, in pixels
WHITE = 255


def arrange(images: Tensor) -> Tensor:
    """Arrange images uint8 [rows, columns, 1 or 3, H, W] on white as one picture, uint8 [3, height, width]."""
    apart = F.pad(images.expand(-1, -1, 3, -1, -1), (GAP, 0, GAP, 0), value=WHITE)
    sheet = F.pad(apart.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), (0, GAP, 0, GAP), value=WHITE)
    enlarged = enlargement(images.shape[3])
    return sheet.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2)


def enlargement(height: int) -> int:
    """Return the integer factor by which images of this height are enlarged."""
    return max(1, ENLARGED_TO // height)


def write_picture(path: Path, picture: Tensor, is_own_place: bool = False) -> None:
    """Write a picture uint8 [3, height, width] as PNG. ``is_own_place`` is explained in ``write_output``."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(stream, format="PNG", optimize=True)
    write_output(path, stream.getvalue(), is_own_place)
