"""ResNeXt for CIFAR (Xie et al. 2017), with their bottleneck of form C (grouped convolution).

The network has three stages; where the shape changes, the shortcut is a 1x1 convolution with batch normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn

from isda_repro.models.network import Network, depth_to_blocks, initialise

EXPANSION = 4  # output channels of a block divided by its stage's width


class Bottleneck(nn.Module):
    """Block 1x1 - grouped 3x3 - 1x1, added to the shortcut, relu. [N, in, H, W] -> [N, out, H/stride, W/stride].

    Args:
        channels_in: channels of the input.
        inner: channels of the grouped convolution, over all groups.
        channels_out: channels of the output.
        stride: stride of the grouped convolution.
        cardinality: number of groups.
        dropout: probability of zeroing an activation before the last convolution.
    """

    def __init__(
        self, channels_in: int, inner: int, channels_out: int, stride: int, cardinality: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, out, H/stride, W/stride]."""
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.dropout(self.relu(self.bn2(self.conv2(residual))))
        residual = self.bn3(self.conv3(residual))
        output: Tensor = self.relu(residual.add_(self.shortcut(x)))
        return output


class ResNeXt(Network):
    """ResNeXt for images of about 32 x 32 pixels; ``feature_dim`` is 1024.

    Args:
        depth: number of layers, 9 n + 2: 20, 29, 38.
        cardinality: number of groups; 8 in "8x64d".
        base_width: channels of a group in the first stage; 64 in "8x64d".
        num_classes: number of classes, C.
        dropout: probability of zeroing an activation before each block's last convolution; the literature uses none.
    """

    def __init__(
        self,
        depth: int,
        cardinality: int,
        base_width: int,
        num_classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(256 * EXPANSION, num_classes)
        blocks = depth_to_blocks(depth, extra=2, per_block=3, name="ResNeXt", example="29")
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        stages, channels_in = [], 64
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            inner, channels_out = factor * cardinality * base_width, factor * 64 * EXPANSION
            for index in range(blocks):
                step = stride if index == 0 else 1
                stages.append(Bottleneck(channels_in, inner, channels_out, step, cardinality, dropout))
                channels_in = channels_out
        self.blocks = nn.Sequential(*stages)
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, 1024] of images [N, 3, H, W]."""
        return self.pool(self.blocks(self.stem(images)))
