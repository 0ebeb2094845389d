"""Samples that belong to several classes with weights, as mixup makes them, in the statistics of each class.

With weights p_ic, equations 9 to 11 count sample i as p_ic samples of class c. With n samples of a class before and T =
n + sum_i p_ic after:

    mu_new = mu + sum_i p_ic (a_i - mu) / T
    Sigma_new = (n Sigma + sum_i p_ic (a_i - mu_new) (a_i - mu_new)^T + n (mu - mu_new) (mu - mu_new)^T) / T

Shapes: N samples in the batch, M of them at a time, C classes, K of them at a time, A features, R = M + 1 rows of a
class: the shift of its mean and its samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import IGNORED, bytes_of, is_asynchronous, mark_unsound

ROWS_BYTES = 2**25  # of rows at a time on an accelerator: more of them are made only if the features are larger


class SoftRows(NamedTuple):
    """Change of some classes' covariances by a batch, to ``Sigma * keep + sum over rows of row row^T``.

    Attributes:
        classes: the K classes.
        keep_K: the share of the old covariance.
        rows_KRA: rows, [K, R, A].
    """

    classes: slice
    keep_K: Tensor
    rows_KRA: Tensor


def merge_soft(
    features: Tensor, probabilities: Tensor, mean: Tensor, count: Tensor, most: int | None = None
) -> Iterator[SoftRows]:
    """Merge a batch into means and counts in place, and yield what it changes in the covariances.

    On a CPU each class comes alone, with the samples that have a share in it, and absent classes do not come. On an
    accelerator, whose values the host must not read, several classes come at a time with all samples.

    Args:
        features: [N, A]; a sample that is not finite, or whose squares overflow, counts for nothing.
        probabilities: p [N, C], from 0 on.
        mean: [C, A].
        count: float64 [C].
        most: the largest number of classes at a time; None: any.
    """
    is_sound_N1 = (mark_unsound(features, probabilities.new_zeros(len(features)), mean.dtype) != IGNORED)[:, None]
    features_NA = torch.where(is_sound_N1, features, 0).to(mean.dtype)
    share_CN = torch.where(is_sound_N1, probabilities, 0).T.contiguous()
    added_C = share_CN.sum(1, dtype=count.dtype)
    if not is_asynchronous(features):
        for c in added_C.nonzero()[:, 0].tolist():
            here, samples = slice(c, c + 1), share_CN[c].nonzero()[:, 0]
            share_KM = share_CN[here].index_select(1, samples)
            yield _merged(here, features_NA.index_select(0, samples), share_KM, mean, count, added_C)
        return
    step = max(1, max(ROWS_BYTES, 2 * bytes_of(features_NA)) // max(1, bytes_of(features_NA)))
    step = step if most is None else min(step, most)
    for start in range(0, len(count), step):
        here = slice(start, min(start + step, len(count)))
        yield _merged(here, features_NA, share_CN[here], mean, count, added_C)


def _merged(
    here: slice, features_MA: Tensor, share_KM: Tensor, mean_CA: Tensor, count_C: Tensor, added_C: Tensor
) -> SoftRows:
    """Merge M samples with their shares of K classes into the means and counts of these classes."""
    before_K = count_C[here].clone()
    count_C[here] += added_C[here]
    total_K = count_C[here].clamp(min=torch.finfo(mean_CA.dtype).tiny)
    keep_K, share_KM = before_K / total_K, share_KM / total_K[:, None]
    centred_KMA = features_MA - mean_CA[here][:, None]
    moved_K1A = torch.bmm(share_KM.to(mean_CA.dtype)[:, None], centred_KMA)
    mean_CA[here] += moved_K1A[:, 0]
    centred_KMA = (centred_KMA - moved_K1A).mul_(share_KM.sqrt().to(mean_CA.dtype)[:, :, None])
    keep_K = keep_K.to(mean_CA.dtype)
    return SoftRows(here, keep_K, torch.cat((moved_K1A.mul_(keep_K.sqrt()[:, None, None]), centred_KMA), 1))
