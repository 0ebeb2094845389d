"""L_q loss, or generalised cross-entropy (Zhang & Sabuncu 2018)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED
from isda_repro.losses.criterion import Criterion, mean_over_batch, require_number


class LqLoss(Criterion):
    """``(1 - p_y^q) / q``, mean over the batch: cross-entropy as q goes to 0, the mean absolute error at q = 1.

    This is equation 6 of Zhang & Sabuncu. The ISDA authors use q = 0.4 and do not mention truncation (Appendix B).

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        q: exponent in (0, 1].
        truncation: k of their equation 8: a sample with p_y <= k has the constant loss ``(1 - k^q) / q`` and no
            gradient, so that labels which the network finds very unlikely are ignored. Their algorithm prunes by
            weights of each sample, every ten epochs from epoch 40 on; here the decision is made anew in each batch.
            None: no truncation.
        truncation_start: the share of training before which nothing is truncated, by default 1/3 (their epoch 40 of
            120). With 0, a network of 100 classes, whose first p_y is about 0.01, would never learn.
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: q is outside (0, 1], truncation outside (0, 1), or truncation_start outside [0, 1].
    """

    takes_pixels: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        q: float = 0.4,
        truncation: float | None = None,
        truncation_start: float = 1 / 3,
        ignore_index: int | None = IGNORED,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_number("q", q, lambda number: 0 < number <= 1, "in (0, 1]; cross-entropy, its limit at 0, is loss=ce")
        if truncation is not None:
            require_number("truncation", truncation, lambda number: 0 < number < 1, "a probability in (0, 1), or null")
        share = "a share of training in [0, 1]"
        require_number("truncation_start", truncation_start, lambda number: 0 <= number <= 1, share)
        self.q, self.truncation, self.truncation_start = q, truncation, truncation_start

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the mean loss over the batch."""
        surprise_N = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)  # -log p_y
        if self.truncation is not None:
            # p_y <= k: the clamped value has no gradient
            clamped_N = surprise_N.clamp(max=-math.log(self.truncation))
            begins = self.truncation_start
            if isinstance(progress, Tensor):  # do not read it back from the device
                surprise_N = torch.where(progress >= begins, clamped_N, surprise_N)
            elif progress >= begins:
                surprise_N = clamped_N
        # 1 - p^q without computing p: exact for likely classes, and differentiable at p = 0
        return mean_over_batch(-torch.expm1(-self.q * surprise_N) / self.q, targets)
