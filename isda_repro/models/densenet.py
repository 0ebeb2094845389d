"""DenseNet-BC for CIFAR (Huang et al. 2017), in which each layer gets the maps of all earlier layers of its block.

Bottlenecks have 4 k channels, and transitions halve the channels. With ``checkpointed=True`` the concatenated and
normalised maps, whose size grows with the square of the depth, are not stored but computed again in the backward pass
(Pleiss et al. 2017). That gives the same numbers, in less memory and more time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isda_repro.models.network import Network, depth_to_blocks, initialise

BOTTLENECK = 4  # channels between a layer's two convolutions, as a multiple of the growth rate
COMPRESSION = 0.5  # share of the channels that a transition keeps


class DenseLayer(nn.Module):
    """Layer bn-relu-1x1-bn-relu-3x3-dropout on all earlier maps, each [N, c_i, H, W] -> new maps [N, growth, H, W]."""

    def __init__(self, channels_in: int, growth: int, dropout: float, checkpointed: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.checkpointed = checkpointed

    def forward(self, *maps: Tensor) -> Tensor:
        """Return the new maps of this layer, without those of earlier layers."""
        if self.checkpointed and self.training and torch.is_grad_enabled():
            squeezed = checkpoint_normalised(self._squeeze, self.bn1, *maps)
        else:
            squeezed = self._squeeze(*maps)
        output: Tensor = self.dropout(self.conv2(self.relu(self.bn2(squeezed))))
        return output

    def _squeeze(self, *maps: Tensor) -> Tensor:
        squeezed: Tensor = self.conv1(self.relu(self.bn1(torch.cat(maps, 1))))
        return squeezed


def checkpoint_normalised(function: Callable[..., Tensor], norm: nn.BatchNorm2d, *maps: Tensor) -> Tensor:
    """Return ``function(*maps)``, computed again in the backward pass; ``norm`` in it counts the batch once."""
    # torch.compile derives the second pass itself, without side effects, and accepts no contexts
    contexts: dict[str, Any] = {}
    if not torch.compiler.is_compiling():
        contexts["context_fn"] = lambda: (nullcontext(), _seen_already(norm))
    returned: Tensor = checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=False, **contexts)
    return returned


@contextmanager
def _seen_already(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Keep the running statistics of ``norm`` unchanged while the same batch passes a second time."""
    momentum, batches = norm.momentum, cast(Tensor, norm.num_batches_tracked)
    norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros_like(batches)  # SyncBatchNorm accepts no None
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, batches


class DenseBlock(nn.ModuleList):
    """Dense layers of one resolution: [N, in, H, W] -> [N, in + layers * growth, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the maps of all layers, concatenated."""
        maps = [x]
        for layer in self:
            maps.append(layer(*maps))
        return torch.cat(maps, 1)


class DenseNet(Network):
    """DenseNet-BC for images of about 32 x 32 pixels.

    ``feature_dim`` follows from depth and growth: 342 for 100-12, 2190 for 190-40.

    Args:
        depth: number of layers, 6 n + 4: 100, 190.
        growth: k, the number of maps that each layer adds.
        num_classes: number of classes, C.
        first_channels: channels of the first convolution; None: 2 k, as in the DenseNet paper. The ISDA authors' code
            has 24.
        dropout: probability of zeroing an activation after each layer's last convolution.
        checkpointed: compute concatenations again in the backward pass instead of storing them.
    """

    def __init__(
        self,
        depth: int,
        growth: int,
        num_classes: int,
        first_channels: int | None = None,
        dropout: float = 0.0,
        checkpointed: bool = False,
    ) -> None:
        layers = depth_to_blocks(depth, extra=4, per_block=2, name="DenseNet-BC", example="100 or 190")
        channels = first = 2 * growth if first_channels is None else first_channels
        parts: list[nn.Module] = []
        for stage in range(3):
            if stage > 0:
                kept = int(channels * COMPRESSION)
                parts += [
                    *(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, kept, 1, bias=False)),
                    nn.AvgPool2d(2),
                ]
                channels = kept
            inputs = range(channels, channels + layers * growth, growth)
            parts.append(DenseBlock(DenseLayer(width, growth, dropout, checkpointed) for width in inputs))
            channels += layers * growth
        super().__init__(channels, num_classes)
        self.stem = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, A] of images [N, 3, H, W]."""
        return self.pool(self.relu(self.bn(self.blocks(self.stem(images)))))
