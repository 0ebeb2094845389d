from isda_repro import config
from isda_repro.tables.composed import Remembered


def test_compositions_are_remembered_and_forgotten_with_what_they_follow_from(tmp_path, monkeypatch):
    asked = []

    def compose(overrides):
        asked.append(overrides)
        return config.compose(overrides)

    first = Remembered(compose, tmp_path)
    fresh = first(["model=resnet20", "dataset=digits"])
    first.keep()
    again = Remembered(compose, tmp_path)(["model=resnet20", "dataset=digits"])
    assert again == fresh == config.compose(["model=resnet20", "dataset=digits"])
    assert type(again) is dict, "OmegaConf's objects take ten times as long"
    assert len(asked) == 1
    monkeypatch.setenv("ISDA_DATA", "elsewhere")
    assert Remembered(compose, tmp_path)(["model=resnet20", "dataset=digits"])["data_dir"] == "elsewhere"
    assert len(asked) == 2
    next(tmp_path.glob("composed-*.json")).write_text("{")
    monkeypatch.undo()
    assert Remembered(compose, tmp_path)(["model=resnet20", "dataset=digits"]) == fresh, "a damaged cache is none"


def test_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "cache").write_text("a file")
    remembered = Remembered(config.compose, tmp_path / "cache")
    remembered(["model=resnet20", "dataset=digits"])
    remembered.keep()
