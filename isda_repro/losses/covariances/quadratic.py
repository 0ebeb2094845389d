"""sigma2, the quadratic term of equation 4: the variance of the difference of two logits under a class's covariance.

    sigma2[u, j] = (w_j - w_c)^T Sigma_c (w_j - w_c),   c = classes[u]

It depends on the class alone, so it is computed once for each class of a batch.

- Full covariances: Sigma is symmetric, so the derivative for w_j is 2 Sigma_c (w_j - w_c). The backward pass needs
  nothing but the product that the forward pass has computed.
- Diagonal covariances, and one covariance for all classes: the square is expanded into a few matrix products, so that
  the U C differences of weights, of length A, are never stored. This loses at most a few roundings of the largest term
  of a row. The weights are first shifted to have mean zero, which changes no difference, so that weights close to each
  other stay exact.

These gradients cannot be differentiated again. Trying to raises an error instead of returning a wrong second
derivative. (`torch.autograd.function.once_differentiable` raises too, but not in `torch.autograd.grad(..., inputs)`:
the node that would raise is not on the path to the inputs, and is skipped.)

Shapes: C classes, A features, U rows: one for each class of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import BatchClasses, bytes_of, is_asynchronous, without_autocast


def first_order(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """Return ``gradient`` as the result of a backward pass, such that differentiating it again raises an error.

    Args:
        gradient: computed without a graph.
        inputs: the tensors that it depends on.
    """
    return _FirstOrder.apply(gradient, *inputs) if torch.is_grad_enabled() else gradient


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "ISDA's quadratic term cannot be differentiated twice if the head's weight is involved: "
            "take second derivatives for the features alone"
        )


CPU_CHUNK_BYTES = 2**18  # of rows at a time: fits into a core's cache and keeps temporaries small
ACCELERATOR_CHUNK_BYTES = 2**28

Strength = float | Tensor


def sigma2(weight: Tensor, covariance: Tensor, batch: BatchClasses) -> tuple[Tensor, Tensor]:
    """Return ``(w_j - w_c)^T Sigma_c (w_j - w_c)`` for each class c of a batch and each j. Not differentiable.

    Args:
        weight: [C, A], the weight of the head.
        covariance: [C, A, A], symmetric.
        batch: the U classes of the batch.

    Returns:
        sigma2 [U, C], at least 0, and exactly 0 where j = c; and the products ``Sigma_c (w_j - w_c)`` [U, C, A].
    """
    rows = len(weight) if batch.classes_U is None else len(batch.classes_U)
    if rows * bytes_of(covariance[0]) <= _chunk_bytes(weight):  # a single chunk, without a copy
        difference = weight - batch.take(weight)[:, None]
        products_UCA = torch.bmm(difference, batch.take(covariance))
        return torch.linalg.vecdot(difference, products_UCA).clamp_(min=0), products_UCA
    products_UCA = weight.new_empty(rows, *weight.shape)
    sigma2_UC = weight.new_empty(rows, len(weight))
    for here in _chunks(rows, covariance[0]):
        # Subtracting first is exact for close weights, and gives exactly zero at j = c.
        difference = weight - batch.take(weight, here)[:, None]
        product = torch.bmm(difference, batch.take(covariance, here), out=products_UCA[here])
        torch.linalg.vecdot(difference, product, out=sigma2_UC[here])
    # A variance, which rounding could make negative where it is tiny.
    return sigma2_UC.clamp_(min=0), products_UCA


def _chunks(rows: int, row: Tensor) -> Iterator[slice]:
    """Yield slices of ``rows`` rows, each the size of ``row``, to be computed together."""
    size = max(1, _chunk_bytes(row) // bytes_of(row))
    return (slice(start, start + size) for start in range(0, rows, size))


def _sums(products_UCA: Tensor, factor_UC1: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``products * factor`` summed over the rows, [C, A], and over the classes, [U, A]."""
    if bytes_of(products_UCA) <= _chunk_bytes(products_UCA):
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
    """Autograd function of the quadratic term; see ``add_half_sigma2``."""

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
        if not ctx.needs_input_grad[1]:  # a frozen head
            return gradient_NC, None, None, None, None
        with torch.no_grad(), without_autocast(gradients[0]):
            factor_UC = gradient_NC.new_zeros(products_UCA.shape[:2]).index_add_(0, row_N, gradient_NC)
            of_weight_CA, of_own_UA = _sums(products_UCA, factor_UC.mul_(ctx.strength)[:, :, None])
            of_weight_CA = less_own(of_weight_CA, of_own_UA, classes_U)
        return gradient_NC, first_order(of_weight_CA, gradient_NC, weight_CA), None, None, None


def add_half_sigma2(
    logits: Tensor, weight: Tensor, covariance: Tensor, batch: BatchClasses, strength: Strength
) -> Tensor:
    """Return the logits of equation 4: ``z_ij + strength/2 (w_j - w_y)^T Sigma_y (w_j - w_y)``, y = class of sample i.

    Args:
        logits: [N, C].
        weight: [C, A], the weight of the head, which gets a gradient through the quadratic term too.
        covariance: [C, A, A], symmetric; a constant.
        batch: the classes of the batch, and the row of each sample among them.
        strength: lambda, a number or a 0-d tensor; a constant.

    Returns:
        [N, C]; column y of sample i is the unchanged logit.
    """
    result: Tensor = _AddHalfSigma2.apply(logits, weight, covariance, batch, strength)
    return result


def sigma2_diagonal(weight: Tensor, variance: Tensor, batch: BatchClasses) -> Tensor:
    """Return sigma2 for diagonal covariances: ``sum_a variance[c, a] (w_ja - w_ca)^2``.

    Args:
        weight: [C, A], the weight of the head; differentiable.
        variance: [C, A], the variances of each class; a constant, which may change before the backward pass.
        batch: the U classes of the batch.

    Returns:
        [U, C], at least 0, and exactly 0 where j = c.
    """
    result: Tensor = _Sigma2Diagonal.apply(weight, variance, batch)
    return _variances(result, batch)


class _Sigma2Diagonal(torch.autograd.Function):
    """Autograd function of ``sigma2_diagonal``.

    With the gradient f for sigma2, the gradient for w_j is 2 sum_u f_uj v_c (w_j - w_c), less the same summed over j
    for each w_c: three matrix products, and no more passes over [C, A] than these need.
    """

    @staticmethod
    def forward(ctx: Any, given_CA: Tensor, variance_CA: Tensor, batch: BatchClasses) -> Tensor:
        weight_CA = _around_zero(given_CA)
        own_UA = batch.take(weight_CA)
        variance_UA = variance_CA.clone() if batch.classes_U is None else batch.take(variance_CA)
        scaled_UA = own_UA * variance_UA
        ctx.save_for_backward(given_CA, weight_CA, variance_UA, scaled_UA, *batch)
        sigma2_UC = torch.mm(variance_UA, weight_CA.square().T).addmm_(scaled_UA, weight_CA.T, alpha=-2)
        own_U1: Tensor = torch.linalg.vecdot(scaled_UA, own_UA)[:, None]
        return sigma2_UC + own_U1  # not in place: see _AddHalfSigma2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given_CA, weight_CA, variance_UA, scaled_UA, classes_U, _ = ctx.saved_tensors
        with torch.no_grad(), without_autocast(gradients[0]):
            factor_UC = 2 * gradients[0]
            of_weight_CA = torch.mm(factor_UC.T, variance_UA).mul_(weight_CA).addmm_(factor_UC.T, scaled_UA, alpha=-1)
            of_own_UA = torch.mm(factor_UC, weight_CA).mul_(variance_UA).sub_(factor_UC.sum(1)[:, None] * scaled_UA)
            of_weight_CA = less_own(of_weight_CA, of_own_UA, classes_U)
        return first_order(of_weight_CA, gradients[0], given_CA), None, None


def sigma2_common(weight: Tensor, covariance: Tensor | None, batch: BatchClasses) -> Tensor:
    """Return sigma2 for one covariance that all classes share.

    Args:
        weight: [C, A], the weight of the head; differentiable.
        covariance: [A, A], symmetric, or [A], a diagonal; a constant, which may change before the backward pass.
            None: the identity.
        batch: the U classes of the batch.

    Returns:
        [U, C], at least 0, and exactly 0 where j = c.
    """
    result: Tensor = _Sigma2Common.apply(weight, covariance, batch)
    return _variances(result, batch)


class _Sigma2Common(torch.autograd.Function):
    """Autograd function of ``sigma2_common``.

    The backward pass needs only the products p_j = ``w_j^T Sigma``. With the gradient f for sigma2, the gradient for
    w_j is 2 sum_u f_uj (p_j - p_c), less the same summed over j for w_c.
    """

    @staticmethod
    def forward(ctx: Any, given_CA: Tensor, covariance_AA: Tensor | None, batch: BatchClasses) -> Tensor:
        weight_CA = _around_zero(given_CA)
        if covariance_AA is None:
            products_CA = weight_CA
        elif covariance_AA.dim() == 1:
            products_CA = weight_CA * covariance_AA
        else:
            products_CA = torch.mm(weight_CA, covariance_AA)
        squares_C = torch.linalg.vecdot(products_CA, weight_CA)
        ctx.save_for_backward(given_CA, products_CA, *batch)
        mixed_UC = torch.addmm(squares_C[None], batch.take(products_CA), weight_CA.T, alpha=-2)
        return mixed_UC + batch.take(squares_C)[:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given_CA, products_CA, classes_U, row_N = ctx.saved_tensors
        with torch.no_grad(), without_autocast(gradients[0]):
            factor_UC = 2 * gradients[0]
            own_UA = BatchClasses(classes_U, row_N).take(products_CA)
            of_weight_CA = (products_CA * factor_UC.sum(0)[:, None]).addmm_(factor_UC.T, own_UA, alpha=-1)
            of_own_UA = torch.mm(factor_UC, products_CA).sub_(factor_UC.sum(1)[:, None] * own_UA)
            of_weight_CA = less_own(of_weight_CA, of_own_UA, classes_U)
        return first_order(of_weight_CA, gradients[0], given_CA), None, None


def less_own(of_weight_CA: Tensor, of_own_UA: Tensor, classes_U: Tensor | None) -> Tensor:
    """Subtract each row's sum from its class's weight gradient, in place: w_c is in all differences of its row."""
    if classes_U is None:
        return of_weight_CA.sub_(of_own_UA)
    return of_weight_CA.index_add_(0, classes_U, of_own_UA, alpha=-1)


def _around_zero(weight_CA: Tensor) -> Tensor:
    return weight_CA - weight_CA.detach().mean(0)


def _variances(sigma2_UC: Tensor, batch: BatchClasses) -> Tensor:
    """Return sigma2 clamped to at least 0, with exact zeros at j = c, where rounding left something else."""
    rows, classes = sigma2_UC.shape
    own_U = torch.arange(classes, device=sigma2_UC.device) if batch.classes_U is None else batch.classes_U
    return sigma2_UC.clamp(min=0).scatter(1, own_U[:rows, None], 0)
