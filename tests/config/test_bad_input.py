"""Errors of wrong settings: one line that names the key, and what a user needs to correct it."""

import pytest
import yaml
from omegaconf import OmegaConf

from isda_repro.config import build, build_loss, build_model, compose, compose_generator
from isda_repro.config.checks import ConfigError, check, check_tracking
from isda_repro.errors import UserError


def assert_names(error, named):
    message = str(error.value)
    assert "\n" not in message
    for token in named.split():
        assert token in message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("recipee=3", "recipee recipe"),
        ("recipe.epoch=3", "recipe.epoch recipe.epochs"),
        ("qqqqqq=3", "qqqqqq"),
        ("+recipee=3", "recipee"),
        ("++recipe.warmup=3", "recipe.warmup"),
        ("~seed", "~seed"),
        ("choice.dataset=digits", "choice.dataset"),
        ("choice=a", "choice=a choice.<setting>"),
        ("checkpoint=a", "checkpoint"),
        ("model={a:1}", "model.a"),
        ("loss=[ce,isda]", "loss="),
        ("augmentation=[1]", "augmentation="),
        ("recipe=[]", "recipe="),
        ("recipe.lr==", "recipe.lr=="),
        ("model=null", "model= dataset="),
        ("model=wrn", "model=wrn wrn28_10 densenet121"),
        ("loss=foo", "loss=foo ce isda"),
        ("synthetic=gan", "synthetic=gan acgan"),
        ("dataset=_streamed", "dataset=_streamed"),
        ("model.se_reduction=0", "model.se_reduction model="),
        ("model.depth=null", "model.depth"),
        ("recipe.epochs=ten", "recipe.epochs=ten"),
        ("model=timm recipe=resnet", "model.name="),
        ("model=timm model.name=resnet18", "recipe"),
    ],
)
def test_composing_a_wrong_override_is_an_error_that_names_it(override, named):
    with pytest.raises(ConfigError) as error:
        compose(override.split())
    assert_names(error, named)


WHOLE = "[0, -3, 1.5, true, ten, null]"
FOLDER, WGAN = "dataset=folder data_dir=pets", "model=resnet110 synthetic=wgan"
WRONG_VALUES = [  # overrides, a key, and a YAML list of values that it must refuse
    ("", "seed", "[-1, 1.5, a, true, null]"),
    ("", "recipe.epochs", WHOLE),
    ("", "recipe.batch_size", WHOLE),
    ("", "recipe.passes", "[0, -1, 1.5, true]"),
    ("", "recipe.mixup", "[0, -0.2, .nan, .inf, true, [0.2], a]"),
    *((loss, "loss.weight", "[1, a, [], [1, a], [1, 0], [1, -1], [1, .nan], true]") for loss in ("", "loss=isda")),
    *((loss, "loss.label_smoothing", "[-0.1, 1.1, .nan, true, a]") for loss in ("", "loss=isda")),
    ("loss=isda_diagonal", "loss.prior", "[-1, .nan, true, a]"),
    ("loss=isda", "loss.reduction", "[none, sum, null]"),
    ("", "recipe.lr", "[0, -0.1, .nan, .inf, true, a]"),
    ("", "recipe.weight_decay", "[-1, .nan, true, a]"),
    ("", "recipe.momentum", "[1, -0.1, true, a]"),
    ("", "recipe.nesterov", "['no', 1, null]"),
    ("", "recipe.schedule", "[foo]"),
    ("", "recipe.schedule.gamma", "[-1, 0, 1.5, foo]"),
    ("", "recipe.schedule.milestones", "[5, null, foo, [0], [1.5], [241], [120, 80]]"),
    ("recipe=long_tail", "recipe.schedule.warmup_epochs", "[0, -1, 1.5, true, foo]"),
    ("recipe=small_data", "recipe.schedule.ends_at_zero", "['no', 1]"),
    ("", "model.depth", WHOLE),
    ("", "model.width", WHOLE),
    ("model=se_resnet110", "model.se_reduction", "[0, 1.5]"),
    ("model=densenet_bc100_12", "model.growth", WHOLE),
    ("model=densenet_bc100_12", "model.first_channels", "[0, 1.5]"),
    ("model=resnext29_8x64d", "model.cardinality", WHOLE),
    ("model=resnext29_8x64d", "model.base_width", WHOLE),
    ("model=resnet50", "model.image_size", WHOLE),
    ("model=shake_shake26_2x32d", "model.stem_bias", "[0, 'no', null]"),
    ("", "model.official_init", "[0, 'no']"),
    ("model=resnet50", "model.pretrained", "[1, 'yes', null]"),
    ("model=densenet265", "model.checkpointed", "[1, 'yes', null]"),
    ("", "model.dropout", "[1, 1.5, -0.1, true, a]"),
    ("", "model.weights", "['', 3, [a]]"),
    *(("", f"loss.{key}", "[7]") for key in ("num_classes", "feature_dim", "process_group", "ignore_index")),
    *(("", f"model.{key}", "[a]") for key in ("checkpoint_path", "num_classes", "features_only", "drop_rate")),
    *(("", f"model.{key}", "[a]") for key in ("pretrained_cfg", "pretrained_cfg_overlay")),
    ("", "dataset.source", "[foo]"),
    ("", "dataset.train_limit", "[0, -3, 1.5, true]"),
    ("", "dataset.test_limit", "[0, -3, 1.5, true]"),
    ("", "dataset.holdout", "[0, -3, 1.5, true]"),
    ("", "dataset.imbalance", "[0, 1, 0.5, -3, true, foo, .nan, .inf]"),
    ("", "dataset.mean", "[foo, auto, 0.5, [0.5, 0.5, x], [.nan]]"),
    ("", "dataset.std", "[foo, auto, 0.5, [0.5, 0, 0.5], [-1]]"),
    (FOLDER, "dataset.mean", "[foo, [0.5, 0.5, x]]"),
    (FOLDER, "dataset.workers", "[x, -1, true, false]"),
    (FOLDER, "dataset.unreadable", "[ignore]"),
    (FOLDER, "dataset.image_size", "[0, 224.5]"),
    (FOLDER, "dataset.train_crop", "[null, 224]"),
    (FOLDER, "dataset.test_crop", "[null]"),
    (FOLDER, "dataset.name", "['', a/b, 'a\\b', 3]"),
    ("", "compute.device", "[cuda]"),
    ("", "compute.precision", "[fp16]"),
    *(
        ("", f"compute.{key}", "[1, 'yes']")
        for key in ("tf32", "channels_last", "compile", "cuda_graph", "deterministic")
    ),
    ("", "compute.sync_bn", "[false, 1]"),
    ("", "compute.micro_batch", "[0, 1.5, true]"),
    ("", "compute.timeout_minutes", "[0, -1, a]"),
    ("", "checkpoint", "[null]"),
    ("", "checkpoint.minutes", "[0, -1, a]"),
    ("", "checkpoint.steps", "[0, 1.5]"),
    ("", "force", "[3, 'yes']"),
    ("", "runs_dir", "['', 3]"),
    ("", "data_dir", "['', 3]"),
    ("", "tracking.mode", "[live]"),
    ("loss=isda", "loss.sync", "[true, 0]"),
    ("", "faithful.progress", "[step]"),
    ("", "faithful.crop_padding", "[mirror]"),
    ("", "faithful.channel_statistics", "[imagenet]"),
    ("", "faithful.cosine_ends_at_zero", "['no', 1]"),
    ("", "augmentation.flip", "[maybe, 1]"),
    ("", "synthetic.fraction", "[0.5]"),
    ("", "synthetic.generator", "[acgan-cifar10-s0]"),
    ("", "synthetic.seed", "[0]"),
    ("", "synthetic.settings", "[{}]"),
    (WGAN, "synthetic.kind", "[gan]"),
    (WGAN, "synthetic.fraction", "[null, 0, 1, true, a]"),
    (WGAN, "synthetic.covers_all", "[false, 1]"),
    (WGAN, "synthetic.settings", "[gan, {recipe.epochs: 1}]"),
    (WGAN, "synthetic.seed", "[-1, true, null]"),
    (WGAN, "synthetic.source", "[null]"),
]


@pytest.mark.parametrize(("base", "key", "values"), WRONG_VALUES, ids=lambda value: value[:40])
def test_a_wrong_value_is_an_error_that_names_its_key(settings, base, key, values):
    for value in yaml.safe_load(values):
        with pytest.raises(ConfigError) as error:
            check(settings(base, **{key: value}))
        assert_names(error, key)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (
            "project",
            ["team/proj", "/", "a/b/c", "a#b", "50%", "a:b", "a\\b", "", " ", "a\nb", "\udc80", 129 * "a", 3, ["a"]],
        ),
        ("entity", ["us/p", "a?", "", "a\tb", 129 * "a", 1]),
        ("group", [129 * "a", "a\0", 7, ["a"]]),
        ("table_metric", ["", 3]),
        ("tags", ["one", [3], [""], [65 * "a"], ["a\nb"], None]),
        ("tables", ["one", [3], [""], ["\ud800"]]),
    ],
)
def test_names_that_wandb_does_not_take_are_refused(key, values):
    for value in values:
        with pytest.raises(ConfigError) as error:
            check_tracking({key: value})
        assert_names(error, f"tracking.{key}")


def test_names_that_wandb_takes():
    check_tracking({})
    check_tracking({"project": "Ünï-1_. ()'é", "entity": "us-1", "group": "a/b: c#%", "tags": [64 * "я"], "tables": []})
    check_tracking({"project": 128 * "a", "entity": None, "group": None, "table_metric": None})


@pytest.mark.parametrize("compose_it", [compose, compose_generator])
def test_they_are_refused_when_a_run_is_composed(compose_it):
    with pytest.raises(ConfigError, match=r"tracking\.entity=team tracking\.project=proj"):
        compose_it(["dataset=digits", "tracking.project=team/proj"])


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        ("", {"recipe.lr": 1, "recipe.weight_decay": 0, "recipe.passes": 1, "recipe.schedule.gamma": 1}),
        ("", {"recipe.momentum": 0, "recipe.nesterov": False}),
        ("", {"recipe.schedule.milestones": [1, 240], "recipe.epochs": 240, "model.dropout": 0, "seed": 0}),
        ("", {"recipe.schedule.milestones": [], "recipe.epochs": 1, "recipe.batch_size": 1}),
        ("", {"dataset.train_limit": 1, "dataset.holdout": 1, "dataset.mean": [0, -1, 2], "tracking.tags": [64 * "a"]}),
        ("", {"checkpoint.minutes": None, "checkpoint.steps": 1, "compute.micro_batch": 1, "compute.sync_bn": True}),
        ("", {"recipe.mixup": 1, "loss.weight": [1, 0.5, 2], "loss.label_smoothing": 1}),
        ("loss=isda", {"loss.weight": [1], "loss.label_smoothing": 0.1, "loss.prior": 10}),
        (FOLDER, {"dataset.workers": 0, "dataset.unreadable": "skip", "dataset.mean": "auto", "dataset.std": "auto"}),
        (WGAN, {"synthetic.fraction": 0.001, "synthetic.covers_all": True, "synthetic.settings": {"gan.epochs": 1}}),
    ],
)
def test_values_at_the_limits_are_allowed(settings, base, changed):
    check(settings(base, **changed))


def test_a_loss_that_does_not_take_an_option_names_it():
    for option in ("label_smoothing=0.1", "prior=10", "weight=[1,2]"):
        with pytest.raises(ConfigError) as error:
            compose(["dataset=digits", "loss=focal", f"loss.{option}"])
        assert_names(error, f"loss.{option.partition('=')[0]}")


def test_mixup_is_for_real_images(settings):
    with pytest.raises(ConfigError) as error:
        check(settings(WGAN, **{"recipe.mixup": 0.2}))
    assert_names(error, "recipe.mixup synthetic=wgan")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"recipe.momentum": 0}, "recipe.nesterov recipe.momentum"),
        ({"model.weights": "a.pth", "model.pretrained": True}, "model.weights model.pretrained"),
    ],
)
def test_two_settings_that_exclude_each_other_are_both_named(settings, changed, named):
    with pytest.raises(ConfigError) as error:
        check(settings("", **changed))
    assert_names(error, named)


@pytest.mark.parametrize(
    ("loss", "key", "value"),
    [("lq", "truncation", 2), ("focal", "alpha", [1]), ("isda", "foo", 1), ("isda_constant", "lambda_schedule", None)],
)
def test_a_setting_that_a_loss_refuses_is_an_error_that_names_it(composed, loss, key, value):
    """The losses' own checks are in tests/losses/test_criterion_bad_input.py; here their errors must name the key."""
    cfg = composed(f"loss={loss}")
    OmegaConf.update(cfg, f"loss.{key}", value, force_add=True)
    with pytest.raises(ConfigError) as error:
        build_loss(cfg, num_classes=3, feature_dim=2)
    assert_names(error, key)


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", [0, 1]), ("scale", 1), ("ratio", [2, 1]), ("kind", "corner"), ("size", 0), ("flip", "maybe")],
)
def test_a_setting_that_a_crop_refuses_is_an_error_that_names_it(composed, key, value):
    crop = composed(FOLDER).dataset.train_crop
    crop[key] = value
    with pytest.raises(UserError) as error:
        build(crop)
    assert_names(error, "corner" if key == "kind" else key)


@pytest.mark.parametrize(
    ("model", "key", "value", "named"),
    [
        ("resnet32", "depth", 33, "depth 33"),
        ("shake_shake26_2x32d", "shift", "foo", "isda_repro.models.ShakeShake width=32 shift=foo stem_bias=False"),
    ],
)
def test_a_setting_that_a_network_refuses_is_an_error_that_names_it(composed, model, key, value, named):
    cfg = composed(f"model={model}")
    cfg.model[key] = value
    with pytest.raises(ConfigError) as error:
        build_model(cfg, 10)
    assert_names(error, named)
