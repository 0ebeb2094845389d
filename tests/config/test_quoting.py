"""Paths and names on the command line, which Hydra's grammar would read as something else."""

import subprocess
import sys

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from isda_repro.config import compose, quoted
from isda_repro.config.checks import PATHS, ConfigError
from isda_repro.config.quoting import NAMES, advice, literal

BASE = ["model=resnet8", "dataset=digits"]
AS_TYPED = [
    *("/w/x=1", "/w/pets (1)", "/w/фото", "/w/a,b", "/w/a b", "/w/#1", "/w/[x]", "{a:1}", "glob(*)", "a:b", "$x", "-m"),
    *("123", "1e3", "007", "true", "a'b", 'a"b', "a\\b", "a\\", "a'\\", "\\'", "'", '"', "'a", " a ", "caf\udce9"),
]


@pytest.mark.parametrize("value", AS_TYPED)
def test_a_path_is_taken_as_it_is_typed(value):
    for argument in (literal(f"data_dir={value}"), f"data_dir={quoted(value)}"):
        assert OverridesParser.create().parse_override(argument).value() == value


def test_a_composition_takes_paths_as_they_are_typed():
    cfg = compose([*BASE, "data_dir=/w/x=1 (1)", "runs_dir=a,b", "tracking.project=123"])
    assert (cfg.data_dir, cfg.runs_dir, cfg.tracking.project) == ("/w/x=1 (1)", "a,b", "123")


@pytest.mark.parametrize(
    "value", ["null", "", "'/w/a b'", '"/w/a b"', "/w/pets\\ \\(1\\)", "/plain-path_1.2", "${runs_dir}"]
)
def test_a_value_in_hydras_own_grammar_is_left_alone(value):
    assert literal(f"data_dir={value}") == f"data_dir={value}"


@pytest.mark.parametrize("key", [*PATHS, *NAMES])
def test_every_key_of_a_path_or_a_name_is_quoted(key):
    assert literal(f"{key}=epoch=3-step=10.ckpt") == f"{key}='epoch=3-step=10.ckpt'"
    assert literal(f"++{key}=a,b") == f"++{key}='a,b'"


def test_other_settings_are_not_changed():
    for argument in ("recipe.lr=a,b", "loss=isda,ce", "--cfg", "-m", "tracking.tags=[a,b]", "~data_dir", "data_dir"):
        assert literal(argument) == argument


def test_a_path_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "a b"))
    for key in PATHS:
        assert literal(f"{key}=~/x=1") == f"{key}='{tmp_path}/a b/x=1'"
    assert literal("dataset.name=~") == "dataset.name='~'"
    with pytest.raises(ConfigError, match=r"data_dir=~nobody-of-this-name"):
        literal("data_dir=~nobody-of-this-name/a")


def test_a_comma_separates_runs_only_in_a_multirun(tmp_path):
    assert literal("data_dir=a,b", multirun=True) == "data_dir=a,b"
    assert literal("data_dir=x=1", multirun=True) == "data_dir='x=1'"
    (tmp_path / "a,b").mkdir()
    with pytest.raises(ConfigError) as error:
        literal(f"data_dir={tmp_path}/a,b", multirun=True)
    assert f"'data_dir=\"{tmp_path}/a,b\"'" in str(error.value)


def test_a_folder_whose_name_refers_to_a_setting_is_refused(tmp_path):
    folder = tmp_path / "${seed}"
    assert literal(f"data_dir={folder}") == f"data_dir={folder}"
    folder.mkdir()
    with pytest.raises(ConfigError, match="symbolic link"):
        literal(f"data_dir={folder}")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("tracking.table_metric=a(b", "'tracking.table_metric=\"a(b\"'"),
        ("recipe.lr==", "'recipe.lr=\"=\"'"),
        ("é", "key=value"),
    ],
)
def test_what_cannot_be_read_is_told_in_the_words_to_type(argument, words):
    assert words in advice(argument)
    with pytest.raises(ConfigError) as error:
        compose([*BASE, argument])
    assert words in str(error.value)


def test_train_py_takes_a_path_as_it_is_typed(root, tmp_path):
    folder = tmp_path / "фото (1)"
    arguments = [*BASE, f"data_dir={folder}/a,b=1", "runs_dir=~/r", "--cfg", "job"]
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=root, capture_output=True, text=True, check=True, env=environment
    )
    shown = yaml.safe_load(done.stdout)
    assert (shown["data_dir"], shown["runs_dir"]) == (f"{folder}/a,b=1", f"{tmp_path}/r")


@pytest.mark.parametrize("value", ["{foo:1}", "{foo:1,padding:2}"])
def test_a_key_that_no_data_set_declares_is_named_with_those_that_there_are(value):
    for override in (f"dataset.augment={value}", "dataset.augment.foo=1"):
        with pytest.raises(ConfigError) as error:
            compose([*BASE, override])
        for name in ("dataset.augment.foo", "padding", "cutout_length"):
            assert name in str(error.value)
