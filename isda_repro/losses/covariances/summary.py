"""Figures that show what ISDA does to a network: its added term beside the logit margins, and its covariances.

The margin of class c against class j is z_c - z_j. Over the samples of class c seen so far, with the head as it is now,
its mean is that of the class's mean feature, and its variance is sigma2[c, j] of equation 4, because a logit is linear
in the features. So both terms below come from the statistics and the head alone. They cost nothing in a step, and a
resumed run has the same ones.

Shapes: C classes, A features, R rows: C, or 1 with one covariance for all classes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import BatchClasses
from isda_repro.losses.covariances.class_statistics import ClassStatistics, ClassVariances
from isda_repro.losses.covariances.packed import Statistics

Summary = dict[str, float | list[float]]


def trace_and_norm(statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Return trace and Frobenius norm of every covariance, [R] each.

    If packed covariances are divided among processes, all of them must call this.
    """
    if isinstance(statistics, ClassVariances):
        return statistics.variance.sum(1), torch.linalg.vector_norm(statistics.variance, dim=1)
    if isinstance(statistics, ClassStatistics):
        return _trace_and_norm(statistics.covariance)
    both_2C = statistics.mean.new_zeros(2, len(statistics.count))
    own_2U = both_2C[:, statistics.own_range]
    for here, covariance_KAA in statistics.chunks(BatchClasses(None, statistics.count)):
        own_2U[:, here] = torch.stack(_trace_and_norm(covariance_KAA))
    if statistics.process_group is not None:
        dist.all_reduce(both_2C, group=statistics.process_group)
    return both_2C[0], both_2C[1]


def _trace_and_norm(covariance: Tensor) -> tuple[Tensor, Tensor]:
    return covariance.diagonal(dim1=1, dim2=2).sum(1), torch.linalg.vector_norm(covariance.flatten(1), dim=1)


def mean_margin(mean: Tensor, head: nn.Linear) -> Tensor:
    """Return the size of each class's mean margin, averaged over the wrong classes, [C].

    Args:
        mean: [C, A], the mean features of the classes.
        head: the last layer, nn.Linear or a convolution of kernel 1.
    """
    bias = None if head.bias is None else head.bias.to(mean.dtype)
    logits_CC = F.linear(mean, head.weight.flatten(1).to(mean.dtype), bias)
    return over_wrong((logits_CC.diagonal()[:, None] - logits_CC).abs())


def over_wrong(values_CC: Tensor) -> Tensor:
    """Return the mean of each row over the other classes, [C]; the diagonal must be zero."""
    return values_CC.sum(1) / max(1, values_CC.shape[1] - 1)


def summarise(statistics: Statistics, added: Tensor | None, margin: Tensor | None) -> Summary:
    """Return the summary of ``ISDALoss.summary``; waits for the device.

    Args:
        statistics: those of all classes, or of all samples together.
        added: [C], the added term of each class, averaged over the wrong classes; None: not known.
        margin: [C], as ``mean_margin`` returns it; None: not known.
    """
    trace, norm = trace_and_norm(statistics)
    rank = (trace / norm.clamp(min=torch.finfo(norm.dtype).tiny)).square()
    of_class = {"trace": trace, "effective_rank": rank, "added": added, "margin": margin}
    known = {name: one for name, one in of_class.items() if one is not None}
    samples = [float(count) for count in statistics.count.tolist()]
    if len(samples) == 1:  # one covariance: the added term is all that the classes have of their own
        known = {name: one.mean(0, keepdim=True) for name, one in known.items()}
    seen_R = (statistics.count > 0).to(trace.dtype)
    table = torch.stack([one.to(trace.dtype) * seen_R for one in known.values()])
    rows = table.nan_to_num().tolist()  # JSON has no infinity
    lists: dict[str, list[float]] = {"samples": samples, **dict(zip(known, rows, strict=True))}
    seen = max(1, sum(count > 0 for count in samples))
    summary: Summary = {name: sum(values) / seen for name, values in lists.items()}
    summary["samples"] = sum(samples)
    if added is not None and margin is not None:
        lists["ratio"] = [_ratio(*both) for both in zip(lists["added"], lists["margin"], strict=True)]
        summary["ratio"] = _ratio(sum(lists["added"]), sum(lists["margin"]))
    return summary if len(samples) == 1 else summary | {f"class_{name}": values for name, values in lists.items()}


def _ratio(added: float, margin: float) -> float:
    return added / margin if margin else 0.0
