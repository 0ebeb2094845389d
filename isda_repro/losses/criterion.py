"""The contract of every loss.

On a CPU a batch is looked at before it is used: a label outside the classes is an error, samples that are to be
ignored are taken out. An accelerator is never asked for a value, and neither is a graph that is being compiled: there
such samples stay, their target is ``IGNORED``, and each loss leaves them out of its means and its statistics; a label
outside the classes makes the loss NaN, and does not end the process as an assertion on the device would.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, is_asynchronous


def require_number(name: str, value: object, within: Callable[[float], bool], what: str) -> None:
    """Refuse what is no finite number for which ``within`` holds.

    Raises:
        ValueError: with the name, the value, and ``what`` it must be.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and within(value)):  # type: ignore[arg-type]
        raise ValueError(f"{name}={value} must be {what}")


def require_from_zero(name: str, value: object) -> None:
    """Refuse what is no finite number from 0 on, likewise."""
    require_number(name, value, lambda number: number >= 0, "a number from 0 on")


def require_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1 on, likewise; True is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value} must be a whole number from 1 on")


class Criterion(nn.Module):
    """Features, logits, targets and the head -> one scalar, in the dtype of the head's weight and at least fp32.

    In ``eval()`` every criterion is plain cross-entropy and changes none of its state. State that training changes is a
    buffer or a parameter, so that ``state_dict`` holds all of it. A subclass says what it does in training in ``loss``.

    Args:
        num_classes: C.
        feature_dim: A.
        ignore_index: samples with this target count for nothing, as in ``torch.nn.CrossEntropyLoss``; None: there are
            none. The loss of a batch that has no other is 0.
    """

    uses_head_bias: ClassVar[bool] = True
    """Whether it takes the logits as they are; False: the head must have no bias."""

    has_statistics: ClassVar[bool] = False
    """Whether it keeps something of all samples it has seen, and takes a ``process_group`` to share it."""

    waits_for_device: ClassVar[bool] = False
    """Whether its value needs numbers that an accelerator has computed, so that a CUDA graph cannot capture it."""

    def __init__(self, num_classes: int, feature_dim: int, ignore_index: int | None = None) -> None:
        super().__init__()
        if num_classes < 1 or feature_dim < 1:
            raise ValueError(f"num_classes={num_classes} and feature_dim={feature_dim} must both be at least 1")
        if ignore_index is not None and (not isinstance(ignore_index, int) or isinstance(ignore_index, bool)):
            raise ValueError(f"ignore_index={ignore_index} must be a whole number, or None")
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.ignore_index = ignore_index
        self.draws: torch.Generator | None = None  # None: PyTorch's own
        self.process_group: dist.ProcessGroup | None = None  # of a loss whose state is that of all processes
        self._part: tuple[int, int] | None = None

    @property
    def is_collective(self) -> bool:
        """Whether all processes call it in each step, those without a sample too."""
        return self.process_group is not None

    def begin_step(
        self, step: int, total_steps: int, generator: torch.Generator, part: tuple[int, int] | None = None
    ) -> None:
        """Called before each optimizer step, counted from 0, by a loop that wants the draws of ``generator``.

        It is on the device of the features, and seeded by whoever made it: its state is no state of the criterion.
        ``part`` says where this process's samples begin in the batch of all processes, and how many that has; None: its
        batch is all there is. Each sample then has the draws that it would have if one process had them all.
        """
        self.draws, self._part = generator, part

    def own_draws(self, draw: Callable[[int], Tensor], samples: int) -> Tensor:
        """What ``draw`` gives for this process's ``samples``, out of what it gives for the whole batch."""
        if self._part is None:
            return draw(samples)
        first, total = self._part
        return draw(max(total, first + samples))[first : first + samples]

    def whole_state_dict(self) -> dict[str, Tensor] | None:
        """Its state, of which each process may hold a part; None where another process has it. All must call it."""
        return self.state_dict()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, with options of their own, if the criterion has parameters."""
        return []

    def forward(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """The loss of a batch, [].

        Args:
            features: [N, A], what the head turned into ``logits``; any floating dtype.
            logits: [N, C].
            targets: class numbers, int64 [N].
            head: the last layer of the network.
            progress: the share of training that is over, in [0, 1]; t/T in the paper. In a CUDA graph a 0-d tensor on
                the device, whose value then can change.

        Raises:
            TypeError: targets are not class numbers.
            ValueError: shapes do not fit, or a target is outside [0, C) (on a CPU; elsewhere the loss is NaN).
        """
        self._check(features, logits, targets, head)
        device, dtype = features.device.type, torch.promote_types(head.weight.dtype, torch.float32)
        exact = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with exact:
            features, logits = features.to(dtype), logits.to(dtype)
            loss = self.loss if self.training else self._cross_entropy
            if is_asynchronous(targets):
                return self._loss_unseen(loss, features, logits, targets, head, progress)
            self._check_range(targets)
            if self.ignore_index is not None:
                kept = (targets != self.ignore_index).nonzero()[:, 0]
                features, logits, targets = (one.index_select(0, kept) for one in (features, logits, targets))
            if not len(targets) and not self.is_collective:
                return logits.sum()
            return loss(features, logits, targets, head=head, progress=progress)

    def _loss_unseen(
        self,
        loss: Callable[..., Tensor],
        features: Tensor,
        logits: Tensor,
        targets: Tensor,
        head: nn.Linear,
        progress: float | Tensor,
    ) -> Tensor:
        """The loss of targets whose values are not known here."""
        if not len(targets) and not self.is_collective:
            return logits.sum()
        is_known = is_counted = targets.clamp(0, self.num_classes - 1) == targets
        if self.ignore_index is not None:
            is_ignored = targets == self.ignore_index
            is_known, is_counted = is_known | is_ignored, is_known & ~is_ignored
        value = loss(features, logits, torch.where(is_counted, targets, IGNORED), head=head, progress=progress)
        if self.ignore_index is not None:  # else a batch without a sample that counts has a bad label
            value = torch.where(is_counted.any(), value, 0)
        return torch.where(is_known.all(), value, torch.nan)

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """The loss in training, [].

        Arguments as in ``forward``, checked, in the loss's dtype; N is at least 1 unless ``is_collective``, and a
        target is ``IGNORED`` (on an accelerator alone) or in [0, C).
        """
        raise TypeError(f"{type(self).__name__} does not define its loss")

    @staticmethod
    def _cross_entropy(
        features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED) if len(targets) else logits.sum()

    def _check(self, features: Tensor, logits: Tensor, targets: Tensor, head: nn.Linear) -> None:
        name, classes, width = type(self).__name__, self.num_classes, self.feature_dim
        if targets.dtype != torch.int64 or targets.dim() != 1:
            soft = "soft targets (mixup, label smoothing) have no single class whose covariance could be used"
            advice = soft if targets.is_floating_point() or targets.dim() > 1 else "convert them with targets.long()"
            raise TypeError(
                f"{name} takes class numbers, int64 [N], not {targets.dtype} {list(targets.shape)}; {advice}"
            )
        samples = len(targets)
        if features.shape != (samples, width) or logits.shape != (samples, classes):
            raise ValueError(
                f"{name}(num_classes={classes}, feature_dim={width}) got features {list(features.shape)} and logits "
                f"{list(logits.shape)} for {samples} targets, and needs [{samples}, {width}] and [{samples}, {classes}]"
            )
        if head.weight.shape != (classes, width):
            raise ValueError(f"{name}: head.weight is {list(head.weight.shape)} and must be [{classes}, {width}]")

    def _check_range(self, targets: Tensor) -> None:
        classes, ignored = self.num_classes, self.ignore_index
        if not len(targets):
            return
        if ignored is not None:  # it may be any number
            targets = targets.masked_fill(targets == ignored, 0)
        lowest, highest = (int(target) for target in targets.aminmax())
        if lowest < 0 or highest >= classes:
            raise ValueError(
                f"{type(self).__name__}: targets go from {lowest} to {highest}, and must be in [0, {classes}); "
                "check the labels, or num_classes"
            )


class CrossEntropy(Criterion):
    """Plain cross-entropy, the paper's "Basic"."""

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Mean over the batch."""
        return self._cross_entropy(features, logits, targets, head=head, progress=progress)


def mean_over_batch(of_samples: Tensor, targets: Tensor) -> Tensor:
    """The mean of ``of_samples`` [N] over the samples that are not ``IGNORED``."""
    if not is_asynchronous(targets):
        return of_samples.mean() if len(targets) else of_samples.sum()  # they have been taken out
    counts = targets != IGNORED
    return torch.where(counts, of_samples, 0).sum() / counts.sum().clamp(min=1)
