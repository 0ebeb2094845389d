"""Running mean and covariance (or variances) of the features of each class: equations 9-11 of Appendix A.

Samples whose features are not finite, or so large that their squares overflow, count for nothing. A batch needs
temporary memory of the order of its features, however its samples are distributed among the classes.

Shapes: N samples in the batch, C classes, A features, R rows of a class: the shift of its mean and its samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import (
    IGNORED,
    BatchClasses,
    bytes_of,
    classes_present,
    is_asynchronous,
    without_negative,
    without_unsound,
)
from isda_repro.losses.covariances.soft_rows import merge_soft
from isda_repro.losses.covariances.tiles import add_products, fill_tiles
from isda_repro.losses.state import StatefulModule, state_dtype

BATCHED_BYTES = 2**21  # of covariances: up to this size one batched product was faster on a CPU
CPU_ROWS_BYTES = 2**24  # of padded rows: more of them are made only if the features are larger
ACCELERATOR_ROWS_BYTES = 2**25
COMPARED_BYTES = 2**26  # of comparisons of targets with classes


def rows_bytes(features: Tensor) -> int:
    """Return how many bytes of padded rows may be made at a time from ``features`` [N, A]."""
    return max(ACCELERATOR_ROWS_BYTES if is_asynchronous(features) else CPU_ROWS_BYTES, 2 * bytes_of(features))


class ClassStatistics(StatefulModule):
    """Running mean, covariance and count of every class, over all batches seen.

    Each batch is merged in place and exactly: the result equals that of a single pass over all samples (the population
    covariance, divided by the count). A class that has never been seen has mean and covariance zero.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A. The covariances take 4 C A A bytes.

    Attributes:
        mean: [C, A].
        covariance: [C, A, A], symmetric.
        count: number of samples of each class, float64 [C], which counts to 2^53 and also shares of samples.
    """

    exact: ClassVar[tuple[str, ...]] = ("count",)

    mean: Tensor
    covariance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        dtype = state_dtype()
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim, dtype=dtype))
        self.register_buffer("covariance", torch.zeros(num_classes, feature_dim, feature_dim, dtype=dtype))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Merge one batch into the statistics, in place.

        With n samples of a class before, m in the batch, T = n + m, and the mean moving from mu to
        mu_new = mu + sum_i (a_i - mu) / T (equation 9), equation 10 becomes

            Sigma_new = (n Sigma + sum_i (a_i - mu_new) (a_i - mu_new)^T + n (mu - mu_new) (mu - mu_new)^T) / T

        So each class needs one product of a matrix with itself, whose rows are the samples and the old mean, relative
        to the new mean. The added term is symmetric and positive semi-definite, and a mean far from zero costs the
        first batch no precision.

        Args:
            features: [N, A].
            targets: int64 [N] in [0, C); on an accelerator also ``IGNORED``. Or probabilities, [N, C]: ``soft_rows``.
        """
        if targets.is_floating_point():
            self._update_soft(features, targets)
            return
        mean_CA, covariance_CAA, count_C = self.mean, self.covariance, self.count
        features, targets = without_unsound(features, targets, mean_CA.dtype)
        batch_count_C = samples_of_each(targets, len(count_C))
        before_C = count_C.to(mean_CA.dtype, copy=True)
        count_C += batch_count_C
        total_C = at_least_tiny(count_C.to(mean_CA.dtype))
        features, targets, counts_N1 = without_ignored(features.to(mean_CA.dtype), targets)
        centred_NA = only(counts_N1, features - mean_CA.index_select(0, targets))
        moved_CA = torch.zeros_like(mean_CA).index_add_(0, targets, centred_NA).div_(total_C[:, None])
        mean_CA += moved_CA  # zero for an absent class
        centred_NA -= only(counts_N1, moved_CA.index_select(0, targets))
        keep_C = before_C / total_C
        shift_CA = moved_CA.mul_(before_C.sqrt_()[:, None])
        if self._merges_one_by_one(centred_NA, batch_count_C):
            self._merge_one_by_one(centred_NA, shift_CA, targets, batch_count_C)
        else:
            covariance_CAA.mul_(keep_C[:, None, None])
            self._add_together(centred_NA, shift_CA, targets, batch_count_C, total_C)

    def _update_soft(self, features: Tensor, probabilities: Tensor) -> None:
        for here, keep_K, rows_KRA in merge_soft(features, probabilities, self.mean, self.count):
            if is_asynchronous(features):
                self.covariance[here].mul_(keep_K[:, None, None]).baddbmm_(rows_KRA.mT, rows_KRA)
            else:  # one class: a single pass over its covariance
                self.covariance[here.start].addmm_(rows_KRA[0].T, rows_KRA[0], beta=keep_K.item())

    def _add_together(
        self, centred_NA: Tensor, shift_CA: Tensor, targets_N: Tensor, batch_count_C: Tensor, total_C: Tensor
    ) -> None:
        """Add the products of all classes' rows, divided by their totals, to the covariances."""
        scale_C = total_C.rsqrt()
        if is_asynchronous(centred_NA) and fill_tiles(len(targets_N), len(total_C)):
            shift_CA = shift_CA * scale_C[:, None]
            self.covariance.baddbmm_(shift_CA[:, :, None], shift_CA[:, None])
            add_products(self.covariance, centred_NA, targets_N, total_C.reciprocal(), rows_bytes(centred_NA))
            return
        for rows_CRA in _rows(centred_NA, shift_CA, targets_N, batch_count_C, bytes_of(self.covariance)):
            rows_CRA *= scale_C[:, None, None]
            self.covariance.baddbmm_(rows_CRA.mT, rows_CRA)

    def _merges_one_by_one(self, centred_NA: Tensor, batch_count_C: Tensor) -> bool:
        """Return True, on a CPU, if the covariances are large or most samples would have padding beside them."""
        if is_asynchronous(centred_NA):
            return False
        padded = (int(batch_count_C.max()) + 1) * bytes_of(self.mean)
        return bytes_of(self.covariance) > BATCHED_BYTES or padded > rows_bytes(centred_NA)

    def _merge_one_by_one(self, centred_NA: Tensor, shift_CA: Tensor, targets_N: Tensor, batch_count_C: Tensor) -> None:
        """Update the covariance of each class present with one in-place product.

        No other covariance is read, and none is copied.
        """
        counts, totals = batch_count_C.tolist(), self.count.tolist()
        centred = centred_NA.index_select(0, targets_N.argsort()).split(counts)
        for c, (count, total) in enumerate(zip(counts, totals, strict=True)):
            if count:
                rows_RA = torch.cat((shift_CA[c : c + 1], centred[c]))
                self.covariance[c].addmm_(rows_RA.T, rows_RA, beta=1 - count / total, alpha=1 / total)


def at_least_tiny(total: Tensor) -> Tensor:
    """Return counts by which one may divide; one of soft samples can be below 1."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)  # a copy: in float64 it is the count itself


def _rows(
    centred_NA: Tensor, shift_CA: Tensor, targets_N: Tensor, batch_count_C: Tensor, covariance_bytes: int
) -> Iterator[Tensor]:
    """Yield each class's shift and samples in equally many rows [C, R, A], padded with zeros for a batched product.

    On an accelerator the product then costs C N A A instead of N A A: 5 G multiply-adds at (N, C, A) = (128, 100, 640);
    larger batches take ``tiles`` instead.
    As many rows as samples always suffice there, so the largest count is not read. A large batch is split, so that the
    rows take no more than the covariances or ``rows_bytes``. On a CPU the samples of a class take the last of its rows.
    """
    position_N = torch.arange(len(targets_N), device=targets_N.device)
    if not is_asynchronous(targets_N):
        rows = int(batch_count_C.max()) + 1
        targets_N, order_N = targets_N.sort()
        skipped_C = torch.arange(rows, rows * len(shift_CA) + 1, rows) - batch_count_C.cumsum(0)
        slot_N = skipped_C.index_select(0, targets_N).add_(position_N)
        yield _placed(centred_NA.index_select(0, order_N), slot_N, shift_CA, rows)
        return
    most = max(1, max(rows_bytes(centred_NA), covariance_bytes) // bytes_of(shift_CA) - 1)
    position_N += 1
    for start in range(0, len(targets_N), most):
        part_NA, part_N = centred_NA[start : start + most], targets_N[start : start + most]
        rows = len(part_N) + 1
        slot_N = position_N[: len(part_N)].add(part_N, alpha=rows)
        yield _placed(part_NA, slot_N, shift_CA if start == 0 else torch.zeros_like(shift_CA), rows)


def _placed(centred_NA: Tensor, slot_N: Tensor, shift_CA: Tensor, rows: int) -> Tensor:
    """Return samples in their slots of [C, rows, A], below the shift of each class."""
    rows_CRA = centred_NA.new_zeros(len(shift_CA), rows, shift_CA.shape[1])
    rows_CRA.view(-1, rows_CRA.shape[2]).index_copy_(0, slot_N, centred_NA)
    rows_CRA[:, 0] = shift_CA
    return rows_CRA


def samples_of_each(targets: Tensor, num_classes: int) -> Tensor:
    """Return the number of samples of each class, int64 [C].

    ``bincount`` is faster, but waits for an accelerator.
    """
    if is_asynchronous(targets):
        if num_classes * len(targets) > COMPARED_BYTES:
            counted_N = (targets >= 0).long()
            return counted_N.new_zeros(num_classes).index_add_(0, targets.clamp(min=0), counted_N)
        return (torch.arange(num_classes, device=targets.device)[:, None] == targets).sum(1)
    return torch.bincount(targets, minlength=num_classes)


def without_ignored(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features with zeros for ignored samples, usable class indices, and which samples count.

    The last is a float tensor [N, 1], 0 for ignored samples and 1 otherwise; None if all count.
    """
    if not is_asynchronous(targets):
        return features, targets, None  # ignored samples have been dropped
    counts_N1 = (targets != IGNORED)[:, None]
    return torch.where(counts_N1, features, 0), without_negative(targets), counts_N1.to(features.dtype)


def only(counts_N1: Tensor | None, of_samples: Tensor) -> Tensor:
    """Set ``of_samples`` [N, A] to 0 in place where a sample is ignored, and return it."""
    return of_samples if counts_N1 is None else of_samples.mul_(counts_N1)


class ClassVariances(StatefulModule):
    """Running mean, variance and count of every class, over all batches seen.

    The diagonal counterpart of ``ClassStatistics``: merged in place and exactly, population variances. A batch costs N
    A operations, and no tensor of size N C A is built.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.

    Attributes:
        mean: [C, A].
        variance: [C, A].
        count: number of samples of each class, float64 [C], which counts to 2^53 and also shares of samples.
    """

    exact: ClassVar[tuple[str, ...]] = ("count",)

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim, dtype=state_dtype()))
        self.register_buffer("variance", torch.zeros(num_classes, feature_dim, dtype=state_dtype()))
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        """Merge one batch into the statistics, in place.

        As in ``ClassStatistics.update``, with n samples of a class before, T after, and the mean moving by delta:

            sigma2_new = (n sigma2 + sum_i (a_i - mu_new)^2 + n delta^2) / T

        Args:
            features: [N, A].
            targets: int64 [N] in [0, C); on an accelerator also ``IGNORED``. Or probabilities, [N, C]: ``soft_rows``.
        """
        if targets.is_floating_point():
            for here, keep_K, rows_KRA in merge_soft(features, targets, self.mean, self.count):
                self.variance[here].mul_(keep_K[:, None]).add_(rows_KRA.square_().sum(1))
            return
        features, targets = without_unsound(features, targets, self.mean.dtype)
        batch_count_C = samples_of_each(targets, len(self.count))
        self.count += batch_count_C
        features, targets, counts_N1 = without_ignored(features.to(self.mean.dtype), targets)
        # A CPU reads and writes only the classes present; an accelerator would have to wait to know them.
        batch = BatchClasses(None, targets) if is_asynchronous(targets) else classes_present(targets, len(self.count))
        mean_UA, variance_UA = batch.take(self.mean), batch.take(self.variance)
        total_U1 = at_least_tiny(batch.take(self.count).to(mean_UA.dtype))[:, None]
        before_U1 = total_U1 - batch.take(batch_count_C)[:, None]
        centred_NA = only(counts_N1, features - mean_UA.index_select(0, batch.row_N))
        moved_UA = torch.zeros_like(mean_UA).index_add_(0, batch.row_N, centred_NA).div_(total_U1)
        mean_UA += moved_UA
        centred_NA -= only(counts_N1, moved_UA.index_select(0, batch.row_N))
        share_of_sums_UA = moved_UA.square_().mul_(before_U1).index_add_(0, batch.row_N, centred_NA.square_())
        variance_UA.mul_(before_U1 / total_U1).add_(share_of_sums_UA.div_(total_U1))
        if batch.classes_U is not None:  # otherwise they are views and already updated
            self.mean.index_copy_(0, batch.classes_U, mean_UA)
            self.variance.index_copy_(0, batch.classes_U, variance_UA)
