"""DisturbLabel (Xie et al. 2016): cross-entropy on labels that are randomly replaced in every iteration."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED
from isda_repro.losses.criterion import Criterion, require_number


class DisturbLabel(Criterion):
    """Cross-entropy, where each label is replaced by a uniform draw over all C classes with probability alpha.

    The draw may be the label itself, so a share alpha (C - 1) / C of the labels is wrong. This is section 3.1 of Xie et
    al., where the label is kept with probability 1 - alpha (C - 1) / C and takes each other value with probability
    alpha / C.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        alpha: noise rate, a fraction (their code has a percentage). The ISDA authors use 0.05, and 0.1 for ResNet-110
            on CIFAR-100 (Appendix B).
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: alpha is outside [0, 1].
    """

    takes_pixels: ClassVar[bool] = True

    def __init__(
        self, num_classes: int, feature_dim: int, alpha: float = 0.05, ignore_index: int | None = IGNORED
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_number("alpha", alpha, lambda number: 0 <= number <= 1, "a probability in [0, 1]")
        self.alpha = alpha

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the mean cross-entropy over the batch, against the disturbed labels."""
        disturbed = self.disturb(targets)
        return self._cross_entropy(features, logits, disturbed, head=head, progress=progress)

    def disturb(self, targets: Tensor) -> Tensor:
        """Return disturbed labels [N] for ``targets`` [N].

        They are drawn from the generator of ``begin_step``, or from PyTorch's default one.
        """
        device, draws = targets.device, self.draws
        uniform = self.own_draws(lambda count: torch.rand(count, generator=draws, device=device), len(targets))
        anything = self.own_draws(
            lambda count: torch.randint(self.num_classes, (count,), generator=draws, device=device), len(targets)
        )
        is_disturbed = uniform < self.alpha
        return torch.where(is_disturbed & (targets != IGNORED), anything, targets)
