"""Sort the samples of a batch by class, as the Triton kernels of ISDA read them.

Shapes: N samples, C classes, U = min(N, C) rows; ``kernels.py`` says which class a row belongs to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 32  # samples and classes that one program sorts
WIDE = 128  # samples that a program compares with its own at a time


class SortedBatch(NamedTuple):
    """A batch and the order of its samples by class.

    Attributes:
        targets: int64 [N], the class of each sample; negative if the sample is ignored.
        order: int32 [N], the indices of the samples sorted by class, stably; ignored samples come first.
        starts: int32 [C + 1]; the samples of class c are ``order[starts[c]:starts[c + 1]]``.
    """

    targets: Tensor
    order: Tensor
    starts: Tensor

    @property
    def rows(self) -> int:
        """U, the number of rows that the kernels compute."""
        return min(len(self.targets), len(self.starts) - 1)

    @property
    def row_is_class(self) -> bool:
        """True if there are C rows and row c belongs to class c; otherwise rows follow the sorted samples."""
        return self.rows == len(self.starts) - 1


def sort_by_class(targets: Tensor, num_classes: int, count: Tensor | None = None) -> SortedBatch:
    """Sort the samples of a batch by class without a wait of the host.

    Args:
        targets: int64 [N], in [0, num_classes), or negative for ignored samples.
        num_classes: C.
        count: float64 [C], incremented in place by the number of samples of each class; None: nothing is counted.
    """
    targets = targets.contiguous()
    order = targets.new_empty(len(targets), dtype=torch.int32)
    starts = targets.new_empty(num_classes + 1, dtype=torch.int32)
    grid = (triton.cdiv(len(targets) + num_classes + 1, QUERIES),)
    _sort_by_class[grid](targets, order, starts, count, len(targets), num_classes, QUERIES, WIDE)
    return SortedBatch(targets, order, starts)


@triton.jit
def _sort_by_class(
    targets: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    count: tl.tensor,
    samples: tl.tensor,
    classes: tl.tensor,
    QUERIES: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """Count the samples before each sample and before each of C + 1 classes: that count is its place in the order."""
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    is_sample, label = query < samples, query - samples
    key = tl.where(is_sample, tl.load(targets + query, mask=is_sample, other=0).to(tl.int32), label)
    position = tl.where(is_sample, query, 0)
    before, alike = tl.zeros([QUERIES], tl.int32), tl.zeros([QUERIES], tl.int32)
    for start in range(0, samples, SIZE):
        other = start + tl.arange(0, SIZE)
        target = tl.load(targets + other, mask=other < samples, other=2**31 - 1).to(tl.int32)
        is_alike = target[None, :] == key[:, None]
        is_before = (target[None, :] < key[:, None]) | (is_alike & (other[None, :] < position[:, None]))
        before += tl.sum(is_before.to(tl.int32), 1)
        alike += tl.sum(is_alike.to(tl.int32), 1)
    tl.store(order + before, query, mask=is_sample)
    tl.store(starts + label, before, mask=(query >= samples) & (label <= classes))
    if count is not None:
        is_class = (query >= samples) & (label < classes)
        tl.store(count + label, tl.load(count + label, mask=is_class, other=0) + alike, mask=is_class)


@triton.jit
def class_of(
    row: tl.tensor, targets: tl.tensor, order: tl.tensor, starts: tl.tensor, ROW_IS_CLASS: tl.constexpr
) -> tl.tensor:
    """Return the class of a row and the range of its samples in ``order``, which is empty for an absent class."""
    if ROW_IS_CLASS:
        label = row.to(tl.int64)
        first, last = tl.load(starts + label), tl.load(starts + label + 1)
    else:
        label = tl.maximum(tl.load(targets + tl.load(order + row)), 0)
        first, last = tl.load(starts + label), tl.load(starts + label + 1)
        last = tl.where(first == row, last, first)
    return label, first, last
