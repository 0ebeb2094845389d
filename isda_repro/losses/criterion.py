"""The contract of every loss.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Criterion(nn.Module):
    """Features, logits, targets and the head -> one scalar, in the dtype of the head's weight and at least fp32.

    In ``eval()`` every criterion is plain cross-entropy and changes none of its state. State that training changes is a
    buffer or a parameter, so that ``state_dict`` holds all of it. A subclass says what it does in training in ``loss``.

    Args:
        num_classes: C.
        feature_dim: A.
    """

    uses_head_bias: ClassVar[bool] = True

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        if num_classes < 1 or feature_dim < 1:
            raise ValueError(f"num_classes={num_classes} and feature_dim={feature_dim} must both be at least 1")
        self.num_classes = num_classes
        self.feature_dim = feature_dim

    def begin_step(self, step: int, total_steps: int, generator: torch.Generator) -> None:
        """Called before each optimizer step, counted from 0: for draws, counters and schedules of its own."""

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
            progress: the share of training that is over, in [0, 1]; t/T in the paper.

        Raises:
            TypeError: targets are not class numbers.
            ValueError: shapes do not fit, or (seen on a CPU only) a target is outside [0, C).
        """
        self._check(features, logits, targets, head)
        device, dtype = features.device.type, torch.promote_types(head.weight.dtype, torch.float32)
        exact = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with exact:
            features, logits = features.to(dtype), logits.to(dtype)
            if not self.training:
                return F.cross_entropy(logits, targets)
            return self.loss(features, logits, targets, head=head, progress=progress)

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """The loss in training, []; arguments as in ``forward``, checked and in the loss's dtype."""
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def _check(self, features: Tensor, logits: Tensor, targets: Tensor, head: nn.Linear) -> None:
        name, classes, width = type(self).__name__, self.num_classes, self.feature_dim
        if targets.dtype != torch.int64 or targets.dim() != 1:
            raise TypeError(
                f"{name} takes class numbers, int64 [N], not {targets.dtype} {list(targets.shape)}; "
                "soft targets (mixup, label smoothing) have no single class whose covariance could be used"
            )
        samples = len(targets)
        if features.shape != (samples, width) or logits.shape != (samples, classes):
            raise ValueError(
                f"{name}(num_classes={classes}, feature_dim={width}) got features {list(features.shape)} and logits "
                f"{list(logits.shape)} for {samples} targets, and needs [{samples}, {width}] and [{samples}, {classes}]"
            )
        if head.weight.shape != (classes, width):
            raise ValueError(f"{name}: head.weight is {list(head.weight.shape)} and must be [{classes}, {width}]")
        # An accelerator would have to be waited for; cross-entropy's own assertion stops it there, except at -100,
        # which it ignores. The loaders check labels when data is read.
        if targets.is_cpu and samples:
            lowest, highest = (int(target) for target in targets.aminmax())
            if lowest < 0 or highest >= classes:
                raise ValueError(
                    f"{name}: targets go from {lowest} to {highest}, and must be in [0, {classes}); "
                    "check the labels, or num_classes"
                )


class CrossEntropy(Criterion):
    """Plain cross-entropy, the paper's "Basic"."""

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Mean over the batch."""
        return F.cross_entropy(logits, targets)
