"""Classifiers that train on generated images, from the command line to the result."""

import re
import shlex
import shutil

import pytest
import torch
from gan_runs import KINDS, killed_at
from gan_runs import settings as generator_settings
from interrupted_runs import assert_same, stopped_after
from omegaconf import open_dict

from isda_repro.config import build, compose, compose_generator
from isda_repro.config.checks import ConfigError
from isda_repro.errors import UserError
from isda_repro.gan import ImageGenerator
from isda_repro.training.builders import build_loaders
from isda_repro.training.compute import resolve_compute
from isda_repro.training.run import run

SHORT = "{gan.epochs:2,gan.batch_size:10,gan.game.width:16}"
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=100", "dataset.test_limit=50"),
    *("recipe.epochs=2", "recipe.batch_size=32", "loss=isda", "tracking=none", "synthetic=acgan"),
    f"synthetic.settings={SHORT}",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder for runs that are not interrupted."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def trained(undisturbed, tmp_path):
    """Return a folder for runs that contains a trained generator."""
    (tmp_path / compose(RUN).synthetic.generator).symlink_to(undisturbed("acgan"))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_generator_is_that_of_the_same_images_and_part_of_the_name(kind):
    wanted = [f"synthetic={kind}", "synthetic.seed=3", "dataset.holdout=100", "dataset.imbalance=10"]
    cfg = compose([*RUN, *wanted, "seed=1"])
    ours = ["gan.epochs=2", "gan.batch_size=10", "gan.game.width=16", "seed=3"]
    limits = ["dataset=digits", "dataset.train_limit=100", "dataset.holdout=100", "dataset.imbalance=10"]
    assert cfg.synthetic.generator == compose_generator([f"gan={kind}", *limits, *ours]).run_id
    assert f"-isda-{kind}-s1-" in cfg.run_id


def test_runs_and_generators_that_were_frozen_before_an_option_existed_go_together(undisturbed, tmp_path):
    cfg = compose([*RUN, f"runs_dir={tmp_path}"])
    frozen = shutil.copytree(undisturbed("acgan"), tmp_path / cfg.synthetic.generator) / "config.yaml"
    older, lines = re.subn(r"\n +imbalance: .*", "", frozen.read_text())
    assert lines == 2
    frozen.write_text(older)
    with open_dict(cfg):
        del cfg.dataset.imbalance, cfg.dataset.source.imbalance, cfg.recipe.mixup
    train, _ = build_loaders(cfg, build(cfg.dataset.source), resolve_compute(cfg.compute))
    assert train.num_samples == 100


def test_each_setting_of_the_generated_images_gives_the_run_another_name():
    more = ["synthetic.seed=1", "synthetic.covers_all=true", "synthetic.fraction=0.5"]
    assert len({compose([*RUN, one]).run_id for one in ("seed=0", *more)}) == 4


@pytest.mark.parametrize(("more", "made", "steps"), [([], 2 * (100 // 6), 8), (["synthetic.covers_all=true"], 40, 8)])
def test_a_sixth_of_what_is_trained_on_is_generated_and_nothing_of_what_is_evaluated(
    trained, monkeypatch, more, made, steps
):
    """The sixth counts per epoch; if the epoch covers all real images, a fifth of their number is added."""
    counted, original = [], ImageGenerator.sample

    def sample(self, labels, *rest):
        counted.append(len(labels))
        return original(self, labels, *rest)

    monkeypatch.setattr(ImageGenerator, "sample", sample)
    cfg = compose([*RUN, *more, f"runs_dir={trained}"])
    train, test = build_loaders(cfg, build(cfg.dataset.source), resolve_compute(cfg.compute))
    evaluated = [len(targets) for _, targets in test.epoch(0)]
    assert (sum(evaluated), counted) == (50, [])
    batches = [len(targets) for epoch in (1, 2) for _, targets in train.epoch(epoch)]
    assert (len(batches), sum(batches)) == (steps, 200 + (made if more else 0))
    assert sum(counted) == made


@pytest.mark.parametrize("step", [1, 6])
def test_stopped_run_ends_as_if_it_had_not_been_and_needs_its_generator_no_more(
    whole, undisturbed, trained, monkeypatch, step
):
    undone = compose([*RUN, f"runs_dir={whole}"])
    if not (whole / undone.run_id).exists():
        (whole / undone.synthetic.generator).symlink_to(undisturbed("acgan"))
        run(undone)
    cfg = compose([*RUN, f"runs_dir={trained}", "checkpoint.steps=1"])
    stopped_after(cfg, step, monkeypatch)
    result = run(cfg)
    assert_same(trained / cfg.run_id, whole / cfg.run_id)
    (trained / cfg.synthetic.generator).unlink()
    assert run(cfg) == result


def test_without_a_finished_generator_nothing_is_begun_and_the_command_that_trains_it_is_said(tmp_path, monkeypatch):
    cfg = compose([*RUN, f"runs_dir={tmp_path}"])
    for _ in range(2):
        with pytest.raises(ConfigError, match="synthetic=acgan") as caught:
            run(cfg)
        said = shlex.split(str(caught.value).partition("scripts/train_gan.py")[2])
        overrides = [word for word in said if "=" in word]
        assert compose_generator(overrides).run_id == cfg.synthetic.generator
        assert f"runs_dir={tmp_path}" in overrides
        assert not (tmp_path / cfg.run_id).exists()
        if not (tmp_path / cfg.synthetic.generator).exists():
            killed_at(generator_settings("acgan", tmp_path, "checkpoint.steps=1"), 3, monkeypatch)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["synthetic=cgan"], "acgan.*cgan"),
        (["dataset.holdout=100"], "holdout.*100"),
        (["synthetic.generator=nosuch"], r"nosuch.*synthetic\.generator="),
    ],
)
def test_generator_that_the_user_names_must_be_of_that_kind_and_of_the_same_images(trained, more, named):
    name = compose(RUN).synthetic.generator
    with pytest.raises(UserError, match=named):
        run(compose([*RUN, f"synthetic.generator={name}", *more, f"runs_dir={trained}"]))


def test_generator_whose_weights_do_not_fit_is_refused_and_its_file_named(undisturbed, tmp_path):
    folder = tmp_path / compose(RUN).synthetic.generator
    folder.mkdir()
    for file in ("config.yaml", "result.json"):
        (folder / file).write_bytes((undisturbed("acgan") / file).read_bytes())
    state = torch.load(undisturbed("acgan") / "checkpoint.pt", weights_only=True)
    state["network"]["generators"][0]["layers.0.weight"] = torch.zeros(110, 16, 5, 5)
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(UserError, match=rf"{folder.name}.checkpoint\.pt"):
        run(compose([*RUN, f"runs_dir={tmp_path}"]))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("synthetic.fraction=1.5", r"synthetic\.fraction=1.5"),
        ("synthetic.fraction=0", r"synthetic\.fraction=0"),
        ("synthetic.covers_all=false", r"synthetic\.covers_all=False"),
        ("synthetic.covers_all=1", r"synthetic\.covers_all=1"),
        ("synthetic.settings={gan.epoch:3}", r"gan\.epoch"),
        ("synthetic.settings=3", r"synthetic\.settings=3"),
        ("synthetic.settings={dataset.holdout:1}", r"synthetic\.settings="),
        ("synthetic.seed=-1", r"synthetic\.seed=-1"),
        ("dataset=folder", "gan="),
    ],
)
def test_setting_that_cannot_be_is_named(override, named):
    with pytest.raises(ConfigError, match=named):
        compose(["model=resnet20", "dataset=digits", "synthetic=acgan", override])
