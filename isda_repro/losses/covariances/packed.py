"""Packed full covariances, for sizes where square matrices do not fit; each process may hold a part of them.

Those of ImageNet (C = 1000, A = 2048) take 8.4 GB instead of 16.8, and 8.4 / W GB on each of W processes. Matrices are
unpacked a few at a time, and only those of the classes in a batch.

The layout is LAPACK's "rectangular full packed", which needs no table of indices. With h = A/2, the matrix
[[P, S^T], [S, Q]] becomes [A + 1, h]. Rows 1 to A hold P and S, but only the lower triangle of P. The space of its
upper triangle, together with row 0, holds the upper triangle of Q. An odd A is padded to A + 1 with a last row and
column of zeros.

Shapes: N samples, C classes, A features, U rows: one for each class of the batch, K of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from isda_repro.losses.batch_classes import (
    IGNORED,
    BatchClasses,
    bytes_of,
    classes_present,
    is_asynchronous,
    rows_of_fixed_number,
    without_unsound,
)
from isda_repro.losses.covariances.class_statistics import (
    ClassStatistics,
    ClassVariances,
    at_least_tiny,
    only,
    rows_bytes,
    samples_of_each,
    without_ignored,
)
from isda_repro.losses.covariances.soft_rows import merge_soft
from isda_repro.losses.state import StatefulModule, state_dtype


def packed_shape(size: int) -> tuple[int, int]:
    """Return the shape of a packed matrix of size ``size``."""
    even = size + size % 2
    return even + 1, even // 2


def pack(square: Tensor) -> Tensor:
    """Pack symmetric matrices [..., A, A] -> [..., A + 1, A / 2] (odd A: as A + 1), reading one triangle only."""
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
    """Undo ``pack``: [..., A + 1, A / 2] -> [..., A, A], where A is ``size``."""
    half = rectangle.shape[-1]
    square = rectangle.new_empty(*rectangle.shape[:-2], 2 * half, 2 * half)
    lower, upper = rectangle[..., 1 : half + 1, :].tril(), rectangle[..., :half, :].triu()
    rest = rectangle[..., half + 1 :, :]
    square[..., :half, :half] = lower + lower.tril(-1).mT
    square[..., half:, half:] = upper + upper.triu(1).mT
    square[..., half:, :half] = rest
    square[..., :half, half:] = rest.mT
    return square[..., :size, :size]


def _part(num_classes: int, group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return the number of classes of each process of ``group``, and the first class of this process."""
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    each = -(-num_classes // world)
    return each, min(num_classes, rank * each)


CPU_CHUNK_BYTES = 2**24  # bytes of matrices that are unpacked at a time
ACCELERATOR_CHUNK_BYTES = 2**28


class PackedStatistics(StatefulModule):
    """``ClassStatistics`` with packed covariances, which may be divided among processes.

    Mean [C, A] and count [C] are the same as there, on every process.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A. The covariances take 2 C A (A + 1) bytes, divided by the number of
            processes.
        group: processes among which the classes are divided, in ranges of equal length; None: this process alone.
    """

    exact: ClassVar[tuple[str, ...]] = ("count",)

    mean: Tensor
    packed: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.each, self.first = _part(num_classes, group)
        self.own = min(num_classes, self.first + self.each) - self.first
        self.own_range = slice(self.first, self.first + self.own)
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim, dtype=state_dtype()))
        self.register_buffer("packed", torch.zeros(self.own, *packed_shape(feature_dim), dtype=state_dtype()))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))
        self.process_group = group

    def _check_group(self, group: dist.ProcessGroup | None) -> None:
        """Check that this process has the same classes in another group, as it has to after unpickling."""
        super()._check_group(group)
        if _part(len(self.count), group) != (self.each, self.first):
            raise ValueError(
                f"the covariances of classes {self.first} to {self.first + self.own - 1} are here, which are not this "
                "process's part in the new process_group: make a new ISDALoss and load whole_state_dict() into it"
            )

    def covariance_of(self, class_number: int) -> Tensor:
        """Return the covariance [A, A] of a class, on the process that holds it.

        Raises:
            IndexError: another process holds it.
        """
        if not 0 <= class_number - self.first < self.own:
            raise IndexError(f"class {class_number} is not here, but {self.first} to {self.first + self.own - 1} are")
        return unpack(self.packed[class_number - self.first], self.mean.shape[1])

    def _is_own(self, targets: Tensor) -> Tensor:
        return (targets >= self.first) & (targets < self.first + self.own)

    def own_classes(self, targets: Tensor) -> BatchClasses:
        """Return the classes of a batch that this process holds, numbered from its first class.

        Samples of other classes point to any row.
        """
        is_own = self._is_own(targets)
        shifted = targets - self.first
        if is_asynchronous(targets):
            return rows_of_fixed_number(torch.where(is_own, shifted, IGNORED), self.own)
        batch = classes_present(shifted[is_own], self.own)
        return BatchClasses(batch.classes_U, batch.row_N.new_zeros(len(targets)).masked_scatter(is_own, batch.row_N))

    def chunks(self, batch: BatchClasses) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows with the unpacked covariances [K, A, A] of their classes."""
        size = self.mean.shape[1]
        for here in self._slices(batch):
            yield here, unpack(batch.take(self.packed, here), size)

    def _slices(self, batch: BatchClasses, centred_NA: Tensor | None = None) -> Iterator[slice]:
        """Return slices of rows whose matrices are unpacked together, or which get rows of samples together."""
        rows = self.own if batch.classes_U is None else len(batch.classes_U)
        limit = ACCELERATOR_CHUNK_BYTES if is_asynchronous(self.packed) else CPU_CHUNK_BYTES
        step = max(1, limit // (self.mean.shape[1] ** 2 * self.packed.element_size()))
        if centred_NA is not None:
            step = max(1, min(step, rows_bytes(centred_NA) // max(1, bytes_of(centred_NA))))
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def whole_state_dict(self) -> dict[str, Tensor] | None:
        """Return a ``state_dict`` with the covariances of all processes on the CPU of rank 0, and None elsewhere.

        All processes must call it. ``load_state_dict`` accepts the result on any number of processes, each of which
        takes its own part.
        """
        group = self.process_group
        if group is None:
            return {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        first = dist.get_rank(group) == 0
        classes = len(self.count)
        whole = torch.empty(classes, *self.packed.shape[1:], dtype=self.packed.dtype) if first else None
        for start in range(0, classes, self.each):  # all processes receive one process's part at a time
            part = self.packed.new_empty(min(self.each, classes - start), *self.packed.shape[1:])
            if start == self.first:
                part.copy_(self.packed)
            dist.broadcast(part, group=group, group_src=start // self.each)
            if whole is not None:
                whole[start : start + len(part)] = part
        return None if whole is None else {"mean": self.mean.cpu(), "packed": whole, "count": self.count.cpu()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        packed = state_dict.get(f"{prefix}packed")
        if isinstance(packed, Tensor) and len(packed) == len(self.count):
            state_dict = {**state_dict, f"{prefix}packed": packed[self.own_range]}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Merge a batch of all processes into the statistics, in place; see ``ClassStatistics.update``."""
        if targets.is_floating_point():
            self._update_soft(features, targets)
            return
        features, targets = without_unsound(features, targets, self.mean.dtype)
        batch_count_C = samples_of_each(targets, len(self.count))
        self.count += batch_count_C
        total_C = at_least_tiny(self.count.to(self.mean.dtype))
        batch = self.own_classes(targets)
        features, known, counts_N1 = without_ignored(features.to(self.mean.dtype), targets)
        centred_NA = only(counts_N1, features - self.mean.index_select(0, known))
        moved_CA = torch.zeros_like(self.mean).index_add_(0, known, centred_NA).div_(total_C[:, None])
        self.mean += moved_CA
        centred_NA -= only(counts_N1, moved_CA.index_select(0, known))
        before_C = total_C - batch_count_C
        shift_CA = moved_CA.mul_(before_C.sqrt()[:, None])
        shift_UA, total_U, added_U = (batch.take(one[self.own_range]) for one in (shift_CA, total_C, batch_count_C))
        is_there_U = self.is_there(batch, targets)
        for here in self._slices(batch, centred_NA):
            rows_KRA = self._rows(centred_NA, shift_UA[here], targets, batch, here)
            scatter = pack(torch.bmm(rows_KRA.mT, rows_KRA))
            factor_K11 = (is_there_U[here] / total_U[here])[:, None, None]
            self._add(batch, here, scatter, factor_K11, factor_K11 * added_U[here, None, None])

    def _update_soft(self, features: Tensor, probabilities: Tensor) -> None:
        most = next(self._slices(BatchClasses(None, probabilities)), slice(0, 1)).stop
        for here, keep_K, rows_KRA in merge_soft(features, probabilities, self.mean, self.count, most):
            start, stop = max(here.start, self.first), min(here.stop, self.first + self.own)
            if start < stop:  # otherwise another process has the classes
                chosen = slice(start - here.start, stop - here.start)
                scatter = pack(torch.bmm(rows_KRA[chosen].mT, rows_KRA[chosen]))
                own = self.packed[start - self.first : stop - self.first]
                own.mul_(keep_K[chosen, None, None]).add_(scatter)

    def _rows(self, centred_NA: Tensor, shift_KA: Tensor, targets: Tensor, batch: BatchClasses, here: slice) -> Tensor:
        """Return the shift of the mean and the samples of each class, [K, R, A].

        The R - 1 samples are those of any of these classes (on an accelerator all N); each class has zeros for the
        samples of other classes.
        """
        is_own = self._is_own(targets)
        rows_K = torch.arange(here.start, here.stop, device=targets.device)
        of_class_KN = (batch.row_N == rows_K[:, None]) & is_own
        if not is_asynchronous(targets):
            needed_N = of_class_KN.any(0).nonzero()[:, 0]
            of_class_KN, centred_NA = of_class_KN[:, needed_N], centred_NA[needed_N]
        return torch.cat([shift_KA[:, None], centred_NA * of_class_KN[:, :, None]], 1)

    def is_there(self, batch: BatchClasses, targets: Tensor) -> Tensor:
        """Return 1 for rows that a sample points to and 0 for padding rows, [U]."""
        is_own = self._is_own(targets)
        rows = self.own if batch.classes_U is None else len(batch.classes_U)
        pointed = self.mean.new_zeros(rows)
        return pointed.index_add_(0, batch.row_N, is_own.to(pointed.dtype)).clamp_(max=1) if rows else pointed

    def _add(self, batch: BatchClasses, here: slice, scatter: Tensor, factor: Tensor, share: Tensor) -> None:
        """Set ``packed`` to ``packed * (1 - share) + scatter * factor`` for the classes of some rows."""
        if batch.classes_U is None:
            self.packed[here].mul_(1 - share).add_(scatter.mul_(factor))
        else:
            change = scatter.mul_(factor).sub_(self.packed.index_select(0, batch.classes_U[here]).mul_(share))
            self.packed.index_add_(0, batch.classes_U[here], change)


Statistics = ClassStatistics | ClassVariances | PackedStatistics
