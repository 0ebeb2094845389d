"""Base class of all networks, which return both the features and the logits that the head computes from them.

Shapes: N images in the batch, C classes, A features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class NetworkOutput(NamedTuple):
    """Output of a network.

    Attributes:
        features: [N, A], pooled and post-activation (the paper's a_i).
        logits: [N, C].
    """

    features: Tensor
    logits: Tensor


class Network(nn.Module, ABC):
    """A backbone and one linear head, with ``logits == head(features)``.

    The head and the pooled features keep the dtype of the head's weight (fp32) under autocast. The losses take
    differences of logits, and ISDA's covariances would lose 0.3-0.7% in bf16.

    Args:
        feature_dim: number of features, A.
        num_classes: number of classes, C.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.head = nn.Linear(feature_dim, num_classes)

    def drop_head_bias(self) -> None:
        """Remove the bias of the head, for a criterion whose ``uses_head_bias`` is False.

        All other weights stay as they were initialised.
        """
        self.head.register_parameter("bias", None)

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, A] of images [N, 3, H, W]."""

    def forward(self, images: Tensor) -> NetworkOutput:
        """Return the features [N, A] and logits [N, C] of images [N, 3, H, W]."""
        features = self.forward_features(images)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.head.weight.dtype)
            return NetworkOutput(features, self.head(features))

    def draw_official_init(self) -> None:
        """Draw the head bias at random, as the authors' code on CIFAR does (PyTorch's default)."""
        if self.head.bias is not None:
            bound = self.head.in_features**-0.5
            nn.init.uniform_(self.head.bias, -bound, bound)

    def pool(self, maps: Tensor) -> Tensor:
        """Return the global average of maps [N, A, H, W] as [N, A], accumulated in the head's dtype."""
        return maps.mean((2, 3), dtype=self.head.weight.dtype)


def initialise(network: Network) -> None:
    """Initialise a network as the authors do.

    Convolutions are drawn from N(0, 2 / (k k out)) (He et al. 2015, fan-out), normalisations are set to the identity
    and the head's bias to zero. The head keeps PyTorch's uniform weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if network.head.bias is not None:
        nn.init.zeros_(network.head.bias)


def depth_to_blocks(depth: int, extra: int, per_block: int, name: str, example: str) -> int:
    """Return the blocks per stage of a three-stage CIFAR network.

    Args:
        depth: 3 * per_block * blocks + extra.
        extra: layers outside the blocks.
        per_block: layers of a block.
        name: name of the network, for the error.
        example: valid depths, for the error.

    Raises:
        ValueError: no whole number of blocks gives that depth.
    """
    blocks, rest = divmod(depth - extra, 3 * per_block)
    if rest or blocks < 1:
        raise ValueError(f"{name} has no depth {depth}: it must be {3 * per_block} n + {extra}, for example {example}")
    return blocks
