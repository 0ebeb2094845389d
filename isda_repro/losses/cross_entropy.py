"""Cross-entropy with the arguments of ``torch.nn.CrossEntropyLoss``, alone and as the base of ISDA.

Shapes: N samples in the batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, is_asynchronous, without_negative
from isda_repro.losses.criterion import Criterion, mean_over_batch, require_number
from isda_repro.losses.soft_targets import raised_by_labels
from isda_repro.losses.state import state_dtype

REDUCTIONS = ("mean", "sum", "none")


class CrossEntropyCriterion(Criterion):
    """Base class of losses that take ``weight``, ``reduction`` and ``label_smoothing``.

    They mean what they mean in ``torch.nn.CrossEntropyLoss``, in training and in ``eval()``. Only a batch without a
    sample that counts differs: its loss is 0, see ``Criterion``. The targets may be class probabilities, [N, C]; for
    these ``ignore_index`` does not apply, and a mean is divided by N.

    Args:
        num_classes: see ``Criterion``.
        feature_dim: see ``Criterion``.
        ignore_index: see ``Criterion``.
        weight: factor of each class, C numbers from 0 on; None: all are 1. It is no part of ``state_dict``.
        reduction: "mean" (divided by the sum of the labels' weights), "sum", or "none" ([N], 0 for ignored samples).
        label_smoothing: share of the target distribution that is spread evenly over all classes, in [0, 1].

    Raises:
        ValueError: an argument has none of these values.
    """

    takes_pixels: ClassVar[bool] = True
    takes_probabilities: ClassVar[bool] = True

    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        ignore_index: int | None = IGNORED,
        *,
        weight: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        if reduction not in REDUCTIONS:
            raise ValueError(f"there is no reduction={reduction!r}; it can be {', '.join(REDUCTIONS)}")
        require_number("label_smoothing", label_smoothing, lambda share: 0 <= share <= 1, "a share in [0, 1]")
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.register_buffer("weight", _class_weights(weight, num_classes), persistent=False)

    def total_weight(self, targets: Tensor) -> Tensor | None:
        """Return the sum of the weights of the labels that count, see ``Criterion``.

        None without weights, and for probabilities, whose mean is over samples.
        """
        if self.weight is None or targets.is_floating_point():
            return None
        labels = targets.flatten()
        of_labels = self.weight.index_select(0, labels.clamp(0, self.num_classes - 1))
        return of_labels.where(labels != (IGNORED if self.ignore_index is None else self.ignore_index), 0).sum()

    def _cross_entropy(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        return self._of_logits(logits, targets)

    def _of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return what ``torch.nn.CrossEntropyLoss`` does; 0 without a sample."""
        if not len(targets):
            return self.of_no_sample(logits)
        smoothing, weight = self.label_smoothing, self._weight(logits)
        if smoothing and targets.is_floating_point():  # as in torch, but a row of zeros (padding) stays one
            smoothed = targets * (1 - smoothing) + smoothing / self.num_classes
            targets, smoothing = smoothed.where(targets.any(1, keepdim=True), 0), 0.0
        if smoothing and is_asynchronous(targets):  # torch's mean would read values
            loss_N = F.cross_entropy(logits, targets, weight, None, IGNORED, None, "none", smoothing)
            return self._reduced(loss_N, targets)
        return F.cross_entropy(logits, targets, weight, None, IGNORED, None, self.reduction, smoothing)

    def _augmented_cross_entropy(self, logits: Tensor, augmented: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy whose normaliser has the augmented logits, and whose target terms the plain ones.

        The augmentation does not change the expectation of a logit, so that ``log sum_j exp(augmented_j) - sum_c q_c
        logits_c`` bounds the expected loss for any target distribution q. For a label alone it is the cross-entropy of
        the augmented logits, whose own logit is unchanged.

        Args:
            logits: [N, C].
            augmented: [N, C], the logits of equation 4.
            targets: int64 [N].
        """
        loss = self._of_logits(augmented, targets)
        if not self.label_smoothing or not len(targets):
            return loss
        weight = self._weight(logits)
        added = augmented - logits
        added_N = added.sum(1) if weight is None else added @ weight
        return loss + self._reduced(added_N, targets) * (self.label_smoothing / self.num_classes)

    def _expected_loss(self, logits: Tensor, half_sigma2: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """Return ``sum_c p_c loss(label c)``: PyTorch's cross-entropy, and what each label's augmentation adds to it.

        Args:
            logits: [N, C].
            half_sigma2: lambda/2 sigma2 of each label, [U, C].
            labels: the U classes whose probabilities are not all 0.
            probabilities: p [N, C].
        """
        loss, weight = self._of_logits(logits, probabilities), self._weight(logits)
        share_NU = probabilities.index_select(1, labels).double()
        if weight is not None:
            spread = weight.mean(dtype=share_NU.dtype) * self.label_smoothing
            share_NU = share_NU * (weight.index_select(0, labels) * (1 - self.label_smoothing) + spread)
        added_N = (share_NU * raised_by_labels(logits, half_sigma2)).sum(1)
        return loss + self._reduced(added_N, probabilities).to(loss.dtype)

    def _reduced(self, of_samples: Tensor, targets: Tensor) -> Tensor:
        """Return ``of_samples`` [N] reduced as ``reduction`` says, where ignored samples count for nothing.

        As in PyTorch, a mean over samples whose targets are probabilities is divided by N, whatever the weights.
        """
        if targets.is_floating_point():
            samples = max(1, len(targets)) if self.reduction == "mean" else 1
            return of_samples if self.reduction == "none" else of_samples.sum() / samples
        if is_asynchronous(targets):
            of_samples = torch.where(targets != IGNORED, of_samples, 0)
        if self.reduction != "mean":
            return of_samples.sum() if self.reduction == "sum" else of_samples
        weight = self._weight(of_samples)
        if weight is None:
            return mean_over_batch(of_samples, targets)
        weight_N = weight.index_select(0, without_negative(targets))
        if is_asynchronous(targets):
            weight_N = torch.where(targets != IGNORED, weight_N, 0)
        return of_samples.sum() / weight_N.sum()

    def _weight(self, like: Tensor) -> Tensor | None:
        return None if self.weight is None else self.weight.to(like.dtype)


class CrossEntropy(CrossEntropyCriterion):
    """Plain cross-entropy, the paper's "Basic" loss; its arguments are those of ``CrossEntropyCriterion``."""

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the cross-entropy of the batch."""
        return self._of_logits(logits, targets)


def _class_weights(weight: Sequence[float] | Tensor | None, num_classes: int) -> Tensor | None:
    """Return a copy of the weights [C], at least in fp32.

    Raises:
        ValueError: they are not C finite numbers from 0 on.
    """
    if weight is None:
        return None
    needed = f"weight={weight} must be {num_classes} numbers from 0 on, one for each class"
    try:
        found = weight.detach().clone() if isinstance(weight, Tensor) else torch.tensor(list(weight))
        found = found.to(torch.promote_types(found.dtype, state_dtype()))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(needed) from None
    if found.shape != (num_classes,) or not (found.isfinite() & (found >= 0)).all():
        raise ValueError(needed)
    return found
