"""Objects that are built from a configuration."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from isda_repro.config import build, compose, request
from isda_repro.config.checks import ConfigError
from isda_repro.data import Source, Split
from isda_repro.losses import CrossEntropy, class_balanced_weights
from isda_repro.models import imagenet_densenet
from isda_repro.training import builders
from isda_repro.training import compute as compute_module
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import Processes


def assemble(*overrides):
    return assemble_model("model=resnet20", "model.depth=8", *overrides)


def assemble_model(*overrides):
    cfg = compose(["dataset=digits", "compute=cpu", *overrides])
    compute = resolve_compute(cfg.compute)
    source = build(cfg.dataset.source)
    network = builders.build_network(cfg, source, compute)
    return cfg, compute, source, network, builders.build_criterion(cfg, network, compute)


def test_the_optimizer_is_nesterov_sgd_with_decay_on_every_parameter():
    cfg, _, _, network, criterion = assemble("loss=isda", "recipe.weight_decay=0.003", "recipe.lr=0.7")
    (group,) = builders.build_optimizer(cfg, network, criterion).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    asked = {"lr": 0.7, "initial_lr": 0.7, "momentum": 0.9, "weight_decay": 0.003, "nesterov": True, "dampening": 0}
    assert {key: group[key] for key in asked} == asked


def test_centres_have_a_group_of_their_own_without_momentum_and_decay():
    cfg, _, _, network, criterion = assemble("loss=center", "recipe.weight_decay=0.003")
    _, group = builders.build_optimizer(cfg, network, criterion).param_groups
    assert [id(one) for one in group["params"]] == [id(criterion.centers)]
    asked = {"initial_lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    assert {key: group[key] for key in asked} == asked


def test_balanced_weights_are_those_of_the_training_images(monkeypatch):
    """The losses' own tests show what a weight does; here it is the one that is asked for."""
    given = []
    monkeypatch.setattr(builders, "build_loss", lambda cfg, **more: given.append(more) or CrossEntropy(10, 64))
    cfg, compute, source, network, _ = assemble("dataset.imbalance=10")
    cfg = OmegaConf.merge(cfg, {"loss": {"weight": "balanced"}})
    builders.build_criterion(cfg, network, compute, train_counts=source.train_counts)
    assert torch.equal(given[1]["weight"], class_balanced_weights(source.train_counts))
    assert "weight" not in given[0]
    for counts in (None, [5] * 9 + [0]):
        with pytest.raises(ConfigError, match=r"loss\.weight=balanced"):
            builders.build_criterion(cfg, network, compute, train_counts=counts)


def test_weight_of_another_loss_cannot_be_balanced():
    with pytest.raises(ConfigError, match="weight=balanced must be a number from 0 on"):
        assemble("loss=center", "loss.weight=balanced")


def test_weights_at_the_start_follow_the_seed_alone():
    """Neither the loss nor earlier random draws may change them."""
    *_, one, _ = assemble("loss=isda")
    torch.rand(3)
    *_, same, criterion = assemble("loss=center")
    *_, another, _ = assemble("seed=1")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, another.head.weight)
    assert torch.equal(criterion.centers, assemble("loss=center")[-1].centers)


@pytest.mark.parametrize("model", [("model=resnet20",), ("model=timm", "model.name=resnet18", "recipe=resnet")])
def test_a_loss_without_head_bias_gets_such_a_head_and_else_the_same_weights(model):
    *_, plain, _ = assemble_model(*model)
    *_, margin, criterion = assemble_model(*model, "loss=large_margin")
    assert margin.head.bias is None
    assert not criterion.uses_head_bias
    expected = {name: one for name, one in plain.state_dict().items() if name != "head.bias"}
    assert expected.keys() == margin.state_dict().keys()
    assert all(torch.equal(one, expected[name]) for name, one in margin.state_dict().items())


def test_training_images_are_shuffled_and_augmented_and_those_evaluated_are_not():
    cfg, compute, source, *_ = assemble("recipe.batch_size=1437")
    train, test = builders.build_loaders(cfg, source, compute)
    ((images, targets),) = train.epoch(1)
    plain_cfg = compose(["dataset=digits", "augmentation=none", "recipe.batch_size=1437"])
    ((same_order, same_targets),) = builders.build_loaders(plain_cfg, source, compute)[0].epoch(1)
    assert torch.equal(targets, same_targets)
    assert not torch.equal(targets, source.train.targets)
    shifted = (images != same_order).flatten(1).any(1).float().mean()
    assert shifted == pytest.approx(8 / 9, abs=0.05), "one of nine shifts is none"
    evaluated = torch.cat([labels for _, labels in test.epoch(0)])
    assert torch.equal(evaluated, source.test.targets)
    first = torch.cat([batch for batch, _ in test.epoch(0)])
    assert torch.equal(first, torch.cat([batch for batch, _ in test.epoch(5)]))


def test_network_for_images_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"model\.image_size=32.*digits.*8"):
        assemble_model("model=timm", "model.name=resnet18", "recipe=digits", "model.image_size=32")


def test_head_and_criterion_fit_the_network_and_the_data():
    _, _, source, network, criterion = assemble("loss=isda")
    assert network.head.out_features == criterion.num_classes == source.num_classes == 10
    assert criterion.feature_dim == network.feature_dim


@pytest.mark.parametrize(
    "options", [{}, {"channels_last": False}, {"deterministic": True, "micro_batch": 7}, {"compile": True}]
)
def test_auto_is_resolved_and_other_values_are_kept(options):
    compute = resolve_compute({**compose(["compute=cpu"]).compute, "precision": "fp32", **options})
    expected = {"channels_last": True, "compile": False, "deterministic": False, "micro_batch": None} | options
    expected |= {"tf32": False, "precision": "fp32", "sync_bn": False, "device": torch.device("cpu")}
    assert {name: getattr(compute, name) for name in expected} == expected
    assert compute.memory_format == (torch.channels_last if expected["channels_last"] else torch.contiguous_format)


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32")]
)
def test_precision_is_bf16_where_the_processor_multiplies_it(monkeypatch, flags, precision):
    monkeypatch.setattr(compute_module, "processor", lambda: ("a processor", frozenset(flags)))
    resolved = resolve_compute(compose(["compute=cpu"]).compute)
    assert (resolved.precision, resolved.hardware) == (precision, "a processor")
    with resolved.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("deterministic", [True, False])
def test_switches_of_pytorch_are_set(deterministic):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
    try:
        resolve_compute({**compose(["compute=cpu"]).compute, "deterministic": deterministic}).apply()
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (False, False, not deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, _ = before
        torch.use_deterministic_algorithms(before[3])


def test_normalisation_is_of_the_settings_or_of_the_training_images(monkeypatch):
    cfg, _, source, *_ = assemble()
    monkeypatch.setattr(builders, "stored_statistics", lambda split: ([1.0], [2.0]) if split is source.train else None)
    found = []
    for mean, std in (([0.5], [0.3]), ("auto", [0.3]), ([0.5], "auto"), ("auto", "auto")):
        cfg.dataset.mean, cfg.dataset.std = mean, std
        found.append(tuple(list(one) for one in builders.normalisation_constants(cfg, source)))
    assert found == [([0.5], [0.3]), ([1.0], [0.3]), ([0.5], [2.0]), ([1.0], [2.0])]


@pytest.mark.parametrize("model", ["resnet32", "shake_shake26_2x32d"])
def test_official_initialisation_is_the_authors_and_renames_no_other_run(model):
    """A random head bias, and convolutions of Shake-Shake by fan-in; nothing of it in a run with faithful=paper."""
    images = Split(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10)
    source = Source("cifar10", images, images, 10, tuple("abcdefghij"))
    cfgs = [compose([f"model={model}", f"faithful={which}", "compute=cpu"]) for which in ("paper", "official")]
    assert [request(cfg)["model"].get("official_init") for cfg in cfgs] == [None, True]
    ours, theirs = (builders.build_network(cfg, source, resolve_compute(cfg.compute)) for cfg in cfgs)
    assert not ours.head.bias.any()
    assert 0 < theirs.head.bias.abs().max() <= theirs.head.in_features**-0.5
    if model.startswith("shake"):
        wider = next(one for one in theirs.modules() if isinstance(one, nn.Conv2d) and one.weight.shape[:2] == (64, 32))
        assert wider.weight.std().item() == pytest.approx((2 / (32 * wider.kernel_size[0] ** 2)) ** 0.5, rel=0.1)


def test_official_initialisation_leaves_pretrained_weights_alone(monkeypatch):
    images = Split(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    source = Source("ten", images, images, 10, tuple("abcdefghij"))
    overrides = ["model=densenet121", "dataset=imagenet", "model.image_size=32", "faithful=official", "compute=cpu"]
    cfg = compose([*overrides, "model.pretrained=true"])
    assert cfg.model.official_init is True
    loaded = imagenet_densenet(121, 10, image_size=32)
    weight = loaded.backbone.features.conv0.weight.clone()
    monkeypatch.setattr(builders, "build_model", lambda cfg, classes: loaded)
    built = builders.build_network(cfg, source, resolve_compute(cfg.compute))
    assert torch.equal(built.backbone.features.conv0.weight, weight)


def test_training_images_are_mixed_and_evaluated_ones_are_not():
    cfg, compute, source, _, criterion = assemble("recipe.mixup=0.4", "loss=isda")
    train, test = builders.build_loaders(cfg, source, compute)
    (_, mixed), (_, labels) = next(iter(train.epoch(0))), next(iter(test.epoch(0)))
    assert mixed.shape == (64, 10)
    assert labels.dtype == torch.int64
    assert criterion.takes_probabilities


@pytest.mark.parametrize(("asked", "expected"), [("auto", [7, 3, 1]), (5, [5, 5, 5])])
def test_processes_of_a_host_share_its_cores_among_their_workers(monkeypatch, asked, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: 7)
    hosts = [Processes(world_size=16, local_world_size=count) for count in (1, 2, 8)]
    assert [builders._workers(asked, processes) for processes in hosts] == expected
