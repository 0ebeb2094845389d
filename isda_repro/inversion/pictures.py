"""Images in rows and columns that have names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isda_repro.gan.pictures import GAP, arranged, enlargement

TEXT = 13  # pixels high
MARGIN = 4
FRAME = 3  # pixels, in the gap around the image
WHITE, BLACK = 255, (0, 0, 0)


def titled(images: Tensor, columns: Sequence[str], rows: Sequence[str], framed: Tensor | None = None) -> Tensor:
    """A picture on white with a line above and names on the left: uint8 [3, height, width].

    Args:
        images: uint8 [rows, columns, 1 or 3, H, W].
        columns: names, each over the first of its columns; an empty one leaves the place to the name before it.
        rows: names.
        framed: bool [rows, columns]: which images have a black frame.
    """
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), TEXT)  # comes with matplotlib, and has Greek
    sheet = arranged(images)
    enlarged = enlargement(images.shape[3])
    gap, (step_y, step_x) = GAP * enlarged, ((side + GAP) * enlarged for side in images.shape[3:])
    height, width = sheet.shape[1:]
    left = max(int(font.getlength(name)) for name in rows) + 2 * MARGIN
    top = TEXT + 2 * MARGIN
    picture = Image.new("RGB", (left + width, top + height), (WHITE,) * 3)
    picture.paste(Image.fromarray(sheet.permute(1, 2, 0).numpy()), (left, top))
    draw = ImageDraw.Draw(picture)
    if framed is not None:
        for row, column in framed.nonzero().tolist():
            x, y = left + gap + column * step_x, top + gap + row * step_y
            box = (x - FRAME, y - FRAME, x + step_x - gap + FRAME - 1, y + step_y - gap + FRAME - 1)
            draw.rectangle(box, outline=BLACK, width=FRAME)
    for index, name in enumerate(columns):
        draw.text((left + gap + index * step_x, MARGIN), name, BLACK, font)
    for index, name in enumerate(rows):
        middle = top + gap + index * step_y + (step_y - gap) / 2
        draw.text((left - MARGIN, middle), name, BLACK, font, anchor="rm")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)
