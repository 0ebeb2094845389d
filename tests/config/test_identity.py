"""A run's name: what changes it, and what does not."""

import hashlib
import json

import pytest
from omegaconf import OmegaConf

from isda_repro import config
from isda_repro.checks import ConfigError
from isda_repro.config import compose, read_frozen, request, run_id, run_names, write_frozen

BASE = ["model=resnet20", "dataset=digits", "loss=isda"]


def test_the_name_says_the_choices_and_the_seed():
    assert compose([*BASE, "seed=3"]).run_id.startswith("resnet20-digits-baseline-isda-s3-")


def test_runs_that_differ_in_their_seed_are_named_together_as_each_is_alone():
    plain = OmegaConf.to_container(compose(BASE))
    body = {"numerics_version": config.NUMERICS_VERSION, **request({**plain, "seed": 12})}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    name = run_names(request(plain), plain["choice"])
    assert name(12) == f"resnet20-digits-baseline-isda-s12-{digest[:10]}"
    assert [name(seed) for seed in (0, 7, 10**9)] == [run_id({**plain, "seed": seed}) for seed in (0, 7, 10**9)]
    assert name(12) == compose([*BASE, "seed=12"]).run_id


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "loss.lambda_0=0.25",
        "recipe.epochs=31",
        "recipe.lr=0.1",
        "dataset.train_limit=100",
        "loss=ce",
        "augmentation=none",
        "compute.precision=fp32",
        "compute.micro_batch=16",
        "faithful.progress=epoch",
        "model.dropout=0.1",
        "dataset.holdout=100",
    ],
)
def test_what_can_change_the_result_changes_the_name(change):
    assert compose([*BASE, change]).run_id.rpartition("-")[2] != compose(BASE).run_id.rpartition("-")[2]


@pytest.mark.parametrize(
    "change", ["runs_dir=elsewhere", "data_dir=elsewhere", "tracking=none", "compute=cpu", "tracking.project=mine"]
)
def test_what_cannot_change_the_result_does_not(change):
    assert compose([*BASE, change]).run_id == compose(BASE).run_id
    assert compose(["dataset=cifar10", change]).run_id == compose(["dataset=cifar10"]).run_id


def test_equal_numbers_and_explicit_defaults_give_one_name():
    assert compose([*BASE, "loss.lambda_0=1"]).run_id == compose([*BASE, "loss.lambda_0=1.0"]).run_id
    assert compose([*BASE, "recipe.epochs=30"]).run_id == compose(BASE).run_id


def test_a_timm_model_is_named():
    cfg = compose(["model=timm", "model.name=vit_tiny_patch16_224.augreg_in21k", "recipe=resnet"])
    assert cfg.run_id.startswith("timm_vit_tiny_patch16_224.augreg_in21k-cifar10-baseline-ce-s0-")


def test_a_new_option_that_is_null_keeps_old_names():
    plain = OmegaConf.to_container(compose(BASE))
    assert run_id({**plain, "recipe": {**plain["recipe"], "new_option": None}}) == plain["run_id"]
    assert run_id({**plain, "recipe": {**plain["recipe"], "new_option": 1}}) != plain["run_id"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("model=resnet20 dataset=digits loss=ce", "resnet20-digits-baseline-ce-s0-0d21dcd146"),
        ("model=wrn28_10 dataset=cifar100 loss=ce", "wrn28_10-cifar100-baseline-ce-s0-130a651779"),
        (
            "model=resnet8 recipe=small_data dataset=cifar10 dataset.train_limit=1000 loss=isda loss.lambda_0=0.5",
            "resnet8-cifar10-baseline-isda-s0-d37087aca2",
        ),
    ],
)
def test_runs_keep_the_names_that_finished_ones_have(settings, name):
    """As of numerics version 2, before there was ``synthetic=``; other numerics give others."""
    cfg = compose(settings.split())
    assert cfg.run_id == name
    assert "synthetic" not in request(cfg)
    older = OmegaConf.to_container(cfg)
    del older["synthetic"]
    assert run_id(older) == name


def test_a_generator_is_in_the_name_and_the_request():
    cfg = compose([*BASE, "synthetic=acgan"])
    assert cfg.run_id.startswith("resnet20-digits-baseline-isda-acgan-s0-")
    asked = request(cfg)["synthetic"]
    assert (asked["kind"], asked["fraction"]) == ("acgan", 0.16666667)
    assert asked["generator"] == config.compose_generator(["gan=acgan", "dataset=digits"]).run_id
    assert compose([*BASE, "synthetic=acgan", "synthetic.fraction=0.25"]).run_id != cfg.run_id


def test_numerics_version_changes_every_name(monkeypatch):
    before = compose(BASE).run_id
    monkeypatch.setattr(config.naming, "NUMERICS_VERSION", config.NUMERICS_VERSION + 1)
    assert compose(BASE).run_id != before


def test_the_request_holds_no_path():
    asked = request(compose(["data_dir=/somewhere/private", "runs_dir=/somewhere/else"]))
    assert "somewhere" not in str(asked)


def test_a_frozen_file_round_trips(tmp_path):
    cfg = compose(BASE)
    write_frozen(cfg, tmp_path / "config.yaml")
    assert read_frozen(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "is not YAML"),
        ("a: 1", "is not a frozen run"),
        ("run_id: x\nnumerics_version: 0", "frozen under numerics version 0"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, text, reason):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_frozen(tmp_path / "config.yaml")


def test_an_edited_frozen_file_is_refused(tmp_path):
    cfg = compose(BASE)
    cfg.recipe.epochs = 29
    write_frozen(cfg, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="was edited after it was frozen"):
        read_frozen(tmp_path / "config.yaml")


def test_a_frozen_run_lives_where_its_file_lies(tmp_path):
    cfg = compose([*BASE, "runs_dir=elsewhere"])
    folder = tmp_path / cfg.run_id
    folder.mkdir()
    write_frozen(cfg, folder / "config.yaml")
    assert read_frozen(folder / "config.yaml").runs_dir == str(tmp_path.resolve())


def test_a_frozen_file_older_than_a_setting_without_influence_is_read(tmp_path):
    cfg = compose(["model=resnet20", "dataset=digits"])
    older = cfg.copy()
    for key in ("checkpoint", "force"):
        older.pop(key)
    write_frozen(older, tmp_path / "config.yaml")
    assert read_frozen(tmp_path / "config.yaml") == cfg


def test_a_frozen_file_with_a_part_missing_is_one_sentence(tmp_path):
    cfg = compose(BASE)
    del cfg["recipe"]
    write_frozen(cfg, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="is not a whole frozen run: 'recipe' is missing"):
        read_frozen(tmp_path / "config.yaml")


def test_a_missing_frozen_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_frozen(tmp_path / "none.yaml")
