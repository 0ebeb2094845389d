"""Center loss (Wen et al. 2016): cross-entropy, plus a penalty on the distance of each feature to its class centre.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, is_asynchronous, of_all_processes, without_unsound
from isda_repro.losses.covariances.class_statistics import samples_of_each, without_ignored
from isda_repro.losses.criterion import Criterion, require_from_zero
from isda_repro.losses.state import state_dtype


class CenterLoss(Criterion):
    """``CE + weight * 1/2 mean_i |a_i - c_{y_i}|^2``, with one learned centre c for each class.

    The centres' gradient is Wen et al.'s update rule (their equation 4), not the derivative of the loss:

        delta c_j = sum_{i: y_i = j} (c_j - a_i) / (1 + n_j),   n_j the samples of class j in the batch

    So an SGD step with rate 0.5 (see ``parameter_groups``) moves a centre half way to the mean of many samples,
    whatever the batch size and the weight of the loss. As in their code, the loss is a mean over the batch.

    The ISDA paper gives the initial rate of the centres, 0.5 (Appendix B), and nothing else about this loss.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        weight: factor of the penalty; 0 gives cross-entropy. Wen et al. use 0.003, the ISDA paper does not say.
        centers_lr: initial learning rate of the centres; the run's schedule applies to it.
        ignore_index: see ``Criterion``.
        process_group: processes whose batches count as one, as for ``ISDALoss``. Each process gets the centres'
            gradient of all samples, which must not be reduced again. None: this process alone.

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
        ignore_index: int | None = IGNORED,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        self.process_group = process_group
        require_from_zero("weight", weight)
        require_from_zero("centers_lr", centers_lr)
        self.weight, self.centers_lr = weight, centers_lr
        bound = math.sqrt(3 / feature_dim)  # initialised as in their code; forgotten within a few steps
        self.centers = nn.Parameter(torch.empty(num_classes, feature_dim, dtype=state_dtype()).uniform_(-bound, bound))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter group of the centres: plain SGD, without momentum or weight decay."""
        options = {"lr": self.centers_lr, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        return [{"params": [self.centers], **options}]

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the sum of cross-entropy and penalty, each a mean over the batch."""
        cross_entropy = self._cross_entropy(features, logits, targets, head=head, progress=progress)
        centers = self.centers.to(features.dtype)
        away, known, samples = _away(features, targets, centers.detach())
        pull = away.square().sum() * (0.5 * self.weight) / samples  # divide last: 1 / samples alone would be float32
        followed = of_all_processes(features, targets, self.process_group)
        features, followed_targets = without_unsound(*followed, self.centers.dtype)
        if followed_targets is not targets:
            away, known, _ = _away(features, followed_targets, centers.detach())
        counts_C = samples_of_each(followed_targets, len(centers))
        nothing: Tensor = _CentresFollow.apply(centers, away.detach(), known, counts_C, self.process_group)
        return cross_entropy + pull + nothing


def _away(features: Tensor, targets: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
    """Return the feature offsets from the centres [N, A], usable indices [N], and the number of samples (at least 1).

    The offset of an ignored sample is 0.
    """
    counted = (targets != IGNORED).sum().clamp(min=1) if is_asynchronous(targets) else max(1, len(targets))
    features, targets, counted_N1 = without_ignored(features, targets)
    away = features - centers.index_select(0, targets)
    return (away if counted_N1 is None else away * counted_N1), targets, counted


class _CentresFollow(torch.autograd.Function):
    """The number 0, whose gradient for the centres is their update rule; the same in all processes of a group."""

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
        if ctx.group is not None:  # the processes' losses may be weighted differently: take the mean weight
            scale = scale.clone()
            dist.all_reduce(scale, group=ctx.group)
            scale = scale / dist.get_world_size(ctx.group)
        towards_CA = away_NA.new_zeros(len(counts_C), away_NA.shape[1]).index_add_(0, targets_N, away_NA)
        return towards_CA * (-scale / (1 + counts_C))[:, None], None, None, None, None
