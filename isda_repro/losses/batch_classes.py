"""The classes of a batch, the row in which each sample finds its own, and one batch of all processes.

ISDA's cost is paid per class in the batch. On a CPU the classes are looked up; an accelerator is never waited for, and
works on a fixed number of rows, of which those that no sample points to go unused.

Shapes: N samples, C classes, U rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

IGNORED = -100
"""The target of a sample that counts for nothing, on an accelerator alone (criterion.py); cross-entropy's default."""

SAMPLES_FOR_ALL = 4  # with as many samples a class on average, 98% of the classes are in a random batch


def is_asynchronous(tensor: Tensor) -> bool:
    """Whether its values are not to be asked for: its device runs behind the host, or a graph is being compiled."""
    return not tensor.is_cpu or torch.compiler.is_compiling()


def without_negative(targets: Tensor) -> Tensor:
    """Targets that can be used as indices: class 0 for a sample that is ``IGNORED``."""
    return targets.clamp(min=0) if is_asynchronous(targets) else targets  # else they have been taken out


class BatchClasses(NamedTuple):
    """The class of each row, int64, and each sample's row: ``classes_U[row_N] == targets``, any row where ignored.

    ``classes_U`` is None where row c is class c, for all C of them: then nothing need be gathered.
    """

    classes_U: Tensor | None
    row_N: Tensor

    def take(self, per_class: Tensor, here: slice | None = None) -> Tensor:
        """Rows ``here`` (None: all) of something [C, ...] that each class has one of; a view where it can be."""
        if self.classes_U is None:
            return per_class if here is None else per_class[here]
        return per_class.index_select(0, self.classes_U if here is None else self.classes_U[here])

    def put(self, per_class: Tensor, rows: Tensor) -> None:
        """Copy each row to its place in something [C, ...]; rows of one class must be alike."""
        if self.classes_U is None:
            per_class.copy_(rows)
        else:
            per_class.index_copy_(0, self.classes_U, rows)


def classes_present(targets: Tensor, num_classes: int) -> BatchClasses:
    """Just the classes in the batch, in rising order; all of them where nearly all must be there. For a CPU."""
    if SAMPLES_FOR_ALL * num_classes <= len(targets):
        return BatchClasses(None, targets)
    present_C = torch.bincount(targets, minlength=num_classes) > 0
    row_of_class_C = present_C.cumsum(0) - 1
    return BatchClasses(present_C.nonzero()[:, 0], row_of_class_C.index_select(0, targets))


def rows_of_fixed_number(targets: Tensor, num_classes: int) -> BatchClasses:
    """All C classes where a batch can hold them all, else N rows: one for each class present, the rest class 0.

    Its shapes depend on those of ``targets`` alone, so that it can be captured in a CUDA graph.
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


def check_group(process_group: Any) -> None:
    """Whether it can be the ``process_group`` of a loss.

    Raises:
        ValueError: it cannot.
    """
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise ValueError(f"process_group={process_group} must be a torch.distributed.ProcessGroup, or None")


def of_all_processes(features: Tensor, targets: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """``gathered``, or where there is no group what was given; without a graph."""
    return (features.detach(), targets) if group is None else gathered(features.detach(), targets, group)


def gathered(features: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The features [N, A] and targets [N] of all processes of ``group``, in the order of their ranks.

    On a CPU each may have another number of samples. On an accelerator, whose host is not to wait, all must have the
    same: a process with fewer fills up with samples that ``ignore_index`` marks.
    """
    world = dist.get_world_size(group)
    if is_asynchronous(targets):
        return _all(features, group, world), _all(targets, group, world)
    counts = _all(torch.tensor([len(targets)]), group, world).tolist()
    longest = max(counts)
    padded = features.new_zeros(longest, features.shape[1]), targets.new_zeros(longest)
    for room, own in zip(padded, (features, targets), strict=True):
        room[: len(own)] = own
    everything = (_all(room, group, world).split(longest) for room in padded)
    features, targets = (
        torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]) for parts in everything
    )
    return features, targets


def _all(own: Tensor, group: dist.ProcessGroup, world: int) -> Tensor:
    everything = own.new_empty(world * len(own), *own.shape[1:])
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its newer name
    gather(everything, own.contiguous(), group=group)
    return everything
