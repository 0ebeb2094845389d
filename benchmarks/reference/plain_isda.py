"""ISDA as a straightforward script computes it, for comparison in benchmarks and tests. It is not meant to be fast.

Written from a description of the authors' code. Features are expanded to N x C x A by a one-hot mask, followed by one
batched scatter over all C classes, and every C x A x A tensor is built anew. The loss then takes the covariance and all
differences of the weights for each *sample*, and keeps the diagonal of an N x C x C product.

As in the authors' code, the weights are gathered, the differences are built for each of the two products, and masks
replace 0/0. A leaner form without these three takes about 1.1 ms instead of 1.3 ms at (128, 10, 64), where `ISDALoss`
was then only 2.3 to 2.8 times faster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainISDALoss(nn.Module):
    """ISDA with full covariances; same arguments and same values as ``isda_repro.losses.ISDALoss``."""

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
        """Update the statistics and return the loss; ``progress`` is that of training, from 0 to 1."""
        self._update(features.detach(), targets)
        samples, width = features.shape
        weight_NCA = head.weight.expand(samples, self.num_classes, width)
        own_NCA = weight_NCA.gather(1, targets.view(samples, 1, 1).expand(samples, self.num_classes, width))
        covariance_NAA = self.covariance[targets]
        left_NCA = torch.bmm(weight_NCA - own_NCA, covariance_NAA)
        product_NCC = torch.bmm(left_NCA, (weight_NCA - own_NCA).permute(0, 2, 1))
        sigma2_NC = product_NCC.mul(torch.eye(self.num_classes, dtype=features.dtype)).sum(2)
        return F.cross_entropy(logits + 0.5 * progress * self.lambda_0 * sigma2_NC, targets)

    @torch.no_grad()
    def _update(self, features: Tensor, targets: Tensor) -> None:
        samples, width = features.shape
        classes = self.num_classes
        one_hot_NC = features.new_zeros(samples, classes).scatter_(1, targets[:, None], 1)
        mask_NCA = one_hot_NC[:, :, None].expand(samples, classes, width)
        masked_NCA = features[:, None, :].expand(samples, classes, width).mul(mask_NCA)
        safe_CA = mask_NCA.sum(0)
        safe_CA[safe_CA == 0] = 1
        batch_mean_CA = masked_NCA.sum(0) / safe_CA
        centred_NCA = masked_NCA - batch_mean_CA.expand(samples, classes, width).mul(mask_NCA)
        scatter_CAA = torch.bmm(centred_NCA.permute(1, 2, 0), centred_NCA.permute(1, 0, 2))
        batch_covariance_CAA = scatter_CAA / safe_CA[:, :, None].expand(classes, width, width)
        amount_C = one_hot_NC.sum(0)
        weight_CAA = self._weight(amount_C[:, None, None].expand(classes, width, width), self.count[:, None, None])
        weight_CA = self._weight(amount_C[:, None].expand(classes, width), self.count[:, None])
        shift_CA = self.mean - batch_mean_CA
        outer_CAA = torch.bmm(shift_CA[:, :, None], shift_CA[:, None, :])
        added_CAA = weight_CAA.mul(1 - weight_CAA).mul(outer_CAA)
        self.covariance = self.covariance.mul(1 - weight_CAA) + batch_covariance_CAA.mul(weight_CAA) + added_CAA
        self.mean = self.mean.mul(1 - weight_CA) + batch_mean_CA.mul(weight_CA)
        self.count = self.count + amount_C

    def _weight(self, amount: Tensor, count: Tensor) -> Tensor:
        """Return the batch's weight in each entry of its class; 0 for classes never seen, where the quotient is 0/0."""
        weight = amount / (amount + count.expand_as(amount))
        weight[weight != weight] = 0
        return weight


class PlainDiagonalISDALoss(nn.Module):
    """ISDA with diagonal covariances in the authors' form for ImageNet: per sample, in tensors of N x C x A."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, feature_dim: int, lambda_0: float = 0.5) -> None:
        super().__init__()
        self.num_classes, self.lambda_0 = num_classes, lambda_0
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim))
        self.register_buffer("variance", torch.zeros(num_classes, feature_dim))
        self.register_buffer("count", torch.zeros(num_classes))

    def forward(self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float) -> Tensor:
        """Update the statistics and return the loss; ``progress`` is that of training, from 0 to 1."""
        self._update(features.detach(), targets)
        samples, width = features.shape
        weight_NCA = head.weight.expand(samples, self.num_classes, width)
        own_NCA = weight_NCA.gather(1, targets.view(samples, 1, 1).expand(samples, self.num_classes, width))
        variance_NCA = self.variance[targets].view(samples, 1, width).expand(samples, self.num_classes, width)
        sigma2_NC = (weight_NCA - own_NCA).pow(2).mul(variance_NCA).sum(2)
        return F.cross_entropy(logits + 0.5 * progress * self.lambda_0 * sigma2_NC, targets)

    @torch.no_grad()
    def _update(self, features: Tensor, targets: Tensor) -> None:
        samples, width = features.shape
        classes = self.num_classes
        one_hot_NC = features.new_zeros(samples, classes).scatter_(1, targets[:, None], 1)
        mask_NCA = one_hot_NC[:, :, None].expand(samples, classes, width)
        masked_NCA = features[:, None, :].expand(samples, classes, width).mul(mask_NCA)
        safe_CA = mask_NCA.sum(0)
        safe_CA[safe_CA == 0] = 1
        batch_mean_CA = masked_NCA.sum(0) / safe_CA
        batch_variance_CA = (masked_NCA - batch_mean_CA.expand(samples, classes, width).mul(mask_NCA)).pow(2).sum(0)
        amount_CA = one_hot_NC.sum(0)[:, None].expand(classes, width)
        weight_CA = amount_CA / (amount_CA + self.count[:, None].expand(classes, width))
        weight_CA[weight_CA != weight_CA] = 0
        shift_CA = weight_CA.mul(1 - weight_CA).mul((self.mean - batch_mean_CA).pow(2))
        self.variance = self.variance.mul(1 - weight_CA) + (batch_variance_CA / safe_CA).mul(weight_CA) + shift_CA
        self.mean = self.mean.mul(1 - weight_CA) + batch_mean_CA.mul(weight_CA)
        self.count = self.count + one_hot_NC.sum(0)


class PlainDenseISDALoss(PlainDiagonalISDALoss):
    """ISDA of pixels in the authors' form for segmentation: all pixels become rows of the diagonal form.

    Features are [N, A, *], logits [N, C, *] and targets [N, *]; the head is a convolution of kernel size 1.
    """

    def forward(self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Module, progress: float) -> Tensor:
        """Update the statistics and return the loss; ``progress`` is that of training, from 0 to 1."""
        (weight, *_), (_, classes) = head.parameters(), logits.shape[:2]
        linear = nn.Linear(features.shape[1], classes, bias=False)
        del linear.weight
        linear.weight = weight.squeeze()
        rows_NA, rows_NC = (one.movedim(1, -1).reshape(-1, one.shape[1]) for one in (features, logits))
        return super().forward(rows_NA, rows_NC, targets.flatten(), head=linear, progress=progress)
