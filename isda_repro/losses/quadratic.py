"""sigma2: the variance of the difference of two logits under a class's covariance (section 3.2, below equation 7).

    sigma2[u, j] = (w_j - w_c)^T Sigma_c (w_j - w_c),   c = classes[u]

It depends on the class alone, so it is computed once for each class of a batch. Sigma is symmetric, so the derivative
for w_j is 2 Sigma_c (w_j - w_c): the product that the forward pass has made is all that the backward pass needs.

Shapes: N samples, C classes, A features, U rows, one for each class of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import BatchClasses, is_asynchronous
from isda_repro.losses.first_order import first_order

CPU_CHUNK_BYTES = 2**18  # of rows at a time: a core's cache holds that, and temporaries stay as small
ACCELERATOR_CHUNK_BYTES = 2**28

Strength = float | Tensor


def sigma2(weight: Tensor, covariance: Tensor, batch: BatchClasses) -> tuple[Tensor, Tensor]:
    """``(w_j - w_c)^T Sigma_c (w_j - w_c)`` for each class c of a batch and each j. Not differentiable.

    Args:
        weight: [C, A], the head's.
        covariance: [C, A, A], symmetric.
        batch: its classes, U of them.

    Returns:
        sigma2 [U, C], at least 0, and exactly 0 where j = c; and the products ``Sigma_c (w_j - w_c)`` [U, C, A].
    """
    rows = len(weight) if batch.classes_U is None else len(batch.classes_U)
    if rows * covariance[0].nbytes <= _chunk_bytes(weight):  # in one piece, which need not be copied into its place
        difference = weight - batch.take(weight)[:, None]
        products_UCA = torch.bmm(difference, batch.take(covariance))
        return torch.linalg.vecdot(difference, products_UCA).clamp_(min=0), products_UCA
    products_UCA = weight.new_empty(rows, *weight.shape)
    sigma2_UC = weight.new_empty(rows, len(weight))
    for here in _chunks(rows, covariance[0]):
        # The difference first: it is exact for close weights, and exactly zero at j = c.
        difference = weight - batch.take(weight, here)[:, None]
        product = torch.bmm(difference, batch.take(covariance, here), out=products_UCA[here])
        torch.linalg.vecdot(difference, product, out=sigma2_UC[here])
    # A variance; where it is tiny, rounding could take it below zero.
    return sigma2_UC.clamp_(min=0), products_UCA


def _chunks(rows: int, row: Tensor) -> Iterator[slice]:
    """``rows`` of the size of ``row``, in slices that are worked on together."""
    size = max(1, _chunk_bytes(row) // row.nbytes)
    return (slice(start, start + size) for start in range(0, rows, size))


def _sums(products_UCA: Tensor, factor_UC1: Tensor) -> tuple[Tensor, Tensor]:
    """``products * factor``, summed over the rows, [C, A], and over the classes, [U, A]."""
    if products_UCA.nbytes <= _chunk_bytes(products_UCA):
        scaled = products_UCA * factor_UC1
        return scaled.sum(0), scaled.sum(1)
    over_rows_CA, over_classes_UA = torch.zeros_like(products_UCA[0]), torch.empty_like(products_UCA[:, 0])
    for here in _chunks(len(products_UCA), products_UCA[0]):
        scaled = products_UCA[here] * factor_UC1[here]
        over_rows_CA += scaled.sum(0)
        torch.sum(scaled, 1, out=over_classes_UA[here])
    return over_rows_CA, over_classes_UA


def _chunk_bytes(tensor: Tensor) -> int:
    return ACCELERATOR_CHUNK_BYTES if is_asynchronous(tensor) else CPU_CHUNK_BYTES


class _AddHalfSigma2(torch.autograd.Function):
    """One node of the graph for the whole term; see ``add_half_sigma2``."""

    @staticmethod
    def forward(
        ctx: Any, logits_NC: Tensor, weight_CA: Tensor, covariance_CAA: Tensor, batch: BatchClasses, strength: Strength
    ) -> Tensor:
        sigma2_UC, products_UCA = sigma2(weight_CA, covariance_CAA, batch)
        ctx.save_for_backward(weight_CA, products_UCA, *batch)
        ctx.strength = strength
        # Not in place: in torch.compile of PyTorch 2.11 a result that was changed in place has no gradient.
        return sigma2_UC.mul_(0.5 * strength).index_select(0, batch.row_N) + logits_NC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NC,) = gradients
        weight_CA, products_UCA, classes_U, row_N = ctx.saved_tensors
        with torch.no_grad():
            factor_UC = gradient_NC.new_zeros(products_UCA.shape[:2]).index_add_(0, row_N, gradient_NC)
            of_weight_CA, of_own_UA = _sums(products_UCA, factor_UC.mul_(ctx.strength)[:, :, None])
            if classes_U is None:
                of_weight_CA -= of_own_UA
            else:
                of_weight_CA.index_add_(0, classes_U, of_own_UA, alpha=-1)
        return gradient_NC, first_order(of_weight_CA, gradient_NC, weight_CA), None, None, None


def add_half_sigma2(
    logits: Tensor, weight: Tensor, covariance: Tensor, batch: BatchClasses, strength: Strength
) -> Tensor:
    """Equation 4's logits: ``z_ij + strength/2 (w_j - w_y)^T Sigma_y (w_j - w_y)``, y the class of sample i.

    Args:
        logits: [N, C].
        weight: [C, A], the head's. The gradient reaches it through the quadratic term too.
        covariance: [C, A, A], symmetric; a constant.
        batch: the classes of the batch, and each sample's row among them.
        strength: lambda, a number or a 0-d tensor; a constant.

    Returns:
        [N, C]; column y of sample i is the logit itself.
    """
    result: Tensor = _AddHalfSigma2.apply(logits, weight, covariance, batch, strength)
    return result
