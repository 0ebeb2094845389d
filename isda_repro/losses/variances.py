"""Running mean and variance of each feature within each class: the diagonals of equations 9-11.

Shapes: N samples in the batch, C classes, A features, U rows, one for each class of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isda_repro.losses.batch_classes import BatchClasses, classes_present, is_asynchronous
from isda_repro.losses.statistics import only, samples_of_each, without_ignored


class ClassVariances(nn.Module):
    """Mean [C, A], variance [C, A] and count [C] of every class over all batches seen.

    What ``ClassStatistics`` is for whole covariances: merged in place, exactly, population variances. A batch costs
    N A, and nothing of the size N C A is ever built.

    Args:
        num_classes: C.
        feature_dim: A.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim))
        self.register_buffer("variance", torch.zeros(num_classes, feature_dim))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Merge a batch: ``features`` [N, A] and ``targets`` int64 [N] in [0, C), on an accelerator also ``IGNORED``.

        Its own mean enters as in ``ClassStatistics.update``: n before, T after, the mean moving by delta,

            sigma2_new = (n sigma2 + sum_i (a_i - mu_new)^2 + n delta^2) / T
        """
        batch_count_C = samples_of_each(targets, len(self.count))
        self.count += batch_count_C
        features, targets, counts_N1 = without_ignored(features.to(self.mean.dtype), targets)
        # A CPU reads and writes only the classes that are there; an accelerator need not know which these are.
        batch = BatchClasses(None, targets) if is_asynchronous(targets) else classes_present(targets, len(self.count))
        mean_UA, variance_UA = batch.take(self.mean), batch.take(self.variance)
        total_U1 = batch.take(self.count).to(mean_UA.dtype).clamp_(min=1)[:, None]
        before_U1 = total_U1 - batch.take(batch_count_C)[:, None]
        centred_NA = only(counts_N1, features - mean_UA.index_select(0, batch.row_N))
        moved_UA = torch.zeros_like(mean_UA).index_add_(0, batch.row_N, centred_NA).div_(total_U1)
        mean_UA += moved_UA
        centred_NA -= only(counts_N1, moved_UA.index_select(0, batch.row_N))
        share_of_sums_UA = moved_UA.square_().mul_(before_U1).index_add_(0, batch.row_N, centred_NA.square_())
        variance_UA.mul_(before_U1 / total_U1).add_(share_of_sums_UA.div_(total_U1))
        if batch.classes_U is not None:  # else they are views, and all is in its place
            self.mean.index_copy_(0, batch.classes_U, mean_UA)
            self.variance.index_copy_(0, batch.classes_U, variance_UA)
