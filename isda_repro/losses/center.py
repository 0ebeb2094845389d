"""Center loss (Wen et al. 2016): cross-entropy, and a pull of each feature towards the centre of its class.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from isda_repro.losses.arguments import require_from_zero
from isda_repro.losses.batch_classes import is_asynchronous
from isda_repro.losses.criterion import Criterion
from isda_repro.losses.statistics import only, samples_of_each, without_ignored


class CenterLoss(Criterion):
    """``CE + weight * 1/2 mean_i |a_i - c_{y_i}|^2``; the centres c are parameters, and follow the features.

    The centres' gradient is Wen et al.'s update rule (equation 4), not the derivative of the loss:

        delta c_j = sum_{i: y_i = j} (c_j - a_i) / (1 + n_j),   n_j the samples of class j in the batch

    so that an SGD step of rate 0.5, ``parameter_groups``, moves a centre half way to the mean of many samples, whatever
    the batch's size and the loss's weight. In their code too the loss is a mean over the batch.

    The ISDA paper gives the rate of the centres, "initially" 0.5 (Appendix B), and nothing else of this loss.

    Args:
        num_classes: C.
        feature_dim: A.
        weight: of the pull; 0 is cross-entropy. Wen et al. take 0.003; the ISDA paper does not say.
        centers_lr: of the centres, at the beginning; the run's schedule applies to it.
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: weight or centers_lr is negative or not finite.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        weight: float = 0.003,
        centers_lr: float = 0.5,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_from_zero("weight", weight)
        require_from_zero("centers_lr", centers_lr)
        self.weight, self.centers_lr = weight, centers_lr
        bound = math.sqrt(3 / feature_dim)  # as their code fills them; they leave it within a few steps
        self.centers = nn.Parameter(torch.empty(num_classes, feature_dim).uniform_(-bound, bound))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The centres: plain SGD, without momentum or weight decay."""
        options = {"lr": self.centers_lr, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        return [{"params": [self.centers], **options}]

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Cross-entropy and the pull, each a mean over the batch."""
        cross_entropy = self._cross_entropy(features, logits, targets, head=head, progress=progress)
        pull: Tensor = _Pull.apply(features, self.centers.to(features.dtype), targets, self.weight)
        return cross_entropy + pull


class _Pull(torch.autograd.Function):
    """The pull's value and its gradient for the features; for the centres, their update rule."""

    @staticmethod
    def forward(ctx: Any, features_NA: Tensor, centers_CA: Tensor, targets_N: Tensor, weight: float) -> Tensor:
        counts_C = samples_of_each(targets_N, len(centers_CA))
        features_NA, targets_N, counts_N1 = without_ignored(features_NA, targets_N)
        away_NA = only(counts_N1, features_NA - centers_CA.index_select(0, targets_N))
        samples = counts_C.sum().clamp(min=1).to(away_NA.dtype) if is_asynchronous(targets_N) else len(targets_N)
        ctx.save_for_backward(away_NA, targets_N, counts_C)
        ctx.factor = weight / samples
        half_pull: Tensor = away_NA.square().sum() * (0.5 * ctx.factor)
        return half_pull

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        away_NA, targets_N, counts_C = ctx.saved_tensors
        towards_CA = away_NA.new_zeros(len(counts_C), away_NA.shape[1]).index_add_(0, targets_N, away_NA)
        rule_CA = towards_CA.mul_((-gradient / (1 + counts_C))[:, None])
        return away_NA * (gradient * ctx.factor), rule_CA, None, None
