"""The CIFAR networks against the structure, parameter counts and behaviour in the literature."""

import pytest
import torch
import torch.nn.functional as F
import yaml

from isda_repro.config import CONF_DIR
from isda_repro.models import DenseNet, ResNet, ResNeXt, ShakeShake, WideResNet

PAPER = {
    row["network"]: row["params_m"]
    for row in yaml.safe_load((CONF_DIR.parent / "isda_repro/experiments/reported.yaml").read_text())["table2"]["rows"]
}


def resnet_parameters(depth, classes):
    """Return the count for option B: convolutions without bias, two normalisations in a block, projections."""
    blocks, total, width = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16, 16
    for channels in (16, 32, 64):
        for index in range(blocks):
            inputs = width if index == 0 else channels
            total += 9 * inputs * channels + 9 * channels * channels + 4 * channels
            total += inputs * channels + 2 * channels if inputs != channels else 0
        width = channels
    return total + 64 * classes + classes


def wide_resnet_parameters(depth, width, classes):
    """Return the count with pre-activation: the first normalisation has the input's width; bare 1x1 shortcuts."""
    blocks, total, inputs = (depth - 4) // 6, 3 * 16 * 9, 16
    for channels in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += 2 * inputs + 9 * inputs * channels + 2 * channels + 9 * channels * channels
            total += inputs * channels if inputs != channels else 0
            inputs = channels
    return total + 2 * inputs + inputs * classes + classes


def gate_parameters(depth, reduction):
    """Return the count of SE gates: two linear layers without bias in each block."""
    return (depth - 2) // 6 * sum(2 * channels * (channels // reduction) for channels in (16, 32, 64))


def resnext_parameters(depth, cardinality, width, classes):
    """Return the count for blocks of 1x1, grouped 3x3 and 1x1 convolutions, each normalised, and projections."""
    blocks, total, inputs = (depth - 2) // 9, 3 * 64 * 9 + 2 * 64, 64
    for factor in (1, 2, 4):
        inner, channels = factor * cardinality * width, factor * 256
        for _ in range(blocks):
            total += inputs * inner + inner * (inner // cardinality) * 9 + inner * channels + 4 * inner + 2 * channels
            total += inputs * channels + 2 * channels if inputs != channels else 0
            inputs = channels
    return total + inputs * classes + classes


def densenet_parameters(depth, growth, first, classes):
    """Return the count, and the number of features.

    A layer normalises all earlier maps, then has 1x1 to 4 k, a normalisation, and 3x3 to k; transitions halve the
    channels.
    """
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
    """Return the count for two branches in a block, and one shortcut of two 1x1 convolutions in a stage."""
    total, inputs = 3 * 16 * 9 + 2 * 16 + 16 * stem_bias, 16
    for channels in (width, 2 * width, 4 * width):
        for _ in range(4):
            total += 2 * (9 * inputs * channels + 9 * channels * channels + 4 * channels)
            total += inputs * channels + 2 * channels if inputs != channels else 0
            inputs = channels
    return total + inputs * classes + classes


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


COUNTS = [  # network, formula, features, and the paper's name or the literature's count in millions
    *((lambda c, d=d: ResNet(d, c), lambda c, d=d: resnet_parameters(d, c), 64, f"ResNet-{d}") for d in (32, 110)),
    (
        lambda c: ResNet(110, c, se_reduction=16),
        lambda c: resnet_parameters(110, c) + gate_parameters(110, 16),
        64,
        "SE-ResNet-110",
    ),
    *(
        (
            lambda c, d=d, w=w: WideResNet(d, w, c),
            lambda c, d=d, w=w: wide_resnet_parameters(d, w, c),
            64 * w,
            f"Wide-ResNet-{d}-{w}",
        )
        for d, w in ((16, 8), (28, 10))
    ),
    (lambda c: ResNeXt(29, 8, 64, c), lambda c: resnext_parameters(29, 8, 64, c), 1024, "ResNeXt-29, 8x64d"),
    *(
        (
            lambda c, d=d, k=k, f=f: DenseNet(d, k, c, first_channels=f),
            lambda c, d=d, k=k, f=f: densenet_parameters(d, k, f or 2 * k, c)[0],
            features,
            None if f else f"DenseNet-BC-{d}-{k}",
        )
        for d, k, f, features in ((100, 12, None, 342), (190, 40, None, 2190), (190, 40, 24, 2176))
    ),
    *(
        (
            lambda c, w=w, b=b: ShakeShake(w, c, stem_bias=b),
            lambda c, w=w, b=b: shake_shake_parameters(w, c, b),
            4 * w,
            millions,
        )
        for w, b, millions in ((32, False, 2.92), (112, True, 35.64))
    ),
]


@pytest.mark.parametrize(("make", "formula", "features", "published"), COUNTS)
def test_parameters_equal_the_formula_and_the_published_count(make, formula, features, published):
    with torch.device("meta"):
        networks = {classes: make(classes) for classes in (10, 100)}
    for classes, network in networks.items():
        assert count(network) == formula(classes)
        assert network.feature_dim == network.head.in_features == features
    if published is not None:
        millions = PAPER.get(published, published)
        assert count(networks[10]) / 1e6 == pytest.approx(millions, abs=0.055)


def test_a_gate_without_hidden_units_is_refused():
    with pytest.raises(ValueError, match=r"se_reduction=32 .* 16"):
        ResNet(8, 5, se_reduction=32)


SMALL = {
    "resnet": lambda **options: ResNet(8, 5, **options),
    "se": lambda **options: ResNet(8, 5, se_reduction=16, **options),
    "wide": lambda **options: WideResNet(10, 1, 5, **options),
    "resnext": lambda **options: ResNeXt(11, 2, 8, 5, **options),
    "densenet": lambda **options: DenseNet(16, 4, 5, **options),
    "shake": lambda **options: ShakeShake(4, 5, **options),
}
WIDE = {  # convolutions large enough for an estimate of their variance
    "resnet": lambda: ResNet(8, 5),
    "se": lambda: ResNet(8, 5, se_reduction=16),
    "wide": lambda: WideResNet(10, 2, 5),
    "resnext": lambda: ResNeXt(11, 2, 32, 5),
    "densenet": lambda: DenseNet(16, 12, 5),
    "shake": lambda: ShakeShake(16, 5),
}
WITH_DROPOUT = [kind for kind in SMALL if kind != "shake"]


@pytest.mark.parametrize("kind", SMALL)
def test_logits_equal_the_head_of_the_features(kind):
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
def test_dropout_acts_between_an_activation_and_a_convolution_or_after_a_dense_layers_last(kind):
    order, network = [], SMALL[kind](dropout=0.3)
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: order.append(type(module).__name__))
    network(torch.randn(2, 3, 16, 16))
    around = {(order[i - 1], order[i + 1]) for i, name in enumerate(order) if name == "Dropout"}
    assert around == {("Conv2d", "BatchNorm2d")} if kind == "densenet" else around == {("ReLU", "Conv2d")}


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_dropout_adds_no_parameter_and_no_draw_to_the_initialisation(kind):
    states = []
    for dropout in (0.0, 0.3):
        torch.manual_seed(0)
        states.append(SMALL[kind](dropout=dropout).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("kind", SMALL)
def test_initial_weights_have_the_authors_variances(kind):
    """Convolutions have variance 2 / (k k out), normalisations are the identity, the head's bias is 0."""
    torch.manual_seed(0)
    network = WIDE[kind]()
    convolutions = 0
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 1000:
            convolutions += 1
            expected = (2 / (module.weight[0, 0].numel() * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert convolutions > 3
    assert (network.head.bias == 0).all()


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


def test_head_loses_its_bias_and_nothing_else():
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
    ("make", "depth"),
    [
        (lambda: ResNet(33, 10), 33),
        (lambda: ResNet(2, 10), 2),
        (lambda: WideResNet(27, 10, 10), 27),
        (lambda: ResNeXt(28, 8, 64, 10), 28),
        (lambda: DenseNet(101, 12, 10), 101),
    ],
)
def test_impossible_depth_is_named(make, depth):
    with pytest.raises(ValueError, match=f" {depth}:"):
        make()


def test_wide_resnets_dropout_is_the_papers_where_it_is_left_out():
    network = WideResNet(10, 1, 5)
    assert {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert not any(isinstance(module, torch.nn.Dropout) for module in ResNet(8, 5).modules())
