"""Running mean and covariance of the features of each class: equations 9-11 of the paper (Appendix A).

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isda_repro.losses.batch_classes import is_asynchronous

BATCHED_BYTES = 2**21  # of covariances: measured on a CPU, up to here it is quicker to pass through all of them


class ClassStatistics(nn.Module):
    """Mean [C, A], covariance [C, A, A] and count [C] of every class over all batches seen.

    Each batch is merged in place, exactly: the result is that of one pass over all samples together (the population
    covariance, divided by the count). A class that has never been seen has mean and covariance zero.

    Args:
        num_classes: C.
        feature_dim: A. The covariances take 4 C A A bytes.
    """

    mean: Tensor
    covariance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim))
        self.register_buffer("covariance", torch.zeros(num_classes, feature_dim, feature_dim))
        # Whole numbers, which stay exact for ever; fp32 would stop counting at 2**24.
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Merge a batch: ``features`` [N, A] and ``targets`` int64 [N] in [0, C).

        With T the new count of a class, equations 9 and 10 become sums over its samples in which only differences
        occur, so that a large mean costs no precision:

            mu_new = mu + sum_i (a_i - mu) / T
            Sigma_new = (1 - m/T) Sigma + sum_i (a_i - mu) (a_i - mu_new)^T / T
        """
        features_NA = features.detach().to(self.mean.dtype)
        batch_count_C = _count(targets, len(self.count))
        self.count += batch_count_C
        share_C = self.count.to(self.mean.dtype).reciprocal()  # infinite where nothing was ever seen, and unused there
        from_old_NA = features_NA - self.mean.index_select(0, targets)
        left_NA = from_old_NA * share_C.index_select(0, targets)[:, None]
        delta_CA = torch.zeros_like(self.mean).index_add_(0, targets, left_NA)
        right_NA = from_old_NA - delta_CA.index_select(0, targets)
        self.mean += delta_CA
        if self.covariance.nbytes > BATCHED_BYTES and not is_asynchronous(features):
            self._merge_one_by_one(left_NA, right_NA, targets, batch_count_C)
        else:
            self._merge_all_at_once(left_NA, right_NA, targets, batch_count_C)

    def _merge_one_by_one(self, left_NA: Tensor, right_NA: Tensor, targets_N: Tensor, batch_count_C: Tensor) -> None:
        """An in-place product for each class present: no other covariance is read, and none is copied."""
        order_N = targets_N.argsort()
        counts, totals = batch_count_C.tolist(), self.count.tolist()
        lefts, rights = left_NA.index_select(0, order_N).split(counts), right_NA.index_select(0, order_N).split(counts)
        for class_number, count in enumerate(counts):
            if count:
                left, right = lefts[class_number], rights[class_number]
                self.covariance[class_number].addmm_(left.T, right, beta=1 - count / totals[class_number])

    def _merge_all_at_once(self, left_NA: Tensor, right_NA: Tensor, targets_N: Tensor, batch_count_C: Tensor) -> None:
        """One batched product, each class's samples laid into rows of its own; an accelerator is not waited for."""
        classes, width = self.mean.shape
        if is_asynchronous(left_NA):  # as many rows as samples always suffice, and nobody need know the largest count
            rows = len(targets_N)
            row_N = torch.arange(rows, device=targets_N.device)
        else:
            rows = int(batch_count_C.max())
            row_N = _rank_in_class(targets_N, batch_count_C)
        slot_N = targets_N * rows + row_N
        left_CRA, right_CRA = (
            part.new_zeros(classes * rows, width).index_copy_(0, slot_N, part).view(classes, rows, width)
            for part in (left_NA, right_NA)
        )
        decay_C = 1 - batch_count_C.to(self.mean.dtype) / self.count.clamp(min=1)
        self.covariance.mul_(decay_C[:, None, None]).baddbmm_(left_CRA.mT, right_CRA)


def _rank_in_class(targets_N: Tensor, batch_count_C: Tensor) -> Tensor:
    """How many samples of its class come before each sample, in some fixed order; int64 [N]."""
    sorted_N, order_N = targets_N.sort()
    first_C = batch_count_C.cumsum(0) - batch_count_C
    rank_of_sorted_N = torch.arange(len(targets_N)) - first_C.index_select(0, sorted_N)
    return torch.empty_like(targets_N).index_copy_(0, order_N, rank_of_sorted_N)


def _count(targets: Tensor, num_classes: int) -> Tensor:
    """Samples of each class, int64 [C]. ``bincount`` is faster, but waits for an accelerator."""
    if is_asynchronous(targets):
        return targets.new_zeros(num_classes).index_add_(0, targets, torch.ones_like(targets))
    return torch.bincount(targets, minlength=num_classes)
