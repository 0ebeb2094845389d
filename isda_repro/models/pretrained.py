"""Adapters for networks of timm and torchvision: any backbone that ends in one linear classifier."""

from __future__ import annotations

import difflib
import os
import urllib.error
import urllib.request
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.errors import UserError, first_line
from isda_repro.models.densenet import checkpoint_normalised
from isda_repro.models.network import Network, initialise

PROBE_SECONDS = 5.0  # timm's own download retries for most of a minute
DENSENET_BLOCKS = {121: (6, 12, 24, 16), 265: (6, 12, 64, 48)}  # Huang et al. 2017: table 1, and their code for 265


class AdaptedNetwork(Network):
    """Network made from a model: its last linear layer becomes the ``head``, and that layer's input the ``features``.

    The head stays in its own dtype under autocast. So does the pooling of the features where the functions below can
    arrange it: in timm's average pooling and torchvision's DenseNet. Models that do not pool (transformers) return
    their features in the dtype of their last layer.

    Args:
        model: images [N, 3, H, W] -> logits [N, C]; modified in place.
        classifier: dotted name of its last layer.
        image_size: height and width of an image, with which the adapted network is checked once.
        name: name of the model in messages.

    Raises:
        UserError: the classifier is not one ``nn.Linear``, the model computes more after it, or it cannot take such
            images.
    """

    def __init__(self, model: nn.Module, classifier: str, image_size: int, name: str) -> None:
        head = model.get_submodule(classifier)
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"{name} ends in a {type(head).__name__}, and ISDA needs one nn.Linear: choose another model"
            )
        super().__init__(head.in_features, head.out_features)
        expected = _answer(model, image_size, name)
        model.set_submodule(classifier, nn.Identity())
        self.backbone, self.head, self.classifier_name = model, head, classifier
        features = _answer(model, image_size, name)
        if features.shape != (1, self.feature_dim) or not torch.allclose(
            head(features), expected, rtol=1e-4, atol=1e-5
        ):
            raise UserError(f"{name} does more with its features than one linear layer: choose another model")

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, A] of images [N, 3, H, W]."""
        features: Tensor = self.backbone(images)
        return features


class AdaptedDenseNet(AdaptedNetwork):
    """torchvision's DenseNet with pooling in the head's dtype, instead of its own ``forward``."""

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the features [N, A] of images [N, 3, H, W]."""
        return self.pool(F.relu(self.backbone.features(images)))  # type: ignore[operator]

    def draw_official_init(self) -> None:
        """Draw convolutions by fan-out, and a random head bias, as the authors' code on ImageNet does."""
        initialise(self)
        super().draw_official_init()


def _widened(_pooling: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert the input of average pooling to fp32 (forward pre-hook).

    In bf16, sums over 49 pixels lose the differences that ISDA's covariances are made of.
    """
    return tuple(maps.float() if maps.dtype in (torch.bfloat16, torch.float16) else maps for maps in inputs)


def timm_network(
    name: str,
    num_classes: int,
    image_size: int = 224,
    pretrained: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> AdaptedNetwork:
    """Return a network of timm.

    Args:
        name: name of the model, as in ``timm.list_models()``.
        num_classes: number of classes, C.
        image_size: height and width of the images, in pixels.
        pretrained: start with timm's weights; a head for another number of classes is newly initialised.
        dropout: timm's ``drop_rate``, in most models before the classifier.
        **options: arguments of timm's own constructor, such as ``img_size`` or ``drop_path_rate``.

    Raises:
        UserError: there is no such model, its weights cannot be downloaded, or it has no single linear classifier.
    """
    import timm
    from timm.layers import SelectAdaptivePool2d  # type: ignore[attr-defined]

    if not isinstance(name, str):
        raise UserError(f"model.name={name} must be the name of a model of timm")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"timm {timm.__version__} has no model {name!r}{hint}")
    if pretrained:
        _require_download_or_cache(name)
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, drop_rate=dropout, **options)
    except MemoryError:
        raise
    except Exception as error:  # its many constructors raise many types for unexpected settings
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UserError(f"timm cannot make {name}{' with ' + given if given else ''}: {first_line(error)}") from error
    classifier = cast(dict[str, Any], model.pretrained_cfg).get("classifier")
    if not isinstance(classifier, str):
        names = list(classifier or ())
        raise UserError(f"{name} has {len(names)} classifiers ({', '.join(names)}), and ISDA needs one")
    for module in model.modules():
        if isinstance(module, SelectAdaptivePool2d):
            module.register_forward_pre_hook(_widened)
    return AdaptedNetwork(model, classifier, image_size, name)


def imagenet_densenet(
    depth: int,
    num_classes: int,
    image_size: int = 224,
    first_channels: int = 64,
    dropout: float = 0.0,
    checkpointed: bool = False,
    pretrained: bool = False,
) -> AdaptedNetwork:
    """Return torchvision's DenseNet-BC for ImageNet (k = 32).

    DenseNet-265, which torchvision does not offer, is its class with the blocks of the paper.

    Args:
        depth: 121 or 265.
        num_classes: number of classes, C.
        image_size: height and width of the images, in pixels.
        first_channels: channels of the first convolution; the ISDA authors' code has 24.
        dropout: probability of zeroing an activation after each layer's last convolution.
        checkpointed: compute concatenations again in the backward pass instead of storing them.
        pretrained: start with timm's weights, which exist for DenseNet-121 with 64 first channels.

    Raises:
        UserError: the depth is another, or the weights do not exist or cannot be downloaded.
    """
    import timm
    from torchvision.models import DenseNet

    if depth not in DENSENET_BLOCKS:
        raise UserError(
            f"DenseNet for ImageNet has no depth {depth}: it must be {' or '.join(map(str, DENSENET_BLOCKS))}"
        )
    model = DenseNet(
        growth_rate=32,
        block_config=DENSENET_BLOCKS[depth],
        num_init_features=first_channels,
        drop_rate=dropout,
        num_classes=num_classes,
        memory_efficient=checkpointed,
    )
    for layer in model.modules():
        if hasattr(layer, "call_checkpoint_bottleneck"):  # torchvision's updates running statistics twice
            layer.call_checkpoint_bottleneck = partial(_checkpointed, layer)
    if pretrained:
        if (depth, first_channels) != (121, 64):
            raise UserError(
                f"timm has no pretrained weights for DenseNet-{depth} with {first_channels} first channels, only for "
                "DenseNet-121 with 64; leave out model.pretrained=true"
            )
        _require_download_or_cache("densenet121")
        model.load_state_dict(timm.create_model("densenet121", pretrained=True, num_classes=num_classes).state_dict())
    return AdaptedDenseNet(model, "classifier", image_size, f"DenseNet-{depth}")


def _checkpointed(layer: Any, maps: list[Tensor]) -> Tensor:
    """Return the maps between the two convolutions of torchvision's dense layer, given all earlier maps."""
    return checkpoint_normalised(lambda *again: layer.bn_function(again), layer.norm1, *maps)


@torch.no_grad()
def _answer(model: nn.Module, image_size: int, name: str) -> Tensor:
    """Return the model's output for one image, in evaluation mode; the mode is restored."""
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    training = model.training
    try:
        answer: Tensor = model.eval()(image)
    except MemoryError:
        raise
    except Exception as error:  # models raise many types for unsuitable settings or images
        raise UserError(
            f"{name} cannot take images of {image_size} x {image_size} pixels: {first_line(error)}"
        ) from error
    finally:
        model.train(training)
    return answer


def _require_download_or_cache(name: str) -> None:
    """Raise ``UserError`` within seconds if weights are neither cached on this machine nor downloadable."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    source = timm.get_pretrained_cfg(name)
    if source is None or not (source.hf_hub_id or source.url):
        raise UserError(f"timm has no pretrained weights for {name}; leave out model.pretrained=true")
    files = ("model.safetensors", "pytorch_model.bin")
    if source.hf_hub_id and any(isinstance(try_to_load_from_cache(source.hf_hub_id, file), str) for file in files):
        return
    address = str(constants.ENDPOINT if source.hf_hub_id else source.url)
    advice = f"run this once where there is a network, and copy the cache from there ({constants.HF_HUB_CACHE})"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "ON", "YES"):
        raise UserError(f"the weights of {name} are not on this machine and HF_HUB_OFFLINE is set: {advice}")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the server answers; timm reports the rest
    except (OSError, ValueError) as error:
        raise UserError(f"the weights of {name} cannot be fetched from {address} ({error}): {advice}") from error
