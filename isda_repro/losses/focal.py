"""Focal loss (Lin et al. 2017) over a softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED
from isda_repro.losses.criterion import Criterion, mean_over_batch, require_from_zero, require_number


class FocalLoss(Criterion):
    """``-alpha (1 - p_y)^gamma log p_y``, mean over the batch, p the softmax: easy samples count for less.

    Lin et al.'s equation 5, whose p is a sigmoid, in the form for classes that exclude each other. Alpha then only
    scales the loss; it is there because the ISDA authors tuned with it (Appendix B: alpha 0.5, gamma 1).

    Args:
        num_classes: C.
        feature_dim: A.
        alpha: factor on every sample.
        gamma: 0 is alpha times cross-entropy.
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: alpha is not above 0, or gamma below 0.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        alpha: float = 0.5,
        gamma: float = 1.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_number("alpha", alpha, lambda number: number > 0, "a number above 0")
        require_from_zero("gamma", gamma)
        self.alpha, self.gamma = alpha, gamma

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Mean over the batch."""
        surprise_N = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)  # -log p_y
        # 1 - p_y exactly, however close to 1 p_y is; where it is 0, a gamma below 1 has no derivative of its own.
        missing_N = -torch.expm1(-surprise_N)
        missing_N = missing_N.clamp(min=torch.finfo(missing_N.dtype).tiny)
        return mean_over_batch(missing_N.pow(self.gamma) * surprise_N, targets) * self.alpha
