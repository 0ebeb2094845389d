"""Wide-ResNet (Zagoruyko and Komodakis 2016): pre-activation blocks with dropout between their two convolutions.

Where the shape changes, the shortcut is a bare 1x1 convolution of the block's normalised and activated input.
"""

from __future__ import annotations

from torch import Tensor, nn

from isda_repro.models.network import Network, depth_to_blocks, initialise


class WideBlock(nn.Module):
    """Block bn-relu-conv-bn-relu-dropout-conv, added to the shortcut.

    [N, in, H, W] -> [N, out, H/stride, W/stride]
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output before any activation, [N, out, H/stride, W/stride]."""
        activated = self.relu(self.bn1(x))
        residual = self.dropout(self.relu(self.bn2(self.conv1(activated))))
        return self.conv2(residual).add_(x if self.shortcut is None else self.shortcut(activated))  # type: ignore[no-any-return]


class WideResNet(Network):
    """Wide-ResNet-depth-width for images of about 32 x 32 pixels; ``feature_dim`` is 64 * width.

    Args:
        depth: number of layers, 6 n + 4: 16, 22, 28, 40.
        width: factor on the channels 16, 32, 64 of the three stages.
        num_classes: number of classes, C.
        dropout: probability of zeroing an activation between a block's convolutions; the paper uses 0.3.
    """

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float = 0.3) -> None:
        super().__init__(64 * width, num_classes)
        blocks = depth_to_blocks(depth, extra=4, per_block=2, name="Wide-ResNet", example="16 or 28")
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages, channels_in = [], 16
        for channels_out, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for index in range(blocks):
                stages.append(WideBlock(channels_in, channels_out, stride if index == 0 else 1, dropout))
                channels_in = channels_out
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, 64 * width] of images [N, 3, H, W]."""
        return self.pool(self.relu(self.bn(self.blocks(self.stem(images)))))
