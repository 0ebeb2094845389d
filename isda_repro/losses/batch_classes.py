"""Contribution of a batch: its classes, the row of each sample among them, and the samples that may enter a state.

Batches gathered from all processes are here too.

ISDA's cost is per class of the batch. On a CPU the classes present are looked up. On an accelerator that would make
the host wait, so a fixed number of rows is used, and rows without a sample go unused.

Shapes: N samples, C classes, U rows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

IGNORED = -100
"""Target of an ignored sample, the default of cross-entropy and of all losses here.

The losses replace any other ``ignore_index`` by it on an accelerator; on a CPU they drop ignored samples.
"""

SAMPLES_FOR_ALL = 4  # per class: with as many on average, 98% of the classes are in a random batch


def is_asynchronous(tensor: Tensor) -> bool:
    """Return True if reading values of ``tensor`` has to be avoided.

    Either its device runs behind the host, or a graph is being compiled.
    """
    return not tensor.is_cpu or torch.compiler.is_compiling()


def bytes_of(tensor: Tensor) -> int:
    """Return ``tensor.nbytes``, which fails in a compiled graph whose batches vary in size."""
    return tensor.numel() * tensor.element_size()


def without_negative(targets: Tensor) -> Tensor:
    """Return targets that can be used as indices: class 0 stands in for ``IGNORED``."""
    return targets.clamp(min=0) if is_asynchronous(targets) else targets  # a CPU has dropped ignored samples


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast changes no dtype on the device of ``tensor``.

    A backward pass needs it too: foreign loops run it within autocast, where a product of two matrices becomes bf16.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def largest_feature(*dtypes: torch.dtype) -> float:
    """Return the largest absolute feature that may enter a state: 2e15 in float32.

    The squared differences of 2^24 such samples can be added without an overflow.

    Args:
        dtypes: those of the state and of the loss; the narrower one counts, but half precision counts as float32.
    """
    return math.sqrt(min(torch.finfo(torch.promote_types(one, torch.float32)).max for one in dtypes)) * 2.0**-13


def mark_unsound(features: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return targets with ``IGNORED`` for samples that must not enter a state of ``dtype``, without a wait of the host.

    These have a feature that is not finite or beyond ``largest_feature``, as after an overflow in half precision.
    """
    largest_N = torch.linalg.vector_norm(features, math.inf, dim=1)  # NaN if a feature is
    return torch.where(largest_N <= largest_feature(dtype, features.dtype), targets, IGNORED)


def without_unsound(features: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return features and targets without the samples that ``mark_unsound`` marks; on an accelerator, with the marks.

    A batch without such samples is returned as it is on a CPU.
    """
    if is_asynchronous(features):
        return features, mark_unsound(features, targets, dtype)
    if not features.numel():
        return features, targets
    lowest, highest = features.aminmax()
    if max(-lowest.item(), highest.item()) <= largest_feature(
        dtype, features.dtype
    ):  # False if one of them is NaN, and so both
        return features, targets
    sound = (mark_unsound(features, targets, dtype) != IGNORED).nonzero()[:, 0]
    return features.index_select(0, sound), targets.index_select(0, sound)


class BatchClasses(NamedTuple):
    """The classes of a batch as rows, and the row of each sample.

    Attributes:
        classes_U: the class of each row, int64 [U]; None if row c is class c for all C classes, so that nothing needs
            to be gathered.
        row_N: the row of each sample, int64 [N], such that ``classes_U[row_N] == targets``; any row for ignored
            samples.
    """

    classes_U: Tensor | None
    row_N: Tensor

    def take(self, per_class: Tensor, here: slice | None = None) -> Tensor:
        """Return the rows of ``per_class`` [C, ...] that belong to the batch's classes, as a view where possible.

        Args:
            per_class: one entry for each class.
            here: the rows to return; None: all U of them.
        """
        if self.classes_U is None:
            return per_class if here is None else per_class[here]
        return per_class.index_select(0, self.classes_U if here is None else self.classes_U[here])

    def put(self, per_class: Tensor, rows: Tensor) -> None:
        """Copy ``rows`` [U, ...] to their classes in ``per_class`` [C, ...]; rows of one class must be equal."""
        if self.classes_U is None:
            per_class.copy_(rows)
        else:
            per_class.index_copy_(0, self.classes_U, rows)


def classes_present(targets: Tensor, num_classes: int) -> BatchClasses:
    """Return the classes that occur in the batch, in ascending order; for a CPU.

    If the batch is so large that nearly all classes occur, all C are returned.
    """
    if SAMPLES_FOR_ALL * num_classes <= len(targets):
        return BatchClasses(None, targets)
    present_C = torch.bincount(targets, minlength=num_classes) > 0
    row_of_class_C = present_C.cumsum(0) - 1
    return BatchClasses(present_C.nonzero()[:, 0], row_of_class_C.index_select(0, targets))


def rows_of_fixed_number(targets: Tensor, num_classes: int) -> BatchClasses:
    """Return the classes of a batch in a number of rows that depends on shapes only.

    These are all C classes if a batch can hold them all. Otherwise there are N rows: one for each class present, and
    the remaining rows have class 0. So a CUDA graph can capture it.
    """
    targets = without_negative(targets)
    if num_classes <= len(targets):
        return BatchClasses(None, targets)
    sorted_N, order_N = targets.sort()
    begins_N = torch.ones_like(sorted_N)
    begins_N[1:] = (sorted_N[1:] != sorted_N[:-1]).long()
    row_of_sorted_N = begins_N.cumsum(0) - 1
    classes_U = torch.zeros_like(targets).scatter(0, row_of_sorted_N, sorted_N)
    row_N = torch.empty_like(targets).scatter(0, order_N, row_of_sorted_N)
    return BatchClasses(classes_U, row_N)


def of_all_processes(features: Tensor, targets: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Return the features [N, A] and targets [N, ...] of all processes of ``group``, detached, in the order of ranks.

    On a CPU the processes may have different numbers of samples. On an accelerator, whose host must not wait, all
    numbers must be equal: a process with fewer samples pads its batch with samples that ``ignore_index`` marks.

    Args:
        features: of this process.
        targets: of this process.
        group: None: there is only this process.
    """
    features = features.detach()
    if group is None:
        return features, targets
    targets = targets.detach()
    world = dist.get_world_size(group)
    if is_asynchronous(targets):
        return _all(features, group, world), _all(targets, group, world)
    counts = _all(torch.tensor([len(targets)]), group, world).tolist()
    longest = max(1, *counts)  # 1: where nobody has a sample, `split` needs a size
    padded = [one.new_zeros(longest, *one.shape[1:]) for one in (features, targets)]
    for room, own in zip(padded, (features, targets), strict=True):
        room[: len(own)] = own
    everything = (_all(room, group, world).split(longest) for room in padded)
    features, targets = (
        torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]) for parts in everything
    )
    return features, targets


def _all(own: Tensor, group: dist.ProcessGroup, world: int) -> Tensor:
    everything = own.new_empty(world * len(own), *own.shape[1:])
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # the function's newer name
    gather(everything, own.contiguous(), group=group)
    return everything
