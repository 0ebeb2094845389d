"""The parts that a configuration asks for."""

from types import SimpleNamespace

import pytest
import torch

from isda_repro.checks import ConfigError
from isda_repro.config import build, compose
from isda_repro.training import parts
from isda_repro.training.compute import resolve
from isda_repro.training.schedule import MultiStep
from isda_repro.training.trainer import Trainer


def assemble(*overrides):
    return assemble_model("model=resnet20", "model.depth=8", *overrides)


def assemble_model(*overrides):
    cfg = compose(["dataset=digits", "compute=cpu", *overrides])
    compute = resolve(cfg.compute)
    source = build(cfg.dataset.source)
    network = parts.build_network(cfg, source, compute)
    return cfg, compute, source, network, parts.build_criterion(cfg, network, compute)


def test_the_optimizer_is_nesterov_sgd_with_decay_on_every_parameter():
    cfg, _, _, network, criterion = assemble("loss=isda", "recipe.weight_decay=0.003", "recipe.lr=0.7")
    (group,) = parts.build_optimizer(cfg, network, criterion).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    asked = {"lr": 0.7, "initial_lr": 0.7, "momentum": 0.9, "weight_decay": 0.003, "nesterov": True, "dampening": 0}
    assert {key: group[key] for key in asked} == asked


def test_the_centres_have_a_group_of_their_own_whose_rate_follows_the_schedule():
    cfg, _, _, network, criterion = assemble("loss=center", "recipe.weight_decay=0.003")
    optimizer = parts.build_optimizer(cfg, network, criterion)
    _, group = optimizer.param_groups
    assert [id(one) for one in group["params"]] == [id(criterion.centers)]
    asked = {"initial_lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    assert {key: group[key] for key in asked} == asked
    trainer = SimpleNamespace(optimizer=optimizer, schedule=MultiStep([4], 0.1), epochs=5)
    for epoch, rate in ((1, 0.5), (3, 0.5), (4, 0.05)):
        Trainer._set_rates(trainer, epoch)
        assert group["lr"] == pytest.approx(rate)


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
    train, test = parts.build_loaders(cfg, source, compute)
    ((images, targets),) = train.epoch(1)
    plain_cfg = compose(["dataset=digits", "augmentation=none", "recipe.batch_size=1437"])
    ((same_order, same_targets),) = parts.build_loaders(plain_cfg, source, compute)[0].epoch(1)
    assert torch.equal(targets, same_targets)
    assert not torch.equal(targets, source.train.targets)
    shifted = (images != same_order).flatten(1).any(1).float().mean()
    assert shifted == pytest.approx(8 / 9, abs=0.05), "one of nine shifts is none"
    evaluated = torch.cat([labels for _, labels in test.epoch(0)])
    assert torch.equal(evaluated, source.test.targets)
    first = torch.cat([batch for batch, _ in test.epoch(0)])
    assert torch.equal(first, torch.cat([batch for batch, _ in test.epoch(5)]))


def test_a_network_for_images_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.image_size=32, but the images of digits are 8 x 8 pixels: leave"):
        assemble_model("model=timm", "model.name=resnet18", "recipe=digits", "model.image_size=32")


def test_the_head_and_the_criterion_fit_the_network_and_the_data():
    _, _, source, network, criterion = assemble("loss=isda")
    assert network.head.out_features == criterion.num_classes == source.num_classes == 10
    assert criterion.feature_dim == network.feature_dim


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"channels_last": True, "compile": False, "tf32": False}),
        ({"channels_last": False}, {"channels_last": False}),
    ],
)
def test_auto_is_resolved(options, expected):
    cfg = compose(["compute=cpu"])
    compute = resolve({**cfg.compute, **options})
    assert compute.precision in ("fp32", "bf16")
    assert {name: getattr(compute, name) for name in expected} == expected
    assert resolve({**cfg.compute, "precision": "fp32"}).precision == "fp32"
