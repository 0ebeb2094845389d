"""Symmetric matrices in half the memory: their triangles, laid into rectangles of which blocks can be copied.

LAPACK's "rectangular full packed" layout, which needs no table of indices. With h = A/2, the matrix [[P, S^T], [S, Q]]
becomes [A + 1, h]: rows 1 to A hold P and S, of P the lower triangle; in what the upper one would take, and in row 0,
lies the upper triangle of Q. An odd A is taken as A + 1, with a last row and column of zeros.

Shapes: ... any number of leading dimensions, A the size of a matrix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_shape(size: int) -> tuple[int, int]:
    """The rectangle for matrices of size A."""
    even = size + size % 2
    return even + 1, even // 2


def pack(square: Tensor) -> Tensor:
    """Symmetric matrices [..., A, A] -> [..., A + 1, A / 2]; only one triangle is looked at."""
    if square.shape[-1] % 2:
        square = F.pad(square, (0, 1, 0, 1))
    size = square.shape[-1]
    half = size // 2
    rectangle = square.new_empty(*square.shape[:-2], size + 1, half)
    rectangle[..., 1:, :] = square[..., :, :half]
    is_upper = torch.ones(half, half, dtype=torch.bool, device=square.device).triu()
    top = rectangle[..., :half, :]
    top.copy_(torch.where(is_upper, square[..., half:, half:], top))
    return rectangle


def unpack(rectangle: Tensor, size: int) -> Tensor:
    """What ``pack`` was given: [..., A + 1, A / 2] -> [..., A, A]."""
    half = rectangle.shape[-1]
    square = rectangle.new_empty(*rectangle.shape[:-2], 2 * half, 2 * half)
    lower, upper = rectangle[..., 1 : half + 1, :].tril(), rectangle[..., :half, :].triu()
    rest = rectangle[..., half + 1 :, :]
    square[..., :half, :half] = lower + lower.tril(-1).mT
    square[..., half:, half:] = upper + upper.triu(1).mT
    square[..., half:, :half] = rest
    square[..., :half, half:] = rest.mT
    return square[..., :size, :size]
