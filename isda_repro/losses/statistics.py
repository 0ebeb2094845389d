"""Running mean and covariance of the features of each class: equations 9-11 of the paper (Appendix A).

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        if features.is_cpu:
            self._merge_each_class(left_NA, right_NA, targets, batch_count_C)
        else:
            self._merge_all_classes(left_NA, right_NA, targets, batch_count_C)

    def _merge_all_classes(self, left_NA: Tensor, right_NA: Tensor, targets_N: Tensor, batch_count_C: Tensor) -> None:
        """One product for all classes, of fixed shapes: for an accelerator, which must not be waited for."""
        classes, width = self.mean.shape
        decay_C = 1 - batch_count_C / self.count.clamp(min=1)
        self.covariance.mul_(decay_C.to(self.mean.dtype)[:, None, None])
        expanded_NCA = left_NA.new_zeros(len(left_NA), classes, width)
        expanded_NCA[torch.arange(len(left_NA), device=left_NA.device), targets_N] = left_NA
        self.covariance.view(classes * width, width).addmm_(expanded_NCA.flatten(1).T, right_NA)

    def _merge_each_class(self, left_NA: Tensor, right_NA: Tensor, targets_N: Tensor, batch_count_C: Tensor) -> None:
        """One in-place product for each class present: no other covariance is read, and none is copied."""
        order_N = targets_N.argsort()
        counts, totals = batch_count_C.tolist(), self.count.tolist()
        lefts, rights = left_NA.index_select(0, order_N).split(counts), right_NA.index_select(0, order_N).split(counts)
        for class_number, count in enumerate(counts):
            if count:
                left, right = lefts[class_number], rights[class_number]
                self.covariance[class_number].addmm_(left.T, right, beta=1 - count / totals[class_number])


def _count(targets: Tensor, num_classes: int) -> Tensor:
    """Samples of each class, int64 [C]. ``bincount`` is faster, but waits for an accelerator."""
    if targets.is_cpu:
        return torch.bincount(targets, minlength=num_classes)
    return targets.new_zeros(num_classes).index_add_(0, targets, torch.ones_like(targets))
