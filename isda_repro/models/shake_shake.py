"""Shake-Shake 26 2 x d (Gastaldi 2017), a ResNet whose blocks mix two branches at random.

In training, one random coefficient per image mixes the branches in the forward pass, and an independent one divides the
gradient between them in the backward pass. In evaluation each branch counts half.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.models.network import Network, initialise

BLOCKS = 4  # per stage; 3 stages of 4 blocks of 2 convolutions, plus stem and head: 26 layers


class _Shake(torch.autograd.Function):
    """``forward_share * one + (1 - forward_share) * other``, with ``backward_share`` in the gradient instead."""

    @staticmethod
    def forward(one: Tensor, other: Tensor, forward_share: Tensor, backward_share: Tensor) -> Tensor:
        return torch.lerp(other, one, forward_share)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (share,) = ctx.saved_tensors
        (gradient,) = gradients
        to_one = gradient * share
        return to_one, gradient - to_one, None, None


class ShakeBlock(nn.Module):
    """Two branches relu-conv-bn-relu-conv-bn, mixed and added to the shortcut.

    [N, in, H, W] -> [N, out, H/stride, W/stride]

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: stride of each branch's first convolution, and of the shortcut.
        shift: see ``Shortcut``.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, shift: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels_in, channels_out, stride) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = Shortcut(channels_in, channels_out, stride, shift)

    @staticmethod
    def _branch(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ReLU(),  # not in place: the second branch and the shortcut read the same input
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output before any activation, [N, out, H/stride, W/stride]."""
        one, other = (branch(x) for branch in self.branches)
        if self.training:
            shares = torch.rand(2, len(x), 1, 1, 1, device=x.device).to(one.dtype)
            mixed: Tensor = _Shake.apply(one, other, shares[0], shares[1])
        else:
            mixed = one.lerp(other, 0.5)
        output: Tensor = mixed + self.shortcut(x)
        return output


class Shortcut(nn.Module):
    """Shortcut of a block that changes the shape: relu, two strided 1x1 convolutions, concatenation, bn.

    The first convolution sees every ``stride``-th pixel, the second one a diagonal neighbour of each.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output, half of them from each convolution.
        stride: distance between the pixels that are used.
        shift: 1: the second convolution sees the neighbour above and to the left, as in Gastaldi's code; -1: the one
            below and to the right, as in the ISDA authors' code.

    Raises:
        ValueError: shift is neither 1 nor -1.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, shift: int) -> None:
        super().__init__()
        if shift not in (1, -1):
            raise ValueError(f"shift={shift} must be 1 (Gastaldi's code) or -1 (the ISDA authors')")
        self.padding, self.stride = (shift, -shift, shift, -shift), stride
        self.conv1 = nn.Conv2d(channels_in, channels_out // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_in, channels_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps [N, out, H/stride, W/stride] of an input [N, in, H, W]."""
        x, every = F.relu(x), slice(None, None, self.stride)
        here, beside = x[:, :, every, every], F.pad(x, self.padding)[:, :, every, every]
        output: Tensor = self.bn(torch.cat([self.conv1(here), self.conv2(beside)], 1))
        return output


class ShakeShake(Network):
    """Shake-Shake 26 2 x ``width`` d for images of about 32 x 32 pixels; ``feature_dim`` is 4 * width.

    Args:
        width: channels of a branch in the first stage: 32, 96, 112.
        num_classes: number of classes, C.
        shift: neighbour that the shortcuts' second convolution sees, see ``Shortcut``.
        stem_bias: True: the first convolution has a bias, as in the ISDA authors' code.
    """

    def __init__(self, width: int, num_classes: int, shift: int = 1, stem_bias: bool = False) -> None:
        super().__init__(4 * width, num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=stem_bias), nn.BatchNorm2d(16))
        stages, channels_in = [], 16
        for channels_out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for index in range(BLOCKS):
                stages.append(ShakeBlock(channels_in, channels_out, stride if index == 0 else 1, shift))
                channels_in = channels_out
        self.blocks = nn.Sequential(*stages)
        self.relu = nn.ReLU(inplace=True)
        initialise(self)

    def draw_official_init(self) -> None:
        """Draw convolutions with the variance 2 / fan-in, and a random head bias, as the authors' code does."""
        super().draw_official_init()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, 4 * width] of images [N, 3, H, W]."""
        return self.pool(self.relu(self.blocks(self.stem(images))))
