"""Explicit semantic augmentation (equation 2): each feature is augmented M times at random.

ISDA's closed form replaces this; it is here for comparison.

Shapes: N samples in the batch, M draws for each, C classes, A features, U rows: one for each class of the batch.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, classes_present, of_all_processes, without_negative
from isda_repro.losses.covariances.class_statistics import ClassStatistics
from isda_repro.losses.covariances.summary import summarise
from isda_repro.losses.criterion import Criterion, mean_over_batch, require_count
from isda_repro.losses.isda import check_lambda

JITTER = 1e-7  # share of the trace that makes up for fp32 rounding of a covariance


class SampledISDALoss(Criterion):
    """Mean over M draws ``a ~ N(a_i, lambda Sigma_y)`` of the cross-entropy of ``head(a)`` (equations 1 and 2).

    Covariances and lambda are those of ``ISDALoss``, whose value is an upper bound of the limit M -> infinity (equation
    4). Each class of a batch needs a root of its covariance, A^3 / 3 multiply-adds in float64, and each draw A^2 + A C.
    The loss makes the host wait for an accelerator, so it is not a single graph under torch.compile.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        samples: number of draws for each feature, M.
        lambda_0: see ``ISDALoss``.
        lambda_schedule: see ``ISDALoss``.
        ignore_index: see ``Criterion``.
        process_group: see ``ISDALoss``.

    Raises:
        ValueError: samples is below 1, lambda_0 is negative or not finite, or there is no such lambda_schedule.
    """

    uses_head: ClassVar[bool] = True
    has_statistics: ClassVar[bool] = True
    waits_for_device: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        samples: int = 10,
        lambda_0: float = 0.5,
        lambda_schedule: str = "linear",
        ignore_index: int | None = IGNORED,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        self.process_group = process_group
        check_lambda(lambda_0, lambda_schedule)
        require_count("samples", samples)
        self.samples, self.lambda_0, self.lambda_schedule = samples, lambda_0, lambda_schedule
        self.statistics = ClassStatistics(num_classes, feature_dim)

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Update the statistics, draw the augmented features, and return the mean over draws and samples."""
        self.statistics.update(*of_all_processes(features, targets, self.process_group))
        strength = self.lambda_0 * (progress if self.lambda_schedule == "linear" else 1)
        noise_NMA = (
            self._noise(targets, features.dtype)
            * torch.as_tensor(strength, dtype=features.dtype, device=features.device).sqrt()
        )
        augmented_NMA = features[:, None] + noise_NMA.to(features.dtype)
        bias = None if head.bias is None else head.bias.to(features.dtype)
        logits_NMC = F.linear(augmented_NMA, head.weight.to(features.dtype), bias)
        labels_NM = targets[:, None].expand(-1, self.samples)
        losses_NM = F.cross_entropy(logits_NMC.mT, labels_NM, reduction="none", ignore_index=IGNORED)
        return mean_over_batch(losses_NM.mean(1), targets)

    def summary(
        self, *, head: nn.Linear | None = None, progress: float | Tensor = 1.0
    ) -> dict[str, float | list[float]] | None:
        """Return samples, traces and effective ranks, as ``ISDALoss.summary`` does; there is no added term."""
        return summarise(self.statistics, None, None)

    @torch.no_grad()
    def _noise(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Return draws from N(0, Sigma_y), [N, M, A]."""
        batch = classes_present(without_negative(targets), self.num_classes)
        root_UAA = covariance_root(batch.take(self.statistics.covariance)).to(dtype)
        standard_NMA = self.own_draws(lambda count: self._standard(count, targets.device, dtype), len(targets))
        noise_NMA = torch.empty_like(standard_NMA)
        for row, root_AA in enumerate(root_UAA):
            here = (batch.row_N == row).nonzero()[:, 0]
            noise_NMA[here] = standard_NMA[here] @ root_AA.T
        return noise_NMA

    def _standard(self, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        shape = count, self.samples, self.feature_dim
        return torch.randn(shape, generator=self.draws, device=device, dtype=dtype)


def covariance_root(covariance: Tensor) -> Tensor:
    """Return R [U, A, A] in float64 with ``R R^T = covariance`` [U, A, A], up to 1e-7 of its trace.

    R is a Cholesky factor. For a covariance that is singular in spite of the added 1e-7, it is made from the
    eigenvectors, which takes about 30 times as long.
    """
    exact = covariance.double()
    trace_U11 = exact.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    jitter = JITTER * trace_U11 * torch.eye(exact.shape[1], dtype=exact.dtype, device=exact.device)
    factor: Tensor
    factor, failed_U = torch.linalg.cholesky_ex(exact + jitter)
    for row in failed_U.nonzero()[:, 0].tolist():
        values, vectors = torch.linalg.eigh(exact[row])
        factor[row] = vectors * values.clamp(min=0).sqrt()
    return factor
