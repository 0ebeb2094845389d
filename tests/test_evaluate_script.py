"""``scripts/evaluate.py`` on a finished run and on a file of weights."""

import json
import re

import pytest

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.training.run import run

SETTINGS = ["model=resnet8", "dataset=digits", "dataset.test_limit=90"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    runs_dir = tmp_path_factory.mktemp("runs")
    cfg = compose([*SETTINGS, "dataset.train_limit=200", "recipe.epochs=1", "tracking=none", f"runs_dir={runs_dir}"])
    run(cfg)
    return runs_dir / cfg.run_id


def numbers(text):
    """Return every number with decimals in a text: the loss, the error, and others."""
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_a_run_and_the_file_of_its_weights_have_the_loss_and_error_of_the_result(load_script, folder, capsys):
    result = json.loads((folder / "result.json").read_text())
    expected = [result["curves"]["test_loss"][-1], result["test_error_final"]]
    script = load_script("evaluate")
    capsys.readouterr()
    script.main([f"run={folder}", "device=cpu"])
    said = capsys.readouterr().out
    assert " 90 " in said
    of_run = numbers(said)
    assert of_run[:2] == pytest.approx(expected, abs=0.005)
    assert of_run[-1] == pytest.approx(expected[1], abs=0.005)
    script.main([*SETTINGS, f"model.weights={folder / 'checkpoint.pt'}", "compute=cpu"])
    assert numbers(capsys.readouterr().out)[:2] == pytest.approx(expected, abs=0.005)


def test_weights_that_are_not_named_are_an_error(load_script):
    with pytest.raises(UserError, match=r"model\.weights"):
        load_script("evaluate").main(SETTINGS)
