"""Command lines of scripts that are parsed into dataclasses."""

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from isda_repro.config.options import parse_options
from isda_repro.errors import UserError


@dataclass
class Options:
    table: str = MISSING
    jobs: int = 1
    folder: str = "runs"
    from_: str = "${folder}/here"
    dry_run: bool = False
    epochs: list[int] = field(default_factory=list)
    set: list[str] = field(default_factory=list)


@dataclass
class Others:
    jobs: int = 1


def test_options_have_their_types_and_defaults():
    assert parse_options(Options, ["table=demo"]) == Options("demo", from_="runs/here")
    arguments = ["table=a=b", "jobs=2", "from=there", "dry_run=true", "epochs=[1,2]", "set=[a=1,b=c]"]
    assert parse_options(Options, arguments) == Options("a=b", 2, "runs", "there", True, [1, 2], ["a=1", "b=c"])
    assert parse_options(Options, ["table=one", "table=two"]).table == "two"


@pytest.mark.parametrize("value", ["a b", "a #1", "007", "1e3", "a: b", "x=1,2", "фото (1)", "true", "&a", "a'b"])
def test_a_text_is_what_was_typed(value):
    assert parse_options(Options, [f"table={value}"]).table == value
    assert parse_options(Options, [f"table='{value.replace(chr(39), 2 * chr(39))}'"]).table == value


def test_a_path_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_options(Options, ["table=t", "folder=~/runs"]).folder == str(tmp_path / "runs")


@pytest.mark.parametrize(
    "argument", ["table=a\nb", 'table="a\\nb"', 'set=["a=1\\n#SBATCH --wrap=x"]', "folder=\x1b[2J"]
)
def test_a_control_character_is_refused(argument):
    with pytest.raises(UserError) as error:
        parse_options(Options, ["table=t", argument])
    assert argument.partition("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "argument", "named"),
    [
        (Options, "job=4", "job= jobs= from= set=[job=4]"),
        (Options, "from_=a", "from_="),
        (Options, "dryrun", "dryrun"),
        (Options, "jobs=many", "jobs=many"),
        (Options, "dry_run=perhaps", "dry_run=perhaps"),
        (Options, "table=[demo", "table=[demo"),
        (Options, "epochs=3", "epochs=[1,2]"),
        (Options, "set=a", "set=[a=1,b=2]"),
        (Options, None, "table="),
        (Others, "job=4", "job= jobs="),
    ],
)
def test_a_wrong_option_is_an_error_of_one_line_that_names_it(schema, argument, named):
    with pytest.raises(UserError) as error:
        parse_options(schema, [] if argument is None else [argument])
    assert "\n" not in str(error.value)
    for token in named.split():
        assert token in str(error.value)
    assert schema is Options or "set=" not in str(error.value)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_prints_the_scripts_docstring_and_ends(monkeypatch, capsys, flag):
    monkeypatch.setattr("__main__.__doc__", "\nWhat it does.\n", raising=False)
    with pytest.raises(SystemExit) as ended:
        parse_options(Options, ["jobs=many", flag])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "What it does.\n"
