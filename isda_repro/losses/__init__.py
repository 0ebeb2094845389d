"""Losses that take features, logits and the head: ISDA, and the losses that the paper compares it with.

This package imports torch and nothing else of the project.
"""

from isda_repro.losses.batch_classes import IGNORED
from isda_repro.losses.center import CenterLoss
from isda_repro.losses.covariances.class_statistics import ClassStatistics, ClassVariances
from isda_repro.losses.covariances.packed import PackedStatistics
from isda_repro.losses.criterion import Criterion
from isda_repro.losses.cross_entropy import CrossEntropy
from isda_repro.losses.disturb_label import DisturbLabel
from isda_repro.losses.focal import FocalLoss
from isda_repro.losses.isda import ISDALoss
from isda_repro.losses.large_margin import LargeMarginSoftmax
from isda_repro.losses.lq import LqLoss
from isda_repro.losses.sampled import SampledISDALoss, covariance_root

__all__ = [
    "IGNORED",
    "CenterLoss",
    "ClassStatistics",
    "ClassVariances",
    "Criterion",
    "CrossEntropy",
    "DisturbLabel",
    "FocalLoss",
    "ISDALoss",
    "LargeMarginSoftmax",
    "LqLoss",
    "PackedStatistics",
    "SampledISDALoss",
    "covariance_root",
]
