"""ResNet for CIFAR (He et al. 2016, section 4.2), with the ISDA authors' shortcuts and dropout.

Three stages have 16, 32 and 64 channels. Where the shape changes, the shortcut is a strided 1x1 convolution with batch
normalisation ("option B"), as in the ISDA authors' code. Their dropout (Table 4's "+ Dropout") sits inside each block,
before the second convolution. SE-ResNet (Hu et al. 2018) scales the maps of each block by a gate before they are added
to the shortcut; its two linear layers have no bias, as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isda_repro.models.network import Network, depth_to_blocks, initialise


class Gate(nn.Module):
    """Squeeze and excitation: scale each map by a number in (0, 1), computed from the means of all maps.

    Args:
        channels: number of maps, C.
        reduction: C divided by the number of hidden units.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"se_reduction={reduction} must be from 1 to {channels}, the number of maps of a block")
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled maps, [N, C, H, W]."""
        scale = torch.sigmoid(self.excite(self.relu(self.squeeze(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class BasicBlock(nn.Module):
    """Block conv-bn-relu-dropout-conv-bn-gate, added to the shortcut, relu.

    [N, in, H, W] -> [N, out, H/stride, W/stride]
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, dropout: float, se_reduction: int | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.gate = nn.Identity() if se_reduction is None else Gate(channels_out, se_reduction)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, out, H/stride, W/stride]."""
        residual = self.dropout(self.relu(self.bn1(self.conv1(x))))
        residual = self.gate(self.bn2(self.conv2(residual)))
        output: Tensor = self.relu(residual.add_(self.shortcut(x)))
        return output


class ResNet(Network):
    """ResNet for images of about 32 x 32 pixels; ``feature_dim`` is 64.

    Args:
        depth: number of layers, 6 n + 2: 20, 32, 44, 56, 110.
        num_classes: number of classes, C.
        dropout: probability of zeroing an activation inside each block.
        se_reduction: reduction of the squeeze-and-excitation gates, 16 in SE-ResNet; None: no gates.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        dropout: float = 0.0,
        se_reduction: int | None = None,
    ) -> None:
        super().__init__(64, num_classes)
        blocks = depth_to_blocks(depth, extra=2, per_block=2, name="ResNet", example="20, 32 or 110")
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        stages, channels_in = [], 16
        for channels_out, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(blocks):
                step = stride if index == 0 else 1
                stages.append(BasicBlock(channels_in, channels_out, step, dropout, se_reduction))
                channels_in = channels_out
        self.blocks = nn.Sequential(*stages)
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, 64] of images [N, 3, H, W]."""
        return self.pool(self.blocks(self.stem(images)))
