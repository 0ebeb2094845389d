"""Gradient descent as Appendix C has it: so many iterations, momentum, weight decay, three drops of the rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isda_repro.errors import UserError

DROPS = 4  # parts of a descent, each with a tenth of the rate of the one before
LOOK_ITERATIONS = 100  # between two looks at the objective: each makes the host wait for a GPU


@dataclass(frozen=True)
class Descent:
    """Its settings; Appendix C's but for the rate, which it has for each step.

    Args:
        lr: to begin with; divided by 10 after each quarter of the iterations (every 2,500 of 10,000).
        iterations: how many.
        momentum: 0.9, without Nesterov's look ahead ("a standard gradient descent").
        weight_decay: of the numbers that are sought.

    Raises:
        UserError: one of them cannot be.
    """

    lr: float
    iterations: int = 10_000
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < DROPS:
            raise UserError(f"iterations={self.iterations} must be a whole number from {DROPS} on")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"the rate of a descent must be a number above 0, and not {self.lr}")


STEP_ONE, STEP_TWO = Descent(lr=10.0), Descent(lr=1.0)

Advance = Callable[[int, Tensor], None]
"""Is told now and then how many iterations were made since it was told last, and of the objective now, [N]."""


def descend(start: Tensor, objective: Callable[[Tensor], Tensor], settings: Descent, advance: Advance) -> Tensor:
    """Where the descent ends, from ``start`` [N, D]: N problems at once, none of which knows of the others.

    Args:
        start: where each begins.
        objective: numbers [N, D] -> what is minimised, [N], each a function of its own row alone.
        settings: of the descent.
        advance: looks on.

    Raises:
        UserError: an objective is NaN or infinite.
    """
    found = start.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([found], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    drop = torch.optim.lr_scheduler.StepLR(optimizer, -(-settings.iterations // DROPS), gamma=0.1)
    looked = 0
    for iteration in range(1, settings.iterations + 1):
        values = objective(found)
        (found.grad,) = torch.autograd.grad(values.sum(), found)
        optimizer.step()
        drop.step()
        if iteration % LOOK_ITERATIONS == 0 or iteration == settings.iterations:
            if not values.isfinite().all():
                raise UserError(f"an objective is no longer finite at iteration {iteration}: lower eta= or lambda=")
            advance(iteration - looked, values.detach())
            looked = iteration
    return found.detach()
