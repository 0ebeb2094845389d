"""The command line of ``train.py``: a frozen file is run as it is, everything else is composed."""

import subprocess
import sys

import pytest

from isda_repro.config import CONF_DIR, run_command_line
from isda_repro.config.checks import ConfigError
from isda_repro.errors import EXIT_USER_ERROR


def outcome(arguments, composing=lambda: None):
    """Return what was called for these arguments: "composed", or the path of the frozen file."""
    ran = []
    run_command_line(arguments, ran.append, lambda: (ran.append("composed"), composing()))
    return [str(one) for one in ran]


def test_a_frozen_file_is_run_and_anything_else_is_composed():
    assert outcome(["runs/a/config.yaml"]) == ["runs/a/config.yaml"]
    assert outcome(["a.yml"]) == ["a.yml"]
    assert outcome([]) == outcome(["model=a"]) == outcome(["model=a", "b.yaml"]) == ["composed"]


def test_a_frozen_file_takes_no_settings(capsys):
    with pytest.raises(SystemExit) as ended:
        outcome(["a.yaml", "seed=3"])
    assert ended.value.code == EXIT_USER_ERROR == 2
    assert "seed=3" in capsys.readouterr().err


def test_an_error_of_the_user_ends_the_program_with_2_and_a_defect_is_raised(capsys):
    def wrong():
        raise ConfigError("seed=-1")

    with pytest.raises(SystemExit) as ended:
        outcome([], wrong)
    assert ended.value.code == EXIT_USER_ERROR
    assert "seed=-1" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        outcome([], lambda: 1 / 0)


@pytest.mark.parametrize(
    ("script", "groups"),
    [
        ("train.py", "model loss dataset augmentation recipe synthetic faithful compute tracking"),
        ("scripts/train_gan.py", "gan compute tracking dataset"),
    ],
)
def test_help_lists_what_can_be_chosen_and_no_more(root, script, groups):
    done = subprocess.run([sys.executable, script, "--help"], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.split("Choices (group=name):\n")[1].split("\n\n")[0].splitlines()
    listed = {group: names.split(", ") for group, names in (line.split(": ") for line in lines)}
    assert list(listed) == groups.split()
    if script == "train.py":
        for group, names in listed.items():
            assert names == sorted(path.stem for path in (CONF_DIR / group).glob("[!_]*.yaml"))
