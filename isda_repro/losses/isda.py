"""ISDA: the upper bound of the expected cross-entropy over augmented features (equation 4, Proposition 1).

Shapes: N samples in the batch, C classes, A features, U rows, one for each class of the batch.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import BatchClasses, classes_present, is_asynchronous, rows_of_fixed_number
from isda_repro.losses.criterion import Criterion
from isda_repro.losses.quadratic import add_half_sigma2
from isda_repro.losses.statistics import ClassStatistics

COVARIANCES = ("full",)


class ISDALoss(Criterion):
    """Cross-entropy on ``logits + lambda/2 (w_j - w_y)^T Sigma_y (w_j - w_y)``, lambda = progress * lambda_0.

    In training each call first merges the batch into the running statistics of its classes, then uses them, as the
    authors do. The statistics are constants for the gradient; the head's weight gets one through the quadratic term,
    the features only through the logits (equation 14).

    >>> criterion = ISDALoss(num_classes=100, feature_dim=640, lambda_0=0.5)
    >>> features = backbone(images)                                              # [N, 640]
    >>> loss = criterion(features, head(features), targets, head=head, progress=step / total_steps)

    Args:
        num_classes: C.
        feature_dim: A.
        lambda_0: strength of the augmentation at the end of training; the paper chooses among 0.1, 0.25, 0.5, 0.75
            and 1 on CIFAR, the authors' commands have 0.5.
        covariance: "full", a matrix for each class; 4 C A A bytes of buffers.

    Raises:
        ValueError: lambda_0 is negative or not finite, or there is no such covariance.
    """

    def __init__(self, num_classes: int, feature_dim: int, lambda_0: float = 0.5, covariance: str = "full") -> None:
        super().__init__(num_classes, feature_dim)
        if not (lambda_0 >= 0 and math.isfinite(lambda_0)):
            raise ValueError(f"lambda_0={lambda_0} must be a number from 0 on")
        if covariance not in COVARIANCES:
            raise ValueError(f"there is no covariance={covariance!r}; it can be {', '.join(COVARIANCES)}")
        self.lambda_0 = lambda_0
        self.statistics = ClassStatistics(num_classes, feature_dim)

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Update the statistics, then equation 4, mean over the batch."""
        self.statistics.update(features, targets)
        weight, covariance = head.weight.to(logits.dtype), self.statistics.covariance.to(logits.dtype)
        augmented = add_half_sigma2(
            logits, weight, covariance, self._classes(targets), strength=self.lambda_0 * progress
        )
        return F.cross_entropy(augmented, targets)

    def _classes(self, targets: Tensor) -> BatchClasses:
        find = rows_of_fixed_number if is_asynchronous(targets) else classes_present
        return find(targets, self.num_classes)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, lambda_0={self.lambda_0}"
