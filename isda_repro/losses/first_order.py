"""Gradients that cannot be differentiated again say so, instead of giving a second derivative that is wrong.

(`torch.autograd.function.once_differentiable` says so too, but not to `torch.autograd.grad(..., inputs)`: the node that
would raise is not on the way to the inputs, and is left out.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def first_order(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """A gradient computed in a backward pass, for that pass to return; ``inputs`` are what it depends on."""
    return _FirstOrder.apply(gradient, *inputs) if torch.is_grad_enabled() else gradient


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "the second derivative of ISDA's quadratic term for the head's weight is not implemented; "
            "the one for the features alone is"
        )
