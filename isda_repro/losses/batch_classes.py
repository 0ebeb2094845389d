"""Which classes a batch has, and where each sample finds its own.

ISDA's cost is paid per class in the batch. A CPU asks which they are; an accelerator is never waited for, and works on
a fixed number of rows, of which those that no sample points to go unused.

Shapes: N samples, C classes, U rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
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
