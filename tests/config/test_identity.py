"""Run ids: which settings change them and which do not; and the frozen file that carries the id."""

import hashlib
import json
from pathlib import Path

import pytest

from isda_repro import config
from isda_repro.config import (
    compose,
    compose_generator,
    compose_run,
    generator_overrides,
    read_frozen,
    read_frozen_run,
    request,
    run_id,
    run_names,
    write_frozen,
)
from isda_repro.config.checks import ConfigError, check

BASE = "model=resnet20 dataset=digits loss=isda"


def test_runs_that_differ_in_their_seed_are_named_together_as_each_is_alone(settings):
    plain = settings(BASE)
    body = {"numerics_version": config.NUMERICS_VERSION, **request({**plain, "seed": 12})}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    name = run_names(request(plain), plain["choice"])
    assert name(12) == f"resnet20-digits-baseline-isda-s12-{digest[:10]}"
    assert [name(seed) for seed in (0, 7, 10**9)] == [run_id({**plain, "seed": seed}) for seed in (0, 7, 10**9)]
    assert name(12) == compose([*BASE.split(), "seed=12"]).run_id


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("loss.lambda_0", 0.25),
        ("recipe.lr", 0.1),
        ("dataset.train_limit", 100),
        ("dataset.holdout", 100),
        ("dataset.imbalance", 100),
        ("compute.precision", "fp32"),
        ("compute.micro_batch", 16),
        ("faithful.progress", "epoch"),
        ("model.dropout", 0.1),
        ("model.weights_sha256", "0f"),
        ("recipe.new_option", 1),
        ("recipe.new_option", False),
    ],
)
def test_a_setting_that_can_change_the_result_changes_the_name(settings, key, value):
    assert run_id(settings(BASE, **{key: value})).rpartition("-")[2] != run_id(settings(BASE)).rpartition("-")[2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, "elsewhere") for key in ("runs_dir", "data_dir", "dataset.source.data_dir", "dataset.source.root")),
        ("compute.device", "cpu"),
        ("compute.timeout_minutes", 1),
        ("dataset.workers", 3),
        ("checkpoint.steps", 3),
        ("force", True),
        ("model.weights", "elsewhere.pth"),
        *((f"tracking.{key}", "mine") for key in ("mode", "project", "group")),
        ("recipe.new_option", None),
        ("new_group", {"new_option": None}),
        ("recipe.epochs", 30.0),
        ("dataset.imbalance", None),
        ("recipe.schedule.warmup_epochs", None),
    ],
)
def test_a_setting_that_cannot_change_the_result_keeps_the_name(settings, key, value):
    assert run_id(settings(BASE, **{key: value})) == run_id(settings(BASE))


def test_choices_change_the_name_and_values_written_out_do_not():
    base = compose(BASE.split()).run_id
    for change in ("augmentation=none", "recipe.epochs=31", "loss=isda_constant"):
        assert compose([*BASE.split(), change]).run_id.rpartition("-")[2] != base.rpartition("-")[2]
    same = ["recipe.epochs=30", "loss.lambda_0=0.5", "tracking=none", "compute=cpu", "runs_dir=a", "data_dir=b"]
    assert compose([*BASE.split(), *same]).run_id == base


@pytest.mark.parametrize(
    ("overrides", "begin"),
    [
        ("model=resnet20 dataset=digits loss=isda seed=3", "resnet20-digits-baseline-isda-s3-"),
        ("model=resnet50 dataset=imagenet augmentation=autoaugment", "resnet50-imagenet-autoaugment-ce-s0-"),
        (
            "model=timm model.name=vit_tiny_patch16_224.augreg_in21k recipe=resnet",
            "timm_vit_tiny_patch16_224.augreg_in21k-cifar10-baseline-ce-s0-",
        ),
        (f"{BASE} synthetic=acgan", "resnet20-digits-baseline-isda-acgan-s0-"),
    ],
)
def test_the_name_has_the_choices_and_the_seed(composed, overrides, begin):
    name = composed(overrides).run_id
    assert name.startswith(begin)
    assert len(name) == len(begin) + 10


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("model=resnet20 dataset=digits loss=ce", "resnet20-digits-baseline-ce-s0-0d21dcd146"),
        ("model=wrn28_10 dataset=cifar100 loss=ce", "wrn28_10-cifar100-baseline-ce-s0-130a651779"),
        (
            "model=resnet8 recipe=small_data dataset=cifar10 dataset.train_limit=1000 loss=isda loss.lambda_0=0.5",
            "resnet8-cifar10-baseline-isda-s0-d37087aca2",
        ),
        (
            "model=resnet32 dataset=cifar100 dataset.imbalance=100 recipe=long_tail loss=ce",
            "resnet32-cifar100-baseline-ce-s0-6d3a3415fa",
        ),
        (
            "model=resnet32 dataset=cifar100 dataset.imbalance=100 recipe=long_tail loss=isda",
            "resnet32-cifar100-baseline-isda-s0-fcfa372237",
        ),
    ],
)
def test_runs_keep_the_names_that_finished_ones_have(composed, settings, overrides, name):
    """Ids of numerics version 2 from before ``synthetic=`` existed; another version gives other ids."""
    assert composed(overrides).run_id == name
    assert "synthetic" not in request(composed(overrides))
    older = settings(overrides)
    del older["synthetic"]
    assert run_id(older) == name


@pytest.mark.parametrize("option", ["recipe.mixup", "loss.label_smoothing", "loss.prior", "loss.weight"])
def test_an_option_that_is_off_is_in_no_request_and_zero_turns_it_off(composed, settings, option):
    base = composed(BASE)
    group, key = option.split(".")
    assert base[group][key] is None
    assert key not in request(base)[group]
    older = settings(BASE)
    del older[group][key]
    assert run_id(older) == base.run_id
    used = composed(f"{BASE} {option}={'[1,2]' if key == 'weight' else 0.5}")
    assert used.run_id != base.run_id
    assert key in request(used)[group]
    if key != "weight":
        assert composed(f"{BASE} {option}=0").run_id == composed(f"{BASE} {option}=0.0").run_id == base.run_id


def test_a_file_that_was_frozen_before_an_option_existed_is_checked_and_names_its_generator(settings):
    older = settings("dataset=digits synthetic=acgan loss=isda")
    named = generator_overrides(older)
    del older["dataset"]["imbalance"], older["dataset"]["source"]["imbalance"], older["recipe"]["mixup"]
    for key in ("weight", "label_smoothing", "prior"):
        del older["loss"][key]
    check(older)
    assert generator_overrides(older) == named


def test_a_generator_is_in_the_name_and_in_the_request(composed):
    with_images = composed(f"{BASE} synthetic=acgan")
    asked = request(with_images)["synthetic"]
    assert (asked["kind"], asked["fraction"]) == ("acgan", 0.16666667)
    assert asked["generator"] == compose_generator(["gan=acgan", "dataset=digits"]).run_id
    fewer = composed(f"{BASE} synthetic=acgan synthetic.seed=2 dataset.holdout=100 synthetic.settings={{gan.epochs:3}}")
    own = ["gan=acgan", "dataset=digits", "seed=2", "dataset.holdout=100", "gan.epochs=3"]
    assert fewer.synthetic.generator == compose_generator(own).run_id
    assert composed(f"{BASE} synthetic=acgan synthetic.fraction=0.25").run_id != with_images.run_id
    null = composed(f"{BASE} synthetic=wgan synthetic.settings={{gan.game.one_for_all:null}}")
    assert null.synthetic.generator == composed(f"{BASE} synthetic=wgan").synthetic.generator


def test_the_numerics_version_changes_every_name(settings, monkeypatch):
    before = run_id(settings(BASE))
    monkeypatch.setattr(config.naming, "NUMERICS_VERSION", config.NUMERICS_VERSION + 1)
    assert run_id(settings(BASE)) != before


def test_the_request_has_no_path_and_no_number_as_a_float_that_is_whole(settings):
    asked = request(settings("", data_dir="/somewhere", runs_dir="/somewhere", **{"loss.x": [1.0, 0.5], "loss.y": 2.0}))
    assert "somewhere" not in str(asked)
    assert "choice" not in asked
    assert (str(asked["loss"]["x"]), str(asked["loss"]["y"])) == ("[1, 0.5]", "2")


# --------------------------------------------------------------------------------------------------------- frozen files


def test_a_frozen_file_is_read_as_it_was_written_whichever_kind_it_is(composed, tmp_path):
    classifier, generator = composed(BASE), compose_run(["gan=cgan", "dataset=digits"])
    assert "gan" in generator
    assert "gan" not in compose_run(["model=resnet20"])
    for number, cfg in enumerate((classifier, generator)):
        path = tmp_path / f"{number}.yaml"
        write_frozen(cfg, path)
        assert read_frozen_run(path) == cfg
    with pytest.raises(ConfigError, match=r"1\.yaml"):
        read_frozen(tmp_path / "1.yaml")


def test_a_frozen_run_is_where_its_file_is(composed, tmp_path, monkeypatch):
    cfg = composed(BASE)
    for name, runs_dir in ((cfg.run_id, str(tmp_path.resolve())), ("other", "runs")):
        (tmp_path / name).mkdir()
        write_frozen(cfg, tmp_path / name / "config.yaml")
        (tmp_path / f"link to {name}").symlink_to(tmp_path / name)
        assert read_frozen(tmp_path / name / "config.yaml").runs_dir == runs_dir
        assert read_frozen(tmp_path / f"link to {name}" / "config.yaml").runs_dir == runs_dir
        monkeypatch.chdir(tmp_path / name)
        assert read_frozen(Path("config.yaml")).runs_dir == runs_dir


def test_a_frozen_file_older_than_a_setting_without_influence_is_read(composed, tmp_path):
    cfg = composed(BASE)
    older = cfg.copy()
    for key in ("checkpoint", "force"):
        older.pop(key)
    write_frozen(older, tmp_path / "config.yaml")
    assert read_frozen(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("a: [1", ""),
        ("a: 1", "run_id"),
        ("[1]", "run_id"),
        ("run_id: x\nnumerics_version: 0", "version 0"),
        (None, ""),
        (lambda cfg: cfg.recipe.update(epochs=29), "resnet20-digits-baseline-isda-s0-"),
        (lambda cfg: cfg.recipe.update(batch_size=0), "recipe.batch_size=0"),
        (lambda cfg: cfg.pop("recipe"), "recipe"),
        (lambda cfg: cfg.update(recipe=3), ""),
    ],
)
def test_a_file_that_is_no_whole_frozen_run_is_refused_by_its_name(composed, tmp_path, damage, named):
    path = tmp_path / "config.yaml"
    if callable(damage):
        cfg = composed(BASE)
        damage(cfg)
        write_frozen(cfg, path)
    elif damage is not None:
        path.write_text(damage)
    with pytest.raises(ConfigError) as error:
        read_frozen(path)
    assert "\n" not in str(error.value)
    assert named in str(error.value)
    assert str(path) in str(error.value) or named == "recipe.batch_size=0"
