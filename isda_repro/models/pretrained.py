"""Networks of timm and torchvision under our contract: any backbone that ends in one linear classifier."""

from __future__ import annotations

import difflib
import os
import urllib.error
import urllib.request
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.errors import UserError
from isda_repro.models.network import Network

PROBE_SECONDS = 5.0  # timm's own download goes on trying for most of a minute
DENSENET_BLOCKS = {121: (6, 12, 24, 16), 265: (6, 12, 64, 48)}  # Huang et al. 2017, tables 1 and (265) their code


class AdaptedNetwork(Network):
    """A model whose classifier has become the ``head``, and whose own output has become the ``features``.

    The head is in its own dtype also under autocast, and so is what makes the features wherever the functions below can
    have it so: timm's average pooling, torchvision's DenseNet. Models that do not pool (transformers) give their
    features in the dtype of their last layer.

    Args:
        model: images [N, 3, H, W] -> logits [N, C]; changed by this.
        classifier: the dotted name of its last layer.
        image_size: height and width of an image with which the contract is checked, once.
        name: how messages call the model.

    Raises:
        UserError: the classifier is not one ``nn.Linear``, the model does more after it, or cannot take such images.
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
        """Images [N, 3, H, W] -> features [N, A]."""
        features: Tensor = self.backbone(images)
        return features


class AdaptedDenseNet(AdaptedNetwork):
    """torchvision's DenseNet, pooled in the head's dtype, which its own ``forward`` does not."""

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> features [N, A]."""
        return self.pool(F.relu(self.backbone.features(images)))  # type: ignore[operator]


def _widened(_pooling: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Maps as average pooling is to have them: sums over 49 pixels lose in bf16 what ISDA's covariances are made of."""
    return tuple(maps.float() if maps.dtype in (torch.bfloat16, torch.float16) else maps for maps in inputs)


def timm_network(
    name: str,
    num_classes: int,
    image_size: int = 224,
    pretrained: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> AdaptedNetwork:
    """A network of timm.

    Args:
        name: of the model, as in ``timm.list_models()``.
        num_classes: C.
        image_size: height and width of the images, in pixels.
        pretrained: begin with timm's weights; a head for another number of classes is drawn anew.
        dropout: timm's ``drop_rate``, in most models before the classifier.
        **options: for timm's own constructor, such as ``img_size`` or ``drop_path_rate``.

    Raises:
        UserError: there is no such model, its weights cannot be fetched, or it does not fit the contract.
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
    except Exception as error:  # whatever its many constructors make of a setting that they do not expect
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"timm cannot make {name}{' with ' + given if given else ''}: {reason}") from error
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
    """DenseNet-BC for ImageNet (k = 32), torchvision's; 265 layers are its class with the blocks of the paper.

    Args:
        depth: 121 or 265.
        num_classes: C.
        image_size: height and width of the images, in pixels.
        first_channels: of the first convolution; the ISDA authors' code has 24.
        dropout: probability of muting an activation after each layer's last convolution.
        checkpointed: recompute concatenations instead of keeping them.
        pretrained: begin with timm's weights, which DenseNet-121 with 64 first channels has.

    Raises:
        UserError: another depth, or weights that there are not, or that cannot be fetched.
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
    if pretrained:
        if (depth, first_channels) != (121, 64):
            raise UserError(
                f"timm has no pretrained weights for DenseNet-{depth} with {first_channels} first channels, only for "
                "DenseNet-121 with 64; leave out model.pretrained=true"
            )
        _require_download_or_cache("densenet121")
        model.load_state_dict(timm.create_model("densenet121", pretrained=True, num_classes=num_classes).state_dict())
    return AdaptedDenseNet(model, "classifier", image_size, f"DenseNet-{depth}")


@torch.no_grad()
def _answer(model: nn.Module, image_size: int, name: str) -> Tensor:
    """What the model makes of one image, in evaluation; its mode is as before."""
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    training = model.training
    try:
        answer: Tensor = model.eval()(image)
    except MemoryError:
        raise
    except Exception as error:  # whatever a model makes of settings or images that do not suit it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot take images of {image_size} x {image_size} pixels: {reason}") from error
    finally:
        model.train(training)
    return answer


def _require_download_or_cache(name: str) -> None:
    """Fail in seconds where weights are neither on this machine nor to be had."""
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
        return  # it answers; timm says the rest
    except (OSError, ValueError) as error:
        raise UserError(f"the weights of {name} cannot be fetched from {address} ({error}): {advice}") from error
