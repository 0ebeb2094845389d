"""Networks of timm and torchvision as ``Network``: features, logits, head, weights."""

import socket

import pytest
import timm
import torch
import torchvision
import yaml
from torch import nn

from isda_repro.config import CONF_DIR
from isda_repro.errors import UserError
from isda_repro.models import AdaptedNetwork, imagenet_densenet, timm_network

PAPER = {
    row["network"]: row["params_m"]
    for row in yaml.safe_load((CONF_DIR.parent / "isda_repro/experiments/reported.yaml").read_text())["table1"]["rows"]
}
FAMILIES = {
    "resnet18": {},
    "regnetx_002": {},
    "mobilenetv3_small_050": {},
    "efficientnet_b0": {},
    "densenet121": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
    "mixer_s32_224": {"img_size": 32},
    "ghostnet_050": {},
    "repvgg_a0": {},
}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_families_by_the_contract(name):
    """The head maps features to logits, one step reaches every parameter, and timm's parameter count is kept."""
    torch.manual_seed(0)
    network = timm_network(name, 7, image_size=32, **FAMILIES[name]).eval()
    images = torch.randn(4, 3, 32, 32)
    features, logits = network(images)
    assert features.shape == (4, network.feature_dim)
    assert logits.shape == (4, 7)
    torch.testing.assert_close(logits, network.head(features))
    assert count(network) == count(timm.create_model(name, num_classes=7, **FAMILIES[name]))
    network.train()
    torch.nn.functional.cross_entropy(network(images).logits, torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_official_initialisation_of_densenets_is_by_fan_out_with_a_random_head_bias():
    torch.manual_seed(0)
    ours, theirs = (imagenet_densenet(121, 1000, image_size=32) for _ in range(2))
    theirs.draw_official_init()
    for network, of_fan in ((ours, "in"), (theirs, "out")):
        for name in ("conv0", "denseblock4.denselayer16.conv1"):
            weight = network.backbone.features.get_submodule(name).weight
            fan = weight[0].numel() if of_fan == "in" else weight[:, 0].numel()
            assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05), (of_fan, name)
    assert not ours.head.bias.any()
    assert 0.9 < theirs.head.bias.abs().max() * theirs.head.in_features**0.5 <= 1


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnetx_002", "convnext_atto", "densenet121", "ours"])
def test_features_are_pooled_in_fp32_under_autocast(name):
    """The last maps are bf16, their mean is fp32; its error is that of the maps, a few thousandths at most."""
    torch.manual_seed(0)
    make = imagenet_densenet if name == "ours" else timm_network
    network = make(121 if name == "ours" else name, 7, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.forward_features(images)
        logits = network(images).logits
    assert features.dtype == logits.dtype == torch.float32
    if name != "convnext_atto":  # it normalises after pooling
        assert (features != features.bfloat16()).float().mean() > 0.2, "not rounded to bf16"


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "efficientformer_l1"])
def test_two_classifiers_are_refused(name):
    with pytest.raises(UserError, match=name):
        timm_network(name, 7)


class Scaled(nn.Module):
    """A model that scales the output of its classifier."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return 3 * self.classifier(images.mean((2, 3)))


@pytest.mark.parametrize("classifier", [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), nn.Linear(3, 5)])
def test_model_that_does_not_end_in_one_linear_layer_is_refused(classifier):
    with pytest.raises(UserError, match="tall"):
        AdaptedNetwork(Scaled(classifier), "classifier", 8, "tall")


@pytest.mark.parametrize(
    ("name", "options", "tokens"),
    [
        ("resnet5o", {}, ("resnet5o", "resnet50")),
        ("resnet18", {"foo": 3}, ("resnet18", "foo=3")),
        ("vit_tiny_patch16_224", {"image_size": 32}, ("vit_tiny_patch16_224", "32 x 32")),
        ("resnet18", {"image_size": 32, "act_layer": "foo"}, ("resnet18", "act_layer=foo")),
        ("resnet18", {"image_size": 32, "layers": [2, 2]}, ("resnet18", "32 x 32")),
        (3, {"image_size": 32}, ("model.name=3",)),
    ],
)
def test_setting_that_timm_cannot_take_is_named_in_one_line(name, options, tokens):
    with pytest.raises(UserError) as caught:
        timm_network(name, 7, **options)
    assert "\n" not in str(caught.value)
    assert all(token in str(caught.value) for token in tokens)


MAKERS = [
    lambda **options: timm_network("resnet18", 7, image_size=32, **options),
    lambda **options: imagenet_densenet(121, 7, image_size=32, **options),
]


@pytest.mark.parametrize(("offline", "token"), [("1", "HF_HUB_OFFLINE"), ("0", "https://")])
@pytest.mark.parametrize("make", MAKERS)
def test_weights_that_cannot_be_fetched_fail_at_once(make, offline, token, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.create_model", lambda *names, **options: pytest.fail("it must not come so far"))
    with socket.socket() as nobody:  # bound, but not listening
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError, match=token):
            make(pretrained=True)


@pytest.mark.parametrize("make", MAKERS)
def test_dropout_acts_where_it_is_asked_for_and_networks_begin_in_training(make):
    images, draws = torch.randn(2, 3, 32, 32), []
    for options in ({"dropout": 0.5}, {}):
        network = make(**options)
        assert all(module.training for module in network.modules())
        draws.append(torch.equal(network(images).logits, network(images).logits))
    assert draws == [False, True]


def same_logits(network, other):
    """Copy the weights of ``network`` to ``other``, and compare their logits."""
    state = {key.removeprefix("backbone."): value for key, value in network.state_dict().items()}
    state = {key.replace("head.", f"{network.classifier_name}."): value for key, value in state.items()}
    other.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(images).logits, other.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "paper", "features", "millions"),
    [
        ("resnet50", "ResNet-50", 2048, 25.56),
        pytest.param("resnet101", "ResNet-101", 2048, 44.55, marks=pytest.mark.slow),
        pytest.param("resnet152", "ResNet-152", 2048, 60.19, marks=pytest.mark.slow),
        ("resnext50_32x4d", "ResNeXt-50, 32x4d", 2048, 25.03),
        pytest.param("resnext101_32x8d", "ResNeXt-101, 32x8d", 2048, 88.79, marks=pytest.mark.slow),
    ],
)
def test_imagenets_resnets_are_torchvisions(name, paper, features, millions):
    network = timm_network(name, 1000, image_size=64, zero_init_last=False)
    assert round(count(network) / 1e6, 2) == millions
    assert count(network) / 1e6 == pytest.approx(PAPER[paper], abs=0.12), "the paper's 60.3 for ResNet-152 is 60.19"
    assert network.feature_dim == features
    same_logits(network, getattr(torchvision.models, name)())


def imagenet_densenet_parameters(blocks, first):
    """Return parameters and features for k = 32, a stem of 7x7 with a normalisation, and 1000 classes."""
    total, channels = 3 * first * 49 + 2 * first, first
    for stage, layers in enumerate(blocks):
        for _ in range(layers):
            total += 2 * channels + channels * 128 + 2 * 128 + 9 * 128 * 32
            channels += 32
        if stage < len(blocks) - 1:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + channels * 1000 + 1000, channels


@pytest.mark.parametrize(
    ("depth", "blocks", "paper", "features"),
    [(121, (6, 12, 24, 16), "DenseNet-BC-121", 1024), (265, (6, 12, 64, 48), "DenseNet-BC-265", 2688)],
)
def test_imagenets_densenets(depth, blocks, paper, features):
    network = imagenet_densenet(depth, 1000, image_size=32)
    assert (count(network), network.feature_dim) == imagenet_densenet_parameters(blocks, 64)
    assert round(count(network) / 1e6, 1) == PAPER[paper]
    assert network.feature_dim == features
    if depth == 121:
        same_logits(network, timm.create_model("densenet121"))


def test_the_authors_imagenet_densenet_is_another_network():
    network = imagenet_densenet(121, 1000, image_size=32, first_channels=24)
    assert (count(network), network.feature_dim) == imagenet_densenet_parameters((6, 12, 24, 16), 24)
    assert network.feature_dim == 1019


def test_another_depth_is_refused():
    with pytest.raises(UserError, match="169"):
        imagenet_densenet(169, 10)


def test_densenet121_begins_with_timms_weights(monkeypatch):
    create, asked = timm.create_model, []

    def offline(name, pretrained, num_classes):
        asked.append((name, pretrained))
        torch.manual_seed(3)
        return create(name, num_classes=num_classes)

    monkeypatch.setattr("isda_repro.models.pretrained._require_download_or_cache", asked.append)
    monkeypatch.setattr("timm.create_model", offline)
    network = imagenet_densenet(121, 7, image_size=32, pretrained=True)
    assert asked == ["densenet121", ("densenet121", True)]
    same = offline("densenet121", True, 7)
    torch.testing.assert_close(network.backbone.features.conv0.weight, same.features.conv0.weight)
    torch.testing.assert_close(network.head.weight, same.classifier.weight)


@pytest.mark.parametrize(("depth", "first"), [(265, 64), (121, 24)])
def test_densenets_without_weights_of_timm_are_refused(depth, first):
    with pytest.raises(UserError, match=f"{depth} with {first}"):
        imagenet_densenet(depth, 7, first_channels=first, pretrained=True)
