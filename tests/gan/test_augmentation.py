"""Classifiers that train on generated images: from the command line's settings to the result."""

import pytest
import torch
from gan_runs import killed_at
from gan_runs import settings as generator_settings
from interrupted_runs import assert_same, stopped_after

from isda_repro.checks import ConfigError
from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.gan import ImageGenerator
from isda_repro.gan.run import train_generator
from isda_repro.training.run import run

SHORT = "{gan.epochs:2,gan.batch_size:10,gan.game.width:16}"
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=200", "dataset.test_limit=100"),
    *("recipe.epochs=2", "loss=isda", "tracking=none", "synthetic=acgan", f"synthetic.settings={SHORT}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a generator is, and a classifier that was trained on its images."""
    folder = tmp_path_factory.mktemp("runs")
    train_generator(generator_settings("acgan", folder))
    run(compose([*RUN, f"runs_dir={folder}"]))
    return folder


@pytest.fixture
def trained(folder, tmp_path):
    """The generator alone, in a folder of one's own."""
    name = compose(RUN).synthetic.generator
    (tmp_path / name).symlink_to(folder / name)
    return tmp_path


def test_the_generator_is_that_of_the_same_images_and_part_of_the_runs_name(folder):
    cfg = compose([*RUN, f"runs_dir={folder}"])
    assert cfg.synthetic.generator == generator_settings("acgan", folder).run_id
    assert "-isda-acgan-s0-" in cfg.run_id
    names = {compose([*RUN, more]).run_id for more in ("seed=0", "synthetic.seed=1", "synthetic.covers_all=true")}
    names |= {compose([*RUN, more]).run_id for more in ("synthetic.fraction=0.5", "dataset.holdout=100")}
    assert len(names) == 5
    assert compose([*RUN, "dataset.holdout=100"]).synthetic.generator != cfg.synthetic.generator


def test_a_sixth_of_what_is_trained_on_is_generated_and_nothing_of_what_is_evaluated(trained, monkeypatch):
    made, original = [], ImageGenerator.sample

    def look(self, labels, *rest):
        made.append(len(labels))
        return original(self, labels, *rest)

    monkeypatch.setattr(ImageGenerator, "sample", look)
    run(compose([*RUN, f"runs_dir={trained}"]))
    assert sum(made) == 2 * (200 // 6), "two epochs; the evaluations asked for none"
    assert len(made) == 2 * 4


def test_an_epoch_that_covers_all_makes_a_fifth_as_many_as_there_are_real_ones(trained, monkeypatch):
    made, original = [], ImageGenerator.sample

    def look(self, labels, *rest):
        made.append(len(labels))
        return original(self, labels, *rest)

    monkeypatch.setattr(ImageGenerator, "sample", look)
    run(compose([*RUN, f"runs_dir={trained}", "recipe.epochs=1", "synthetic.covers_all=true"]))
    assert sum(made) == 200 // 5


@pytest.mark.parametrize("step", [1, 5, 7])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(folder, trained, monkeypatch, step):
    cfg = compose([*RUN, f"runs_dir={trained}", "checkpoint.steps=1"])
    stopped_after(cfg, step, monkeypatch)
    run(cfg)
    assert_same(trained / cfg.run_id, folder / cfg.run_id)


def test_a_generator_that_is_not_there_is_one_sentence_with_the_command_that_trains_it(tmp_path):
    cfg = compose([*RUN, f"runs_dir={tmp_path}"])
    with pytest.raises(ConfigError) as caught:
        run(cfg)
    command = "python scripts/train_gan.py gan=acgan dataset=digits seed=0 dataset.train_limit=200 gan.epochs=2 "
    assert str(caught.value).startswith(f"synthetic=acgan needs a trained generator in {tmp_path}/acgan-digits-s0-")
    assert command in str(caught.value)
    assert not (tmp_path / cfg.run_id).exists()


def test_one_that_has_not_finished_is_not_there_either(tmp_path, monkeypatch):
    killed_at(generator_settings("acgan", tmp_path, "checkpoint.steps=1"), 3, monkeypatch)
    with pytest.raises(ConfigError, match="needs a trained generator"):
        run(compose([*RUN, f"runs_dir={tmp_path}"]))


def test_a_finished_run_needs_its_generator_no_more(trained, capsys):
    cfg = compose([*RUN, f"runs_dir={trained}"])
    run(cfg)
    (trained / cfg.synthetic.generator).unlink()
    run(cfg)
    assert "is already done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["synthetic=cgan"], "has a generator with kind acgan, and cgan is wanted"),
        (["dataset.holdout=100"], "has a generator with holdout None, and 100 is wanted"),
    ],
)
def test_one_that_the_user_names_must_be_of_that_kind_and_of_the_same_images(trained, more, sentence):
    name = compose(RUN).synthetic.generator
    with pytest.raises(UserError, match=sentence):
        run(compose([*RUN, *more, f"synthetic.generator={name}", f"runs_dir={trained}"]))
    with pytest.raises(UserError, match=r"needs a trained generator in .*nosuch, which synthetic\.generator= names"):
        run(compose([*RUN, *more, "synthetic.generator=nosuch", f"runs_dir={trained}"]))


def test_one_of_other_images_is_refused(folder, tmp_path):
    name = compose(RUN).synthetic.generator
    (tmp_path / name).mkdir()
    for file in ("config.yaml", "result.json"):
        (tmp_path / name / file).write_bytes((folder / name / file).read_bytes())
    state = torch.load(folder / name / "checkpoint.pt", weights_only=True)
    state["network"]["generators"][0]["layers.0.weight"] = torch.zeros(110, 16, 5, 5)
    torch.save(state, tmp_path / name / "checkpoint.pt")
    with pytest.raises(UserError, match="does not fit its configuration"):
        run(compose([*RUN, f"runs_dir={tmp_path}"]))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("synthetic.fraction=1.5", "synthetic.fraction=1.5 must be a number from 0.001 to 0.999"),
        ("synthetic.covers_all=false", "synthetic.covers_all=False must be true or null"),
        ("synthetic.settings={gan.epoch:3}", "unknown setting 'gan.epoch'"),
        ("synthetic.settings=3", "synthetic.settings=3 must be the generator's settings with their values"),
        ("synthetic.settings={dataset.holdout:1}", "synthetic.settings=.* must be the generator's settings"),
        ("synthetic.covers_all=1", "synthetic.covers_all=1 must be true or null"),
        ("synthetic.seed=-1", "synthetic.seed=-1 must be a whole number from 0 on"),
        ("dataset=folder", "gan= is for small images in memory"),
    ],
)
def test_a_mistake_is_one_sentence(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose(["model=resnet20", "dataset=digits", "synthetic=acgan", override])
