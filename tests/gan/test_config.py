import pytest
from gan_runs import KINDS

from isda_repro.checks import ConfigError
from isda_repro.config import CONF_DIR, build, compose_generator, read_frozen_generator, write_frozen
from isda_repro.errors import UserError
from isda_repro.gan import Game


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "digits"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_generator_composes_and_is_named(kind, dataset):
    cfg = compose_generator([f"gan={kind}", f"dataset={dataset}"])
    assert cfg.run_id.startswith(f"{kind}-{dataset}-s0-")
    assert isinstance(build(cfg.gan.game), Game)
    assert cfg.gan.game.noise_dim == 100, "Appendix B"
    assert not {"recipe", "faithful", "hydra"} & set(cfg), "nothing of a classifier's"


def test_there_is_a_file_for_each_kind_that_augmentation_can_name():
    assert {path.stem for path in (CONF_DIR / "gan").glob("*.yaml")} == set(KINDS)
    assert {path.stem for path in (CONF_DIR / "synthetic").glob("[!_]*.yaml")} == {*KINDS, "none"}


def test_the_name_follows_what_changes_the_result_and_nothing_else():
    names = {
        compose_generator(["gan=cgan", "dataset=digits", *more]).run_id
        for more in ([], ["runs_dir=elsewhere"], ["tracking=none"], ["compute.device=cpu"], ["checkpoint.steps=3"])
    }
    assert len(names) == 1
    others = {
        compose_generator(["gan=cgan", "dataset=digits", *more]).run_id
        for more in (["seed=1"], ["gan.epochs=3"], ["dataset.holdout=100"], ["gan.game.width=128"], ["gan.flip=true"])
    }
    assert len(others - names) == 5


def test_a_new_setting_renames_no_generator_that_has_been_trained():
    assert compose_generator(["gan=wgan", "dataset=cifar10"]).run_id == "wgan-cifar10-s0-28bcefe520"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("gan=gann", "there is no gan=gann; gan= can be acgan, cgan, infogan, wgan"),
        ("gan.epoch=3", "unknown setting .gan.epoch.; did you mean gan.epochs"),
        ("gan.epochs=0", "gan.epochs=0 must be a whole number from 1 on"),
        ("gan.flip=maybe", "gan.flip=maybe must be true or false"),
        ("recipe.epochs=3", "'recipe.epochs=3' sets what trains no generator"),
        ("recipe=resnet", "'recipe=resnet' sets what trains no generator"),
        ("compute.micro_batch=8", "'compute.micro_batch=8' sets what trains no generator"),
        ("dataset.test_limit=8", "'dataset.test_limit=8' sets what trains no generator"),
        ("gan.kind=cgan", "gan.kind=cgan must be left alone; choose gan="),
        ("dataset.mean=[0,0,0]", "sets what trains no generator"),
        ("dataset=imagenet", "gan= is for small images in memory"),
        ("seed=-1", "seed=-1 must be a whole number from 0 on"),
        ("compute.precision=fp16", "compute.precision=fp16 must be one of auto, fp32, bf16"),
        ("+gan.game.depth=3", "cannot be made"),
        ("gan.classes=[1]", "'gan.classes' is a setting of other choices of gan="),
    ],
)
def test_a_mistake_is_one_sentence(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(compose_generator(["dataset=digits", override]).gan.game)


def test_a_frozen_file_is_read_again_and_refused_when_edited(tmp_path):
    cfg = compose_generator(["gan=wgan", "dataset=digits"])
    path = tmp_path / "config.yaml"
    write_frozen(cfg, path)
    assert read_frozen_generator(path) == cfg
    path.write_text(path.read_text().replace("clip: 0.01", "clip: 0.02"))
    with pytest.raises(ConfigError, match="was edited after it was frozen"):
        read_frozen_generator(path)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("gan.classes=[]", r"gan.classes=\[\] must be the numbers of some classes, each once"),
        ("gan.classes=[1,1]", r"gan.classes=\[1, 1\] must be the numbers of some classes, each once"),
        ("gan.classes=[-1]", "must be the numbers of some classes"),
        ("gan.classes=[true]", "must be the numbers of some classes"),
        ("gan.classes=car", "must be the numbers of some classes"),
        ("gan.game.one_for_all=yes please", "gan.game.one_for_all=yes please must be true, false or null"),
    ],
)
def test_classes_that_cannot_be(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        build(compose_generator(["gan=wgan", "dataset=digits", wrong]).gan.game)


def test_some_classes_are_not_for_one_pair_for_all():
    with pytest.raises(ConfigError, match=r"null with gan\.game\.one_for_all=true"):
        compose_generator(["gan=wgan", "dataset=digits", "gan.classes=[1]", "gan.game.one_for_all=true"])
