"""sigma2 where a few products of matrices give it: diagonal covariances, and one covariance of all classes.

    sigma2[u, j] = (w_j - w_c)^T Sigma_c (w_j - w_c),   c = classes[u]

multiplied out, so that no difference of two weights is ever written down, of which there would be U C of length A.
What is lost is at most a few roundings of the largest term of a row: the weights are first moved so that their mean is
zero, which leaves every difference as it was, and so weights that are close to each other stay exact.

Shapes: C classes, A features, U rows, one for each class of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import BatchClasses
from isda_repro.losses.first_order import first_order


def sigma2_diagonal(weight: Tensor, variance: Tensor, batch: BatchClasses) -> Tensor:
    """For diagonal covariances: ``sum_a variance[c, a] (w_ja - w_ca)^2``.

    Args:
        weight: [C, A], the head's; differentiable.
        variance: [C, A] of each class; a constant, which may change before the backward pass.
        batch: its classes, U of them.

    Returns:
        [U, C], at least 0, and exactly 0 where j = c.
    """
    result: Tensor = _Sigma2Diagonal.apply(weight, variance, batch)
    return _variances(result, batch)


class _Sigma2Diagonal(torch.autograd.Function):
    """With factors f for sigma2, the gradient of w_j is 2 sum_u f_uj v_c (w_j - w_c), less the same for each w_c summed
    over j: three products, and no more passes over [C, A] than they need.
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
        return sigma2_UC + own_U1  # not in place: see quadratic.py

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given_CA, weight_CA, variance_UA, scaled_UA, classes_U, _ = ctx.saved_tensors
        with torch.no_grad():
            factor_UC = 2 * gradients[0]
            of_weight_CA = torch.mm(factor_UC.T, variance_UA).mul_(weight_CA).addmm_(factor_UC.T, scaled_UA, alpha=-1)
            of_own_UA = torch.mm(factor_UC, weight_CA).mul_(variance_UA).sub_(factor_UC.sum(1)[:, None] * scaled_UA)
            of_weight_CA = _less_own(of_weight_CA, of_own_UA, classes_U)
        return first_order(of_weight_CA, gradients[0], given_CA), None, None


def sigma2_common(weight: Tensor, covariance: Tensor | None, batch: BatchClasses) -> Tensor:
    """For one covariance that all classes share; None: the identity.

    Args:
        weight: [C, A], the head's; differentiable.
        covariance: [A, A], symmetric; a constant, which may change before the backward pass.
        batch: its classes, U of them.

    Returns:
        As ``sigma2_diagonal``.
    """
    result: Tensor = _Sigma2Common.apply(weight, covariance, batch)
    return _variances(result, batch)


class _Sigma2Common(torch.autograd.Function):
    """The products ``w_j^T Sigma`` are all that the backward pass needs: with factors f for sigma2,

    2 sum_u f_uj (p_j - p_c) for each w_j, less the same summed over j for w_c.
    """

    @staticmethod
    def forward(ctx: Any, given_CA: Tensor, covariance_AA: Tensor | None, batch: BatchClasses) -> Tensor:
        weight_CA = _around_zero(given_CA)
        products_CA = weight_CA if covariance_AA is None else torch.mm(weight_CA, covariance_AA)
        squares_C = torch.linalg.vecdot(products_CA, weight_CA)
        ctx.save_for_backward(given_CA, products_CA, *batch)
        mixed_UC = torch.addmm(squares_C[None], batch.take(products_CA), weight_CA.T, alpha=-2)
        return mixed_UC + batch.take(squares_C)[:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given_CA, products_CA, classes_U, row_N = ctx.saved_tensors
        with torch.no_grad():
            factor_UC = 2 * gradients[0]
            own_UA = BatchClasses(classes_U, row_N).take(products_CA)
            of_weight_CA = (products_CA * factor_UC.sum(0)[:, None]).addmm_(factor_UC.T, own_UA, alpha=-1)
            of_own_UA = torch.mm(factor_UC, products_CA).sub_(factor_UC.sum(1)[:, None] * own_UA)
            of_weight_CA = _less_own(of_weight_CA, of_own_UA, classes_U)
        return first_order(of_weight_CA, gradients[0], given_CA), None, None


def _less_own(of_weight_CA: Tensor, of_own_UA: Tensor, classes_U: Tensor | None) -> Tensor:
    """Changes and returns the first: each w_c is in all differences of its row, with a minus."""
    if classes_U is None:
        return of_weight_CA.sub_(of_own_UA)
    return of_weight_CA.index_add_(0, classes_U, of_own_UA, alpha=-1)


def _around_zero(weight_CA: Tensor) -> Tensor:
    return weight_CA - weight_CA.detach().mean(0)


def _variances(sigma2_UC: Tensor, batch: BatchClasses) -> Tensor:
    """Free of what rounding made of zeros."""
    rows, classes = sigma2_UC.shape
    own_U = torch.arange(classes, device=sigma2_UC.device) if batch.classes_U is None else batch.classes_U
    return sigma2_UC.clamp(min=0).scatter(1, own_U[:rows, None], 0)
