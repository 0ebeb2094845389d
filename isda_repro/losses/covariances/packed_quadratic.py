"""sigma2 (see ``quadratic.py``) from packed covariances, which may be divided among processes.

A process computes the classes that it holds, for the batch of all processes. In the forward pass each process adds its
rows of sigma2 to a sum over the processes. In the backward pass the factors of all processes are summed first. The
gradient for the head's weight, once summed over the processes as for any other weight, is then that of the whole batch.

Shapes: N samples of this process, C classes, A features, U rows: one for each class that this process holds of the
batch of all processes, K of them at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isda_repro.losses.batch_classes import BatchClasses, bytes_of, without_autocast, without_negative
from isda_repro.losses.covariances.packed import PackedStatistics
from isda_repro.losses.covariances.quadratic import Strength, first_order, less_own

KEPT_BYTES = 2**30  # of products for the backward pass; more are computed again there


def add_half_sigma2_packed(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor,
    statistics: PackedStatistics,
    all_targets: Tensor,
    strength: Strength,
) -> Tensor:
    """Return the logits of equation 4, as ``quadratic.add_half_sigma2`` does, from packed covariances.

    Args:
        logits: [N, C].
        targets: [N], the classes of the samples of ``logits``.
        weight: [C, A], the weight of the head, the same on all processes.
        statistics: the covariances of this process's classes; must not be updated again before the backward pass.
        all_targets: the targets of the batch of all processes.
        strength: lambda.

    Returns:
        [N, C].
    """
    batch, group = statistics.own_classes(all_targets), statistics.process_group
    is_there_U = None if group is None else statistics.is_there(batch, all_targets)
    result: Tensor = _AddHalfSigma2.apply(logits, weight, targets, statistics, is_there_U, batch, strength, group)
    return result


class _AddHalfSigma2(torch.autograd.Function):
    """Autograd function of the quadratic term.

    Matrices are unpacked a few at a time. The products are kept for the backward pass, or computed again if they are
    too large.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_NC: Tensor,
        weight_CA: Tensor,
        targets_N: Tensor,
        statistics: PackedStatistics,
        is_there_U: Tensor | None,
        batch: BatchClasses,
        strength: Strength,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        own_weight_UA, rows = _own_weights(weight_CA, statistics, batch)
        keeps = rows * bytes_of(weight_CA) <= KEPT_BYTES
        sigma2_UC = weight_CA.new_empty(rows, len(weight_CA))
        products: list[Tensor] = []
        for here, covariance_KAA in statistics.chunks(batch):
            difference_KCA = weight_CA - own_weight_UA[here, None]
            product_KCA = torch.bmm(difference_KCA, covariance_KAA.to(weight_CA.dtype))
            sigma2_UC[here] = torch.linalg.vecdot(difference_KCA, product_KCA).clamp_(min=0)
            if keeps:
                products.append(product_KCA)
        # The packed matrices are saved so that autograd refuses a backward pass after they have changed.
        ctx.save_for_backward(weight_CA, targets_N, *(products if keeps else [statistics.packed]))
        ctx.statistics, ctx.batch, ctx.strength, ctx.group, ctx.keeps = statistics, batch, strength, group, keeps
        ctx.is_there_U = is_there_U
        sigma2_NC = _of_samples(sigma2_UC, targets_N, statistics, batch, group)
        return sigma2_NC.mul_(0.5 * strength) + logits_NC  # not in place: see quadratic.py

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NC,) = gradients
        weight_CA, targets_N, *saved = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:  # a frozen head, as on all processes
            return gradient_NC, *(None,) * 7
        with torch.no_grad(), without_autocast(gradient_NC):
            of_weight_CA = _of_weight(ctx, gradient_NC, weight_CA, targets_N, saved)
        return gradient_NC, first_order(of_weight_CA, gradient_NC, weight_CA), *(None,) * 6


def _of_weight(ctx: Any, gradient_NC: Tensor, weight_CA: Tensor, targets_N: Tensor, saved: list[Tensor]) -> Tensor:
    """Return the part of the gradient for the head's weight that comes from this process's classes."""
    statistics, batch = ctx.statistics, ctx.batch
    own_weight_UA, rows = _own_weights(weight_CA, statistics, batch)
    factor_UC = _of_rows(gradient_NC, rows, targets_N, ctx).mul_(ctx.strength)
    of_weight_CA, of_own_UA = torch.zeros_like(weight_CA), torch.zeros_like(own_weight_UA)
    for here, product_KCA in _products(ctx, saved, weight_CA, own_weight_UA):
        scaled_KCA = product_KCA * factor_UC[here, :, None]
        of_weight_CA += scaled_KCA.sum(0)
        of_own_UA[here] = scaled_KCA.sum(1)
    less_own(of_weight_CA[statistics.own_range], of_own_UA, batch.classes_U)
    return of_weight_CA


def _own_weights(weight_CA: Tensor, statistics: PackedStatistics, batch: BatchClasses) -> tuple[Tensor, int]:
    own_UA = batch.take(weight_CA[statistics.own_range])
    return own_UA, len(own_UA)


def _of_samples(
    sigma2_UC: Tensor,
    targets_N: Tensor,
    statistics: PackedStatistics,
    batch: BatchClasses,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Return the row of sigma2 of each sample, whichever process has computed it."""
    if group is None:
        return sigma2_UC.index_select(0, batch.row_N)
    classes = sigma2_UC.shape[1]
    sigma2_CC = sigma2_UC.new_zeros(classes, classes)
    batch.put(sigma2_CC[statistics.own_range], sigma2_UC)
    dist.all_reduce(sigma2_CC, group=group)
    return sigma2_CC.index_select(0, without_negative(targets_N))


def _of_rows(gradient_NC: Tensor, rows: int, targets_N: Tensor, ctx: Any) -> Tensor:
    """Return the gradients of all samples of all processes, summed for each row of this process."""
    classes = gradient_NC.shape[1]
    if ctx.group is None:
        return gradient_NC.new_zeros(rows, classes).index_add_(0, ctx.batch.row_N, gradient_NC)
    of_class_CC = gradient_NC.new_zeros(classes, classes)
    of_class_CC.index_add_(0, without_negative(targets_N), gradient_NC)
    dist.all_reduce(of_class_CC, group=ctx.group)
    # a padding row has a class that may have a row already
    of_rows_UC: Tensor = ctx.batch.take(of_class_CC[ctx.statistics.own_range]) * ctx.is_there_U[:, None]
    return of_rows_UC


def _products(ctx: Any, saved: list[Tensor], weight_CA: Tensor, own_weight_UA: Tensor) -> Any:
    """Yield slices of rows and their products ``Sigma_c (w_j - w_c)`` [K, C, A]."""
    if ctx.keeps:
        start = 0
        for product_KCA in saved:
            yield slice(start, start + len(product_KCA)), product_KCA
            start += len(product_KCA)
        return
    for here, covariance_KAA in ctx.statistics.chunks(ctx.batch):
        yield here, torch.bmm(weight_CA - own_weight_UA[here, None], covariance_KAA.to(weight_CA.dtype))
