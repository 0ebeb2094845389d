"""Configuration of a generator: composition, run id, refused settings."""

import pytest
from gan_runs import KINDS

from isda_repro.config import CONF_DIR, build, compose_generator, read_frozen_generator, write_frozen
from isda_repro.config.checks import ConfigError
from isda_repro.errors import UserError
from isda_repro.gan import Game

TRAINED = {  # ids of runs with the papers' settings; new settings must not change them
    "wgan": "wgan-cifar10-s0-28bcefe520",
    "cgan": "cgan-cifar10-s0-461087bd7f",
    "acgan": "acgan-cifar10-s0-3cbfe6e15f",
    "infogan": "infogan-cifar10-s0-56ca673d01",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_composes_with_the_settings_and_the_name_of_those_that_are_trained(kind):
    cfg = compose_generator([f"gan={kind}", "dataset=cifar10"])
    assert cfg.run_id == TRAINED[kind]
    game = build(cfg.gan.game)
    assert isinstance(game, Game)
    assert game.noise_dim == 100, "Appendix B"
    assert not {"recipe", "faithful", "hydra"} & set(cfg), "a classifier's"
    assert not {"mean", "std", "augment"} & set(cfg.dataset), "a classifier's too"


def test_kinds_are_those_that_there_are_files_for():
    assert {path.stem for path in (CONF_DIR / "gan").glob("*.yaml")} == set(KINDS)
    assert {path.stem for path in (CONF_DIR / "synthetic").glob("[!_]*.yaml")} == {*KINDS, "none"}


def test_name_follows_from_what_changes_the_result_alone():
    names = {
        compose_generator(["gan=cgan", "dataset=digits", *more]).run_id
        for more in ([], ["runs_dir=elsewhere", "tracking=none", "compute.device=cpu", "checkpoint.steps=3"])
    }
    assert len(names) == 1
    others = {
        compose_generator(["gan=cgan", "dataset=digits", *more]).run_id
        for more in (["seed=1"], ["gan.epochs=3"], ["dataset.holdout=100"], ["gan.game.width=128"], ["gan.flip=true"])
    }
    assert len(others - names) == 5


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["gan=gann"], "gan=gann"),
        (["gan.epoch=3"], "gan.epoch"),
        (["gan.epochs=0"], "gan.epochs=0"),
        (["gan.batch_size=0"], "gan.batch_size=0"),
        (["gan.flip=maybe"], "gan.flip=maybe"),
        (["gan.kind=cgan"], "gan.kind=cgan"),
        (["gan.game=3"], "gan.game"),
        (["recipe.epochs=3"], "recipe.epochs=3"),
        (["recipe=resnet"], "recipe=resnet"),
        (["compute.micro_batch=8"], "compute.micro_batch=8"),
        (["compute.sync_bn=true"], "compute.sync_bn=true"),
        (["compute.compile=true"], "compute.compile=true"),
        (["compute.cuda_graph=true"], "compute.cuda_graph=true"),
        (["dataset.test_limit=8"], "dataset.test_limit=8"),
        (["dataset.mean=[0,0,0]"], "dataset.mean"),
        (["dataset.std=[1,1,1]"], "dataset.std"),
        (["dataset.augment.flip=true"], "dataset.augment.flip"),
        (["dataset=imagenet"], "gan="),
        (["seed=-1"], "seed=-1"),
        (["compute.precision=fp16"], "compute.precision=fp16"),
        (["+gan.game.depth=3"], "depth"),
        (["gan=cgan", "gan.classes=[1]"], "gan.classes"),
        (["gan.classes=[]"], r"gan\.classes=\[\]"),
        (["gan.classes=[1,1]"], r"gan\.classes=\[1, 1\]"),
        (["gan.classes=[-1]"], r"gan\.classes=\[-1\]"),
        (["gan.classes=[true]"], r"gan\.classes=\[True\]"),
        (["gan.classes=car"], r"gan\.classes=car"),
        (["gan.classes=[1]", "gan.game.one_for_all=true"], r"gan\.game\.one_for_all=true"),
    ],
)
def test_setting_that_cannot_be_is_named(overrides, named):
    with pytest.raises(UserError, match=named):
        build(compose_generator(["gan=wgan", "dataset=digits", *overrides]).gan.game)


def test_frozen_file_is_read_again_and_refused_when_it_was_edited(tmp_path):
    cfg = compose_generator(["gan=wgan", "dataset=digits"])
    path = tmp_path / "config.yaml"
    write_frozen(cfg, path)
    assert read_frozen_generator(path) == cfg
    path.write_text(path.read_text().replace("clip: 0.01", "clip: 0.02"))
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_frozen_generator(path)
