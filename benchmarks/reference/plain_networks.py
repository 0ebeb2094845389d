"""Reference implementations of the paper's networks: torchvision's, timm's, or a plain form.

The CIFAR networks are assembled from blocks of torchvision and timm where these have them. Wide-ResNet and Shake-Shake,
which they do not have, are written here as most repositories do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import SEModule  # type: ignore[attr-defined]
from timm.models.resnet import BasicBlock as TimmBlock
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from isda_repro.models import Network


def plain_network(model: str, num_classes: int, dropout: float = 0.3) -> nn.Module:
    """Return the reference network of ``model=``, images -> logits; its parameters come in our order, the head's last.

    ``dropout`` applies to Wide-ResNet alone.
    """
    if model in ("resnet8", "resnet20", "resnet32", "resnet110"):
        return _residual(int(model.removeprefix("resnet")), num_classes, BasicBlock)
    if model == "se_resnet110":
        return _residual(110, num_classes, _se_block)
    others: dict[str, Callable[[], nn.Module]] = {
        "wrn16_8": lambda: PlainWideResNet(16, 8, num_classes, dropout),
        "wrn28_10": lambda: PlainWideResNet(28, 10, num_classes, dropout),
        "resnext29_8x64d": lambda: _resnext(num_classes),
        "densenet_bc100_12": lambda: _densenet(100, 12, num_classes),
        "densenet_bc190_40": lambda: _densenet(190, 40, num_classes),
        "shake_shake26_2x32d": lambda: PlainShakeShake(32, num_classes),
        "shake_shake26_2x112d": lambda: PlainShakeShake(112, num_classes),
        "densenet121": lambda: timm.create_model("densenet121", num_classes=num_classes),
        "densenet265": lambda: timm.models.DenseNet(32, (6, 12, 64, 48), num_classes=num_classes),
    }
    return others[model]() if model in others else _of_torchvision(model, num_classes)


def same_weights(ours: Network, theirs: nn.Module) -> None:
    """Copy the weights of ours into theirs, one by one: both list modules in the order in which images pass them."""
    state = ours.state_dict()
    in_order = [name for name in state if not name.startswith("head.")] + ["head.weight", "head.bias"]
    places = theirs.state_dict()
    for name, place in zip(in_order, places, strict=True):
        places[place] = state[name].reshape(places[place].shape)
    theirs.load_state_dict(places)


# ------------------------------------------------------------------------------------------- from others' blocks


def _of_torchvision(model: str, num_classes: int) -> nn.Module:
    made: nn.Module = torchvision.models.get_model(model, num_classes=num_classes)
    return made


def _se_block(channels_in: int, channels_out: int, stride: int, downsample: nn.Module | None) -> nn.Module:
    gate = partial(SEModule, rd_channels=channels_out // 16, bias=False)
    return TimmBlock(channels_in, channels_out, stride, downsample, attn_layer=gate)  # type: ignore[arg-type]


def _residual(depth: int, num_classes: int, block: Any) -> nn.Sequential:
    """Return the CIFAR ResNet of He et al. 2016, section 4.2, with projection shortcuts."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    before = 16
    for channels, first_stride in ((16, 1), (32, 2), (64, 2)):
        for index in range((depth - 2) // 6):
            stride = first_stride if index == 0 else 1
            projection = None
            if stride != 1 or before != channels:
                projection = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            layers.append(block(before, channels, stride, projection))
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def _resnext(num_classes: int) -> nn.Sequential:
    """Return ResNeXt-29, 8x64d: three stages of torchvision's ResNeXt, with CIFAR's first convolution."""
    whole = torchvision.models.ResNet(Bottleneck, [3, 3, 3, 1], groups=8, width_per_group=64)
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    stages = [whole.layer1, whole.layer2, whole.layer3]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, num_classes))


def _densenet(depth: int, growth: int, num_classes: int) -> nn.Module:
    """Return DenseNet-BC: torchvision's, with CIFAR's first convolution."""
    network: nn.Module = torchvision.models.DenseNet(
        growth, ((depth - 4) // 6,) * 3, 2 * growth, num_classes=num_classes
    )
    features = network.get_submodule("features")
    features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    features.norm0 = features.relu0 = features.pool0 = nn.Identity()
    return network


# --------------------------------------------------------------------------------------------------- written here


class _PlainWideBlock(nn.Module):
    def __init__(self, before: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.same = before == channels
        if not self.same:
            self.shortcut = nn.Conv2d(before, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        out = F.dropout(out, self.dropout, self.training)
        sum_: Tensor = self.conv2(out) + (x if self.same else self.shortcut(activated))
        return sum_


class PlainWideResNet(nn.Module):
    """Wide-ResNet of Zagoruyko and Komodakis 2016."""

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        before = 16
        for channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for index in range((depth - 4) // 6):
                blocks.append(_PlainWideBlock(before, channels, stride if index == 0 else 1, dropout))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, C]."""
        maps = F.relu(self.bn(self.blocks(self.conv1(images))), inplace=True)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


class _PlainShake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, training: bool) -> Tensor:
        if not training:
            return 0.5 * one + 0.5 * other
        share = torch.rand(len(one), 1, 1, 1, device=one.device).expand_as(one)
        return share * one + (1 - share) * other

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        share = torch.rand(len(gradient), 1, 1, 1, device=gradient.device).expand_as(gradient)
        return share * gradient, (1 - share) * gradient, None


class _PlainShakeShortcut(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(before, channels // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(before, channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        here = F.avg_pool2d(x, 1, self.stride)
        beside = F.avg_pool2d(F.pad(x, (1, -1, 1, -1)), 1, self.stride)
        out: Tensor = self.bn(torch.cat((self.conv1(here), self.conv2(beside)), 1))
        return out


class _PlainShakeBlock(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.one = self._branch(before, channels, stride)
        self.other = self._branch(before, channels, stride)
        self.shortcut = nn.Identity() if before == channels else _PlainShakeShortcut(before, channels, stride)

    @staticmethod
    def _branch(before: int, channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(before, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=False),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _PlainShake.apply(self.one(x), self.other(x), self.training) + self.shortcut(x)
        return out


class PlainShakeShake(nn.Module):
    """Shake-Shake of Gastaldi 2017, 26 2 x ``width`` d."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        blocks: list[nn.Module] = []
        before = 16
        for channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for index in range(4):
                blocks.append(_PlainShakeBlock(before, channels, stride if index == 0 else 1))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, C]."""
        maps = F.relu(self.blocks(self.stem(images)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits
