"""Focal loss (Lin et al. 2017) on softmax probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED
from isda_repro.losses.criterion import Criterion, mean_over_batch, require_from_zero, require_number


class FocalLoss(Criterion):
    """``-alpha (1 - p_y)^gamma log p_y``, mean over the batch, where p is the softmax.

    Easy samples count for less. This is Lin et al.'s equation 5, which they define for a sigmoid, on the softmax of
    mutually exclusive classes. Here alpha only scales the loss; it exists because the ISDA authors tuned it (Appendix
    B: alpha 0.5, gamma 1).

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        alpha: factor on the loss of every sample.
        gamma: exponent; with 0 the loss is alpha times cross-entropy.
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: alpha is not above 0, or gamma is below 0.
    """

    takes_pixels: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        alpha: float = 0.5,
        gamma: float = 1.0,
        ignore_index: int | None = IGNORED,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_number("alpha", alpha, lambda number: number > 0, "a number above 0")
        require_from_zero("gamma", gamma)
        self.alpha, self.gamma = alpha, gamma

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the mean focal loss over the batch."""
        surprise_N = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)  # -log p_y
        # expm1 keeps 1 - p_y exact for p_y close to 1; the clamp gives gamma < 1 a finite derivative where it is 0.
        missing_N = -torch.expm1(-surprise_N)
        missing_N = missing_N.clamp(min=torch.finfo(missing_N.dtype).tiny)
        return mean_over_batch(missing_N.pow(self.gamma) * surprise_N, targets) * self.alpha
