"""The cache of composed configurations, which persists from one command to the next."""

import pytest
from omegaconf import OmegaConf

from isda_repro import config
from isda_repro.experiments import compose_cache
from isda_repro.experiments.compose_cache import ComposeCache

OVERRIDES = ["model=resnet20", "dataset=digits"]


class Counting:
    """A ``compose`` function that counts its calls."""

    def __init__(self, **settings):
        self.settings, self.asked = settings, 0

    def __call__(self, overrides):
        self.asked += 1
        return OmegaConf.create({**self.settings, "overrides": overrides})


def test_composition_is_remembered_as_it_was(tmp_path):
    first = ComposeCache(config.compose, tmp_path)
    fresh = first(OVERRIDES)
    assert first(OVERRIDES) is fresh
    first.keep()
    compose = Counting()
    again = ComposeCache(compose, tmp_path)
    assert again(OVERRIDES) == fresh == OmegaConf.to_container(config.compose(OVERRIDES))
    assert type(again(OVERRIDES)) is dict, "OmegaConf's objects take ten times as long"
    assert compose.asked == 0
    assert again([*OVERRIDES, "loss=isda"])["overrides"] == [*OVERRIDES, "loss=isda"]
    next(tmp_path.glob("*.json")).write_text("{")
    assert ComposeCache(config.compose, tmp_path)(OVERRIDES) == fresh, "a damaged cache is none"


@pytest.mark.parametrize("changed", ["environment", "directory", "configuration"])
def test_composition_is_forgotten_with_what_it_follows_from(tmp_path, monkeypatch, changed):
    (tmp_path / "conf" / "table").mkdir(parents=True)
    (tmp_path / "conf" / "a.yaml").write_text("a: 1")
    monkeypatch.setattr(compose_cache, "CONF_DIR", tmp_path / "conf")
    compose, folder = Counting(), tmp_path / "cache"

    def ask():
        remembered = ComposeCache(compose, folder)
        remembered(OVERRIDES)
        remembered.keep()
        return compose.asked

    assert (ask(), ask()) == (1, 1)
    (tmp_path / "conf" / "table" / "t.yaml").write_text("title: the overrides come from here")
    assert ask() == 1
    if changed == "environment":
        monkeypatch.setenv("ISDA_DATA", "elsewhere")
    elif changed == "directory":
        monkeypatch.chdir(tmp_path)
    else:
        (tmp_path / "conf" / "a.yaml").write_text("a: 2")
    assert ask() == 2


@pytest.mark.parametrize("settings", [{"model": {"weights": "a file"}}, {"choice": {"dataset": "folder"}}])
def test_composition_that_follows_from_a_file_or_a_link_is_not_remembered(tmp_path, settings):
    compose = Counting(**settings)
    remembered = ComposeCache(compose, tmp_path)
    remembered(OVERRIDES)
    remembered(OVERRIDES)
    remembered.keep()
    assert compose.asked == 2
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "cache").write_text("a file")
    remembered = ComposeCache(Counting(), tmp_path / "cache")
    assert remembered(OVERRIDES)["overrides"] == OVERRIDES
    remembered.keep()
