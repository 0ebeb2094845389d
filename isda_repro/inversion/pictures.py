"""Images in rows and columns that have names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isda_repro.gan.pictures import arranged

TEXT = 15  # pixels high
MARGIN = 4
FRAME = 3
WHITE, BLACK = 255, (0, 0, 0)


def titled(images: Tensor, columns: Sequence[str], rows: Sequence[str], framed: Tensor | None = None) -> Tensor:
    """A picture on white with a line above and names on the left: uint8 [3, height, width].

    Args:
        images: uint8 [rows, columns, 1 or 3, H, W].
        columns: names, each over the first of its columns; an empty one leaves the place to the name before it.
        rows: names.
        framed: bool [rows, columns]: which images have a black frame.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(TEXT)
    sheet = arranged(images)
    height, width = sheet.shape[1:]
    left = max(int(font.getlength(name)) for name in rows) + 2 * MARGIN
    top = TEXT + 2 * MARGIN
    picture = Image.new("RGB", (left + width, top + height), (WHITE,) * 3)
    picture.paste(Image.fromarray(sheet.permute(1, 2, 0).numpy()), (left, top))
    draw = ImageDraw.Draw(picture)
    if framed is not None:
        step_x, step_y = width / images.shape[1], height / images.shape[0]
        for row, column in framed.nonzero().tolist():
            corner = left + column * step_x, top + row * step_y
            draw.rectangle((*corner, corner[0] + step_x, corner[1] + step_y), outline=BLACK, width=FRAME)
    for index, name in enumerate(columns):
        draw.text((left + index * width / len(columns) + MARGIN, MARGIN), name, BLACK, font)
    for index, name in enumerate(rows):
        middle = top + (index + 0.5) * height / len(rows)
        draw.text((left - MARGIN, middle), name, BLACK, font, anchor="rm")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)
