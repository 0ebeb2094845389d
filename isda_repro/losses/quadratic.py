"""sigma2: the variance of the difference of two logits under a class's covariance (section 3.2, below equation 7).

    sigma2[u, j] = (w_j - w_c)^T Sigma_c (w_j - w_c),   c = classes[u]

It depends on the class alone, so it is computed once for each class of a batch. Sigma is symmetric, so the derivative
for w_j is 2 Sigma_c (w_j - w_c): the product that the forward pass has made is all that the backward pass needs.

Shapes: N samples, C classes, A features, U rows, one for each class of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import BatchClasses, is_asynchronous

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
    limit = ACCELERATOR_CHUNK_BYTES if is_asynchronous(row) else CPU_CHUNK_BYTES
    size = max(1, limit // row.nbytes)
    return (slice(start, start + size) for start in range(0, rows, size))


class _AddHalfSigma2(torch.autograd.Function):
    """One node of the graph for the whole term; see ``add_half_sigma2``."""

    @staticmethod
    def forward(
        ctx: Any, logits_NC: Tensor, weight_CA: Tensor, covariance_CAA: Tensor, batch: BatchClasses, strength: Strength
    ) -> Tensor:
        sigma2_UC, products_UCA = sigma2(weight_CA, covariance_CAA, batch)
        ctx.save_for_backward(products_UCA, *batch)
        ctx.strength = strength
        return (sigma2_UC * (0.5 * strength)).index_select(0, batch.row_N).add_(logits_NC)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NC,) = gradients
        products_UCA, classes_U, row_N = ctx.saved_tensors
        factor_UC = gradient_NC.new_zeros(products_UCA.shape[:2]).index_add_(0, row_N, gradient_NC).mul_(ctx.strength)
        sums = []
        for here in _chunks(len(products_UCA), products_UCA[0]):
            scaled = products_UCA[here] * factor_UC[here, :, None]
            sums.append((scaled.sum(0), scaled.sum(1)))
        of_weight_CA = functools.reduce(torch.Tensor.add_, (of_weight for of_weight, _ in sums))
        of_own_UA = torch.cat([of_own for _, of_own in sums])
        if classes_U is None:
            of_weight_CA -= of_own_UA
        else:
            of_weight_CA.index_add_(0, classes_U, of_own_UA, alpha=-1)
        return gradient_NC, of_weight_CA, None, None, None


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
