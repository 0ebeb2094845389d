"""Losses that see features, logits and the head: ISDA, and what it is compared with. Needs torch and nothing else."""

from isda_repro.losses.criterion import Criterion, CrossEntropy
from isda_repro.losses.isda import ISDALoss
from isda_repro.losses.statistics import ClassStatistics

__all__ = ["ClassStatistics", "Criterion", "CrossEntropy", "ISDALoss"]
