"""Covariances of rare classes: the quadratic form of a class, mixed with that of the pooled within-class covariance.

With n samples of class c seen so far and k = ``prior``, the added term uses

    sigma2[c, j] = (n q_c + k q_within) / (n + k),   q(Sigma) = (w_j - w_c)^T Sigma (w_j - w_c)

where q_c has the class's own covariance and q_within the pooled one, sum_c n_c Sigma_c / sum_c n_c. This is the
quadratic form of the covariance (n Sigma_c + k Sigma_within) / (n + k), which is never built: a form is linear in its
matrix.

The pooled covariance is computed anew in each step, by one pass over the covariances of all classes. A sum that is
updated batch by batch would cost less, but it would be state: a resumed run would have to restore it bit for bit.

Shapes: N samples, C classes, A features, U rows: one for each class of the batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from isda_repro.losses.batch_classes import BatchClasses
from isda_repro.losses.covariances.class_statistics import ClassStatistics, ClassVariances, at_least_tiny
from isda_repro.losses.covariances.packed import Statistics, unpack
from isda_repro.losses.covariances.quadratic import Strength, sigma2_common


@torch.no_grad()
def within_class(statistics: Statistics) -> Tensor:
    """Return the pooled within-class covariance [A, A], or its diagonal [A]; zero if no sample has been seen.

    If packed covariances are divided among processes, all of them must call this.
    """
    count_C = statistics.count.to(statistics.mean.dtype)
    share_C = count_C / at_least_tiny(count_C.sum())
    if isinstance(statistics, ClassVariances):
        return share_C @ statistics.variance
    if isinstance(statistics, ClassStatistics):
        return (share_C @ statistics.covariance.flatten(1)).view_as(statistics.covariance[0])
    pooled = (share_C[statistics.own_range] @ statistics.packed.flatten(1)).view(statistics.packed.shape[1:])
    if statistics.process_group is not None:
        dist.all_reduce(pooled, group=statistics.process_group)
    return unpack(pooled, statistics.mean.shape[1])


def mixed(
    of_class_NC: Tensor, weight: Tensor, batch: BatchClasses, statistics: Statistics, prior: float, strength: Strength
) -> Tensor:
    """Return the added term of each sample's class, mixed with that of the pooled covariance, [N, C].

    Args:
        of_class_NC: ``strength/2 q_c``, the added term from the class's own covariance.
        weight: [C, A], the weight of the head, which gets a gradient through both forms.
        batch: the classes of the batch, and the row of each sample among them.
        statistics: those of all classes; constants.
        prior: k, the number of samples that the pooled covariance counts for.
        strength: lambda.
    """
    within_UC = sigma2_common(weight, within_class(statistics).to(weight.dtype), batch)
    share_N = own_share(batch.take(statistics.count).to(weight.dtype), prior).index_select(0, batch.row_N)
    return torch.lerp((0.5 * strength * within_UC).index_select(0, batch.row_N), of_class_NC, share_N[:, None])


def own_share(count: Tensor, prior: float) -> Tensor:
    """Return the share n / (n + k) of a class's own covariance, 0 without samples; ``count`` is a float tensor."""
    return count / at_least_tiny(count + prior)
