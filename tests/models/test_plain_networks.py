"""Our networks against torchvision's, timm's and plain forms with the same weights."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from isda_repro.config import CONF_DIR, build_model, compose
from isda_repro.models import ResNeXt

MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
QUICK = {"resnet8", "se_resnet110", "wrn16_8", "densenet_bc100_12", "shake_shake26_2x32d"}
LARGER = {
    "resnet32",
    "resnet110",
    "resnet152",
    "resnext101_32x8d",
    "densenet265",
}  # more blocks of kinds that others have


def assert_same_numbers(ours, theirs, pixels):
    """Compare gradients in training and logits in evaluation of two networks with the same weights."""
    images, targets = torch.randn(4, 3, pixels, pixels, dtype=torch.float64), torch.arange(4)
    F.cross_entropy(ours(images).logits, targets).backward()
    F.cross_entropy(theirs(images), targets).backward()
    gradients = [parameter.grad for name, parameter in ours.named_parameters() if not name.startswith("head.")]
    gradients += [ours.head.weight.grad, ours.head.bias.grad]
    for own, other in zip(gradients, theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other.grad.reshape(own.shape), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.eval()(images).logits, theirs.eval()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=[] if model in QUICK else [pytest.mark.slow])
        for model in MODELS
        if model not in LARGER
    ],
)
def test_same_weights_same_logits_and_gradients(load_script, monkeypatch, model):
    """Compared in float64: in training without dropout, with Shake-Shake's draws fixed at 1/2; then in evaluation."""
    plain = load_script("benchmarks/reference/plain_networks")
    monkeypatch.setattr("torch.rand", lambda *size, device: torch.full(size, 0.5, dtype=torch.float64))
    torch.manual_seed(0)
    no_dropout = [] if "shake" in model else ["model.dropout=0"]
    ours = build_model(compose([f"model={model}", "recipe=resnet", *no_dropout]), 10).double()
    theirs = plain.plain_network(model, 10, dropout=0.0).double()
    plain.same_weights(ours, theirs)
    pixels = 32 if model in ("resnet50", "resnet101", "resnext50_32x4d", "densenet121") else 8
    assert_same_numbers(ours, theirs, pixels)


def test_small_resnext_equals_torchvisions_blocks(load_script):
    torch.manual_seed(0)
    whole = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], groups=2, width_per_group=8)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
    stages = whole.layer1, whole.layer2, whole.layer3
    theirs = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 10)).double()
    ours = ResNeXt(11, 2, 8, 10).double()
    load_script("benchmarks/reference/plain_networks").same_weights(ours, theirs)
    assert_same_numbers(ours, theirs, 8)
