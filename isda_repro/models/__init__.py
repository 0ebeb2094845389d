"""Networks that turn a batch of images into features and logits.

They can be used alone: this package does not depend on losses, data or training.
"""

from isda_repro.models.densenet import DenseNet
from isda_repro.models.network import Network, NetworkOutput
from isda_repro.models.pretrained import AdaptedNetwork, imagenet_densenet, timm_network
from isda_repro.models.resnet import ResNet
from isda_repro.models.resnext import ResNeXt
from isda_repro.models.shake_shake import ShakeShake
from isda_repro.models.wide_resnet import WideResNet

__all__ = [
    "AdaptedNetwork",
    "DenseNet",
    "Network",
    "NetworkOutput",
    "ResNeXt",
    "ResNet",
    "ShakeShake",
    "WideResNet",
    "imagenet_densenet",
    "timm_network",
]
