"""Center loss (Wen et al. 2016): cross-entropy, and a pull of each feature towards the centre of its class.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, check_group, gathered, is_asynchronous
from isda_repro.losses.class_statistics import samples_of_each, without_ignored
from isda_repro.losses.criterion import Criterion, require_from_zero


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
        process_group: the processes whose batches are one, as for ``ISDALoss``: each gets the centres' gradient of all
            samples, which is not to be reduced again. None: this process alone.

    Raises:
        ValueError: weight or centers_lr is negative or not finite.
    """

    has_statistics: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        weight: float = 0.003,
        centers_lr: float = 0.5,
        ignore_index: int | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        check_group(process_group)
        self.process_group = process_group
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
        centers = self.centers.to(features.dtype)
        away, known, samples = _away(features, targets, centers.detach())
        pull = away.square().sum() * (0.5 * self.weight) / samples  # in this order: 1 / samples alone is float32
        if self.process_group is not None:
            features, targets = gathered(features.detach(), targets, self.process_group)
            away, known, _ = _away(features, targets, centers.detach())
        counts_C = samples_of_each(targets, len(centers))
        nothing: Tensor = _CentresFollow.apply(centers, away.detach(), known, counts_C, self.process_group)
        return cross_entropy + pull + nothing


def _away(features: Tensor, targets: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
    """Each feature as seen from its centre, 0 if it is ignored; targets to index with; how many count, at least 1."""
    counted = (targets != IGNORED).sum().clamp(min=1) if is_asynchronous(targets) else max(1, len(targets))
    features, targets, counted_N1 = without_ignored(features, targets)
    away = features - centers.index_select(0, targets)
    return (away if counted_N1 is None else away * counted_N1), targets, counted


class _CentresFollow(torch.autograd.Function):
    """Zero, whose gradient for the centres is their update rule; the same in all processes of a group."""

    @staticmethod
    def forward(
        ctx: Any,
        centers_CA: Tensor,
        away_NA: Tensor,
        targets_N: Tensor,
        counts_C: Tensor,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.group = group
        ctx.save_for_backward(away_NA, targets_N, counts_C)
        return away_NA.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        away_NA, targets_N, counts_C = ctx.saved_tensors
        scale = gradients[0]
        if ctx.group is not None:  # each process's loss may count by another weight; on average, by that of the whole
            scale = scale.clone()
            dist.all_reduce(scale, group=ctx.group)
            scale = scale / dist.get_world_size(ctx.group)
        towards_CA = away_NA.new_zeros(len(counts_C), away_NA.shape[1]).index_add_(0, targets_N, away_NA)
        return towards_CA * (-scale / (1 + counts_C))[:, None], None, None, None, None
