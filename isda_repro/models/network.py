"""The contract of every network: features that the head turns into logits, and both handed out.

Shapes: N images in the batch, C classes, A features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class NetworkOutput(NamedTuple):
    """What a network returns: ``features`` [N, A], pooled and post-activation (the paper's a_i), ``logits`` [N, C]."""

    features: Tensor
    logits: Tensor


class Network(nn.Module, ABC):
    """A backbone and one linear head, with ``logits == head(features)``.

    The head and the pooled features stay in the dtype of the head's weight (fp32) also under autocast: the losses built
    on them take differences of logits, and ISDA's covariances lose 0.3-0.7% in bf16.

    Args:
        feature_dim: A, the width of the features.
        num_classes: C.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.head = nn.Linear(feature_dim, num_classes)

    def drop_head_bias(self) -> None:
        """For a criterion whose ``uses_head_bias`` is False. The other weights stay as they have been drawn."""
        self.head.register_parameter("bias", None)

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> features [N, A]."""

    def forward(self, images: Tensor) -> NetworkOutput:
        """Images [N, 3, H, W] -> features [N, A] and logits [N, C]."""
        features = self.forward_features(images)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.head.weight.dtype)
            return NetworkOutput(features, self.head(features))

    def pool(self, maps: Tensor) -> Tensor:
        """Global average pooling, [N, A, H, W] -> [N, A], accumulated in the head's dtype."""
        return maps.mean((2, 3), dtype=self.head.weight.dtype)


def initialise(network: Network) -> None:
    """The authors' initialisation: convolutions N(0, 2 / (k k out)), normalisation to the identity, head bias zero.

    He et al. 2015 in its fan-out form; the head keeps the uniform weights of PyTorch.
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
    """Blocks per stage of a three-stage CIFAR network of ``depth`` = 3 * per_block * blocks + extra layers.

    Raises:
        ValueError: no whole number of blocks gives that depth.
    """
    blocks, rest = divmod(depth - extra, 3 * per_block)
    if rest or blocks < 1:
        raise ValueError(f"{name} has no depth {depth}: it must be {3 * per_block} n + {extra}, for example {example}")
    return blocks
