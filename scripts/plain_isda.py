"""ISDA as a straightforward script computes it, to compare with in benchmarks and tests. Not meant to be fast.

Written from a description of the authors' code: features expanded to N x C x A by a one-hot mask, one batched scatter
over all C classes, every C x A x A tensor built anew; then for each *sample* its covariance, all differences of the
weights, and an N x C x C product of which the diagonal is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainISDALoss(nn.Module):
    """Same arguments and same numbers as ``isda_repro.losses.ISDALoss``."""

    mean: Tensor
    covariance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int, lambda_0: float = 0.5) -> None:
        super().__init__()
        self.num_classes, self.lambda_0 = num_classes, lambda_0
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim))
        self.register_buffer("covariance", torch.zeros(num_classes, feature_dim, feature_dim))
        self.register_buffer("count", torch.zeros(num_classes))

    def forward(self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float) -> Tensor:
        """Update the statistics, then the loss."""
        self._update(features.detach(), targets)
        covariance_NAA = self.covariance[targets]
        difference_NCA = head.weight[None] - head.weight[targets][:, None]
        product_NCC = torch.bmm(torch.bmm(difference_NCA, covariance_NAA), difference_NCA.transpose(1, 2))
        sigma2_NC = (product_NCC * torch.eye(self.num_classes, device=targets.device)).sum(2)
        return F.cross_entropy(logits + 0.5 * progress * self.lambda_0 * sigma2_NC, targets)

    @torch.no_grad()
    def _update(self, features: Tensor, targets: Tensor) -> None:
        samples, width = features.shape
        one_hot_NC = F.one_hot(targets, self.num_classes).to(features.dtype)
        mask_NCA = one_hot_NC[:, :, None].expand(samples, self.num_classes, width)
        masked_NCA = features[:, None, :].expand(samples, self.num_classes, width) * mask_NCA
        amount_CA = mask_NCA.sum(0)
        safe_CA = amount_CA.clamp(min=1)
        batch_mean_CA = masked_NCA.sum(0) / safe_CA
        centred_CNA = (masked_NCA - batch_mean_CA[None] * mask_NCA).permute(1, 0, 2)
        batch_covariance_CAA = torch.bmm(centred_CNA.transpose(1, 2), centred_CNA) / safe_CA[:, :, None]
        amount_C = one_hot_NC.sum(0)
        amount_CAA = amount_C[:, None, None].expand(self.num_classes, width, width)
        weight_CAA = amount_CAA / (amount_CAA + self.count[:, None, None].expand_as(amount_CAA)).clamp(min=1)
        shift_CA = self.mean - batch_mean_CA
        outer_CAA = torch.bmm(shift_CA[:, :, None], shift_CA[:, None, :])
        self.covariance = (
            self.covariance * (1 - weight_CAA)
            + batch_covariance_CAA * weight_CAA
            + weight_CAA * (1 - weight_CAA) * outer_CAA
        )
        weight_CA = amount_CA / (amount_CA + self.count[:, None].expand_as(amount_CA)).clamp(min=1)
        self.mean = self.mean * (1 - weight_CA) + batch_mean_CA * weight_CA
        self.count = self.count + amount_C
