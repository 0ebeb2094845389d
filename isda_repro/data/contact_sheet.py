"""Images side by side, to be looked at: each row an image, first as it is on disk, then as it is trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from isda_repro.data.loader import Loader

GAP = 2  # pixels between images, before they are enlarged
WHITE = 255


def contact_sheet(
    evaluated: Loader,
    trained: Loader,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    versions: int,
    enlarged: int,
) -> Tensor:
    """Images below each other, first as they are, then ``versions`` augmented ones of each: uint8 [3, height, width].

    Args:
        evaluated: gives the images as they are evaluated, in one batch.
        trained: gives the same images in the same order as they are trained on; each version is an epoch of it.
        mean, std: of both, by which normalised floats become pixels again.
        versions: how many.
        enlarged: each pixel becomes a square of so many.
    """
    batches = [evaluated.epoch(0), *(trained.epoch(epoch) for epoch in range(versions))]
    columns = [_pixels(next(batch)[0].cpu(), mean, std) for batch in batches]
    return _arranged(torch.stack(columns, dim=1), enlarged)


def _pixels(normalised: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(list(numbers))[:, None, None] for numbers in (mean, std))
    return ((normalised * std_C11 + mean_C11) * 255).round().clamp(0, 255).to(torch.uint8)


def _arranged(images: Tensor, enlarged: int) -> Tensor:
    """uint8 [rows, columns, 3, H, W] -> one picture on white, a wider gap after the first column."""
    rows, columns, channels, height, width = images.shape
    first = 2 * GAP  # more
    sheet = torch.full((channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP + first), WHITE)
    sheet = sheet.to(torch.uint8)
    for row in range(rows):
        for column in range(columns):
            top = GAP + row * (height + GAP)
            left = GAP + column * (width + GAP) + (first if column else 0)
            sheet[:, top : top + height, left : left + width] = images[row, column]
    return sheet.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2)
