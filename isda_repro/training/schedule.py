"""Learning-rate schedules, which change the rate once per epoch (Table 6 and Appendix B)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """Interface of a schedule: a factor on the initial learning rate."""

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the factor in ``epoch`` (counted from 1) of a run of ``epochs``."""


@dataclass(frozen=True)
class MultiStep:
    """Schedule that multiplies the rate by ``gamma`` at each milestone.

    "In the 80th epoch" (Table 6) means that epoch 80, counted from 1, already trains at the lower rate, as in the
    authors' code; PyTorch's ``MultiStepLR([80])`` would drop one epoch later.

    Args:
        milestones: epochs, counted from 1, from which on the rate is lower.
        gamma: factor at each milestone.
        warmup_epochs: W: epoch e up to W trains at e/W of the rate; None: no warm-up.
    """

    milestones: Sequence[int]
    gamma: float
    warmup_epochs: int | None = None

    def factor(self, epoch: int, epochs: int) -> float:
        """Return ``gamma`` to the power of the number of milestones that ``epoch`` has reached, times the warm-up."""
        warmed = 1.0 if self.warmup_epochs is None else min(1.0, epoch / self.warmup_epochs)
        return warmed * float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


@dataclass(frozen=True)
class Cosine:
    """Schedule that lowers the rate along half a cosine, from 1 in the first epoch towards 0.

    Args:
        ends_at_zero: if True, the factor is one epoch ahead and reaches 0 in the last epoch, as in the authors' CIFAR
            script, which counts its epochs from 1. By default the last epoch still trains at a small rate.
    """

    ends_at_zero: bool = False

    def factor(self, epoch: int, epochs: int) -> float:
        """Return (1 + cos(pi t)) / 2, where t is the share of the epochs that are over."""
        over = epoch if self.ends_at_zero else epoch - 1
        return (1 + math.cos(math.pi * over / epochs)) / 2
