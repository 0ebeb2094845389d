"""The CIFAR networks against the literature's structure, counts and behaviour."""

import pytest
import torch
import torch.nn.functional as F
import yaml

from isda_repro.config import CONF_DIR
from isda_repro.models import DenseNet, ResNet, ResNeXt, ShakeShake, WideResNet

PAPER = {
    row["network"]: row["params_m"]
    for row in yaml.safe_load((CONF_DIR.parent / "isda_repro/tables/reported.yaml").read_text())["table2"]["rows"]
}


def resnet_parameters(depth, classes):
    """Option B: convolutions without bias, two normalisations a block, a projection where the shape changes."""
    blocks, total, width = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16, 16
    for channels in (16, 32, 64):
        for index in range(blocks):
            inputs = width if index == 0 else channels
            total += 9 * inputs * channels + 9 * channels * channels + 4 * channels
            total += inputs * channels + 2 * channels if inputs != channels else 0
        width = channels
    return total + 64 * classes + classes


def wide_resnet_parameters(depth, width, classes):
    """Pre-activation: the first normalisation of a block has the width of its input; a bare 1x1 shortcut."""
    blocks, total, inputs = (depth - 4) // 6, 3 * 16 * 9, 16
    for channels in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += 2 * inputs + 9 * inputs * channels + 2 * channels + 9 * channels * channels
            total += inputs * channels if inputs != channels else 0
            inputs = channels
    return total + 2 * inputs + inputs * classes + classes


def gate_parameters(depth, reduction):
    """Two linear layers without bias in each block."""
    return (depth - 2) // 6 * sum(2 * channels * (channels // reduction) for channels in (16, 32, 64))


def resnext_parameters(depth, cardinality, width, classes):
    """A block: 1x1, 3x3 in groups, 1x1, a normalisation after each; a projection where the shape changes."""
    blocks, total, inputs = (depth - 2) // 9, 3 * 64 * 9 + 2 * 64, 64
    for factor in (1, 2, 4):
        inner, channels = factor * cardinality * width, factor * 256
        for _ in range(blocks):
            total += inputs * inner + inner * (inner // cardinality) * 9 + inner * channels + 4 * inner + 2 * channels
            total += inputs * channels + 2 * channels if inputs != channels else 0
            inputs = channels
    return total + inputs * classes + classes


def densenet_parameters(depth, growth, first, classes):
    """A layer: normalisation of all before it, 1x1 to 4 k, normalisation, 3x3 to k; transitions halve the channels."""
    total, channels = 3 * first * 9, first
    for stage in range(3):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + channels * 4 * growth + 8 * growth + 9 * 4 * growth * growth
            channels += growth
        if stage < 2:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + channels * classes + classes, channels


def shake_shake_parameters(width, classes, stem_bias):
    """Two branches of two convolutions and normalisations a block; one shortcut a stage, of two 1x1 convolutions."""
    total, inputs = 3 * 16 * 9 + 2 * 16 + 16 * stem_bias, 16
    for channels in (width, 2 * width, 4 * width):
        for _ in range(4):
            total += 2 * (9 * inputs * channels + 9 * channels * channels + 4 * channels)
            total += inputs * channels + 2 * channels if inputs != channels else 0
            inputs = channels
    return total + inputs * classes + classes


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("depth", "paper"), [(20, None), (32, "ResNet-32"), (110, "ResNet-110")])
@pytest.mark.parametrize("classes", [10, 100])
def test_resnet_counts(depth, paper, classes):
    network = ResNet(depth, num_classes=classes)
    assert count(network) == resnet_parameters(depth, classes)
    assert paper is None or round(count(network) / 1e6, 1) == PAPER[paper]
    assert network.feature_dim == 64


@pytest.mark.parametrize(("depth", "width", "paper"), [(16, 8, "Wide-ResNet-16-8"), (28, 10, "Wide-ResNet-28-10")])
@pytest.mark.parametrize("classes", [10, 100])
def test_wide_resnet_counts(depth, width, paper, classes):
    network = WideResNet(depth, width, num_classes=classes)
    assert count(network) == wide_resnet_parameters(depth, width, classes)
    assert count(network) / 1e6 == pytest.approx(PAPER[paper], abs=0.05)
    assert network.feature_dim == 64 * width


@pytest.mark.parametrize("classes", [10, 100])
def test_se_resnet_counts(classes):
    network = ResNet(110, classes, se_reduction=16)
    assert count(network) == resnet_parameters(110, classes) + gate_parameters(110, 16)
    assert round(count(network) / 1e6, 1) == PAPER["SE-ResNet-110"]


@pytest.mark.parametrize("classes", [10, 100])
def test_resnext_counts(classes):
    network = ResNeXt(29, 8, 64, classes)
    assert count(network) == resnext_parameters(29, 8, 64, classes)
    assert count(network) / 1e6 == pytest.approx(PAPER["ResNeXt-29, 8x64d"], abs=0.15), "the paper's with 10 classes"
    assert network.feature_dim == 1024


@pytest.mark.parametrize(("depth", "growth", "features"), [(100, 12, 342), (190, 40, 2190)])
@pytest.mark.parametrize("classes", [10, 100])
def test_densenet_counts(depth, growth, features, classes):
    network = DenseNet(depth, growth, classes)
    assert (count(network), network.feature_dim) == densenet_parameters(depth, growth, 2 * growth, classes)
    assert network.feature_dim == features
    paper = PAPER[f"DenseNet-BC-{depth}-{growth}"]
    assert count(DenseNet(depth, growth, 10)) / 1e6 == pytest.approx(paper, abs=0.05)


def test_the_authors_densenet_is_another_network():
    network = DenseNet(190, 40, 10, first_channels=24)
    assert (count(network), network.feature_dim) == densenet_parameters(190, 40, 24, 10)
    assert network.feature_dim == 2176


@pytest.mark.parametrize(("width", "millions"), [(32, 2.92), (112, 35.64)])
@pytest.mark.parametrize("stem_bias", [False, True])
def test_shake_shake_counts(width, millions, stem_bias):
    network = ShakeShake(width, 10, stem_bias=stem_bias)
    assert count(network) == shake_shake_parameters(width, 10, stem_bias)
    assert round(count(network) / 1e6, 2) == millions
    assert network.feature_dim == 4 * width


SMALL = {
    "resnet": lambda **options: ResNet(8, 5, **options),
    "se": lambda **options: ResNet(8, 5, se_reduction=16, **options),
    "wide": lambda **options: WideResNet(10, 1, 5, **options),
    "resnext": lambda **options: ResNeXt(11, 2, 8, 5, **options),
    "densenet": lambda **options: DenseNet(16, 4, 5, **options),
    "shake": lambda **options: ShakeShake(4, 5, **options),
}
WITH_DROPOUT = [kind for kind in SMALL if kind != "shake"]


def without_dropout(kind):
    """A small network, its own default set aside."""
    return SMALL[kind](**({"dropout": 0.0} if kind in WITH_DROPOUT else {}))


@pytest.mark.parametrize("kind", SMALL)
def test_logits_are_the_head_of_the_features(kind):
    network = SMALL[kind]().eval()
    features, logits = network(torch.randn(3, 3, 32, 32))
    assert features.shape == (3, network.feature_dim)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits, F.linear(features, network.head.weight, network.head.bias))
    assert (features >= 0).all(), "features are post-activation"


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_dropout_acts_in_training_only(kind):
    network = SMALL[kind](dropout=0.3)
    images = torch.randn(4, 3, 16, 16)
    network.train()
    assert not torch.equal(network(images).logits, network(images).logits)
    network.eval()
    assert torch.equal(network(images).logits, network(images).logits)


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_dropout_adds_no_parameter_and_no_draw_to_the_initialisation(kind):
    states = []
    for dropout in (0.0, 0.3):
        torch.manual_seed(0)
        states.append(SMALL[kind](dropout=dropout).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("kind", SMALL)
def test_one_step_changes_every_parameter(kind):
    torch.manual_seed(0)
    network = without_dropout(kind)
    before = [parameter.clone() for parameter in network.parameters()]
    F.cross_entropy(network(torch.randn(8, 3, 16, 16)).logits, torch.arange(8) % 5).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    changed = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("kind", SMALL)
def test_a_small_batch_can_be_learnt_by_heart(kind):
    torch.manual_seed(0)
    network = without_dropout(kind)
    images, targets = torch.randn(10, 3, 16, 16), torch.arange(10) % 5
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images).logits, targets)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize("kind", SMALL)
def test_channels_last_and_bf16_agree_with_fp32(kind):
    torch.manual_seed(0)
    network, images = SMALL[kind]().eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        plain = network(images).features
        in_channels_last = network.to(memory_format=torch.channels_last)(
            images.contiguous(memory_format=torch.channels_last)
        ).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(images)
    torch.testing.assert_close(in_channels_last, plain, rtol=1e-4, atol=1e-5)
    assert half.features.dtype == half.logits.dtype == torch.float32, "pooled features and head stay fp32"
    assert (half.features - plain).norm() / plain.norm() < 0.03


def test_float64_stays_float64():
    network = ResNet(8, 5).double()
    assert network(torch.randn(2, 3, 16, 16, dtype=torch.float64)).logits.dtype == torch.float64


def test_a_head_loses_its_bias_and_nothing_else():
    torch.manual_seed(0)
    network = ResNet(8, 5)
    torch.manual_seed(0)
    twin = ResNet(8, 5)
    twin.drop_head_bias()
    assert twin.head.bias is None
    expected = {name: one for name, one in network.state_dict().items() if name != "head.bias"}
    assert {name: torch.equal(one, expected[name]) for name, one in twin.state_dict().items()} == dict.fromkeys(
        expected, True
    )


@pytest.mark.parametrize(
    ("make", "depths"),
    [
        (lambda: ResNet(33, 10), r"6 n \+ 2"),
        (lambda: ResNet(2, 10), r"6 n \+ 2"),
        (lambda: WideResNet(27, 10, 10), r"6 n \+ 4"),
        (lambda: ResNeXt(28, 8, 64, 10), r"9 n \+ 2"),
        (lambda: DenseNet(101, 12, 10), r"6 n \+ 4"),
    ],
)
def test_an_impossible_depth_names_possible_ones(make, depths):
    with pytest.raises(ValueError, match=rf"has no depth \d+: it must be {depths}, for example"):
        make()


@pytest.mark.parametrize("kind", SMALL)
def test_the_whole_network_is_one_graph(kind):
    network = SMALL[kind](**({"dropout": 0.3} if kind in WITH_DROPOUT else {}))
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images).logits, network(images).logits)
