"""Learning-rate schedules, by epoch: Table 6 and Appendix B."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A factor on the initial learning rate."""

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor in ``epoch`` (counted from 1) of a run of ``epochs``."""


@dataclass(frozen=True)
class MultiStep:
    """The rate is multiplied by ``gamma`` at each milestone.

    "In the 80th epoch" (Table 6) means that epoch 80, counted from 1, already trains at the lower rate, as in the
    authors' code; PyTorch's ``MultiStepLR([80])`` would drop one epoch later.
    """

    milestones: Sequence[int]
    gamma: float

    def factor(self, epoch: int, epochs: int) -> float:
        """``gamma`` to the number of milestones reached."""
        return float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 in the first epoch towards 0.

    The last epoch still trains, at a small rate; with ``ends_at_zero`` it does not, as in the authors' CIFAR script,
    which counts its epochs from 1.
    """

    ends_at_zero: bool = False

    def factor(self, epoch: int, epochs: int) -> float:
        """(1 + cos(pi t)) / 2, with t the share of the epochs that are over."""
        over = epoch if self.ends_at_zero else epoch - 1
        return (1 + math.cos(math.pi * over / epochs)) / 2
