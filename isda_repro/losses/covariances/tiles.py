"""Products of the samples of each class with themselves, for large batches on an accelerator.

The host must not read how many samples a class has. With as many rows for each class as the batch has, the products
cost C N A A multiply-adds. Here each class takes as many tiles of T rows as its samples fill. How many that are in all
is known from the shapes, K = N / T + C at most. Their products cost K T A A, and adding them to the classes' K C A A.

Shapes: N samples, C classes, A features, K tiles of T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import without_autocast

LEAST_ROWS, MOST_ROWS = 16, 256  # of a tile
LEAST_SAMPLES = 2 * LEAST_ROWS  # per class: with fewer, most rows would be empty
LEAST_CLASSES = 4  # tiles have up to two rows for each sample, so that with fewer classes little is saved


def fill_tiles(samples: int, classes: int) -> bool:
    """Return True if tiles need far fewer operations than as many rows for each class as there are samples."""
    return classes >= LEAST_CLASSES and samples >= LEAST_SAMPLES * classes


def add_products(matrix: Tensor, samples: Tensor, targets: Tensor, scale: Tensor, limit: int) -> None:
    """Add to each class's matrix the sum of ``x x^T`` over its samples x, times the class's scale, in place.

    Args:
        matrix: [C, A, A], contiguous.
        samples: [N, A].
        targets: int64 [N] in [0, C).
        scale: [C].
        limit: bytes of products at a time.
    """
    classes, width = matrix.shape[:2]
    rows = max(LEAST_ROWS, min(MOST_ROWS, len(samples) // classes))
    slot_N, class_K = _places(targets, classes, rows)
    tiles_KTA = samples.new_zeros(len(class_K) * rows, width).index_copy_(0, slot_N, samples).view(-1, rows, width)
    share_CK = torch.where(class_K == torch.arange(classes, device=class_K.device)[:, None], scale[:, None], 0)
    step = max(1, limit // (width * width * matrix.element_size()))
    with without_autocast(samples):
        for tiles_LTA, share_CL in zip(tiles_KTA.split(step), share_CK.split(step, dim=1), strict=True):
            matrix.view(classes, -1).addmm_(share_CL, torch.bmm(tiles_LTA.mT, tiles_LTA).flatten(1))


def _places(targets_N: Tensor, classes: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return the row of each sample, [N], and the class of each tile, [K], which is C for a tile without samples."""
    sorted_N, order_N = targets_N.sort(stable=True)
    end_C = torch.searchsorted(sorted_N, torch.arange(classes, device=targets_N.device), right=True)
    count_C = end_C.diff(prepend=end_C.new_zeros(1))
    last_C = ((count_C + (rows - 1)) // rows).cumsum(0)  # the tile after the class's last one
    ahead_C = torch.cat((last_C.new_zeros(1), last_C[:-1])) * rows - (end_C - count_C)  # of the place in the order
    place_N = ahead_C.index_select(0, sorted_N) + torch.arange(len(targets_N), device=targets_N.device)
    tile_K = torch.arange(len(targets_N) // rows + classes, device=targets_N.device)
    return torch.empty_like(place_N).index_copy_(0, order_N, place_N), torch.searchsorted(last_C, tile_K, right=True)
