"""lambda_0 and the other settings of the losses: the paper's where it has them, their source, and their searches."""

import fnmatch
import re
from dataclasses import replace

import pytest
import yaml
from omegaconf import OmegaConf

from isda_repro.checks import ConfigError
from isda_repro.config import CONF_DIR, compose, lambda_0_of
from isda_repro.errors import UserError
from isda_repro.tables.plan import expand
from isda_repro.tables.specification import load_table

REPORTED = yaml.safe_load((CONF_DIR.parent / "isda_repro/tables/reported.yaml").read_text())
ENTRIES = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "lambda_0.yaml"))
IMAGENET = {
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
    "DenseNet-BC-121": "densenet121",
    "DenseNet-BC-265": "densenet265",
    "ResNeXt-50, 32x4d": "resnext50_32x4d",
    "ResNeXt-101, 32x8d": "resnext101_32x8d",
}


@pytest.mark.parametrize("row", REPORTED["table1"]["rows"], ids=lambda row: row["network"])
def test_on_imagenet_it_is_table_1s_and_diagonal(row):
    entry = lambda_0_of(IMAGENET[row["network"]], "imagenet", "isda")
    assert entry["value"] == row["lambda_0"]
    assert entry["source"] == "paper, Appendix B"
    assert "imagenet*: diagonal" in OmegaConf.load(CONF_DIR / "loss/isda.yaml")._get_node("covariance")._value()


def test_every_entry_can_be_reached_and_says_where_it_is_from():
    for number, entry in enumerate(ENTRIES):
        assert set(entry) == {"loss", "dataset", "model", "value", "source"}
        assert entry["source"].startswith(("paper", "the authors' commands", "our search", "ours"))
        names = {key: entry[key].replace("*", "x").replace("[tx]", "t") for key in ("loss", "dataset", "model")}
        fitting = [i for i, e in enumerate(ENTRIES) if all(fnmatch.fnmatchcase(n, e[k]) for k, n in names.items())]
        assert fitting[0] == number


def test_a_loss_that_no_entry_fits_is_one_sentence():
    with pytest.raises(ConfigError, match=r"conf/lambda_0.yaml has no entry for model=a dataset=b loss=ce: give"):
        lambda_0_of("a", "b", "ce")


def test_every_isda_loss_reads_it_and_an_override_wins(monkeypatch):
    monkeypatch.setattr("isda_repro.config.rules.lambda_0_of", lambda *names: {"value": 0.125})
    for path in sorted((CONF_DIR / "loss").glob("isda*.yaml")):
        assert compose([f"loss={path.stem}"]).loss.lambda_0 == 0.125
        assert compose([f"loss={path.stem}", "loss.lambda_0=2"]).loss.lambda_0 == 2


def test_the_settings_of_table_4s_losses_are_appendix_bs():
    appendix = REPORTED["appendix_b"]
    focal, lq, center = (compose([f"loss={name}"]).loss for name in ("focal", "lq", "center"))
    assert (focal.alpha, focal.gamma) == (appendix["focal"]["alpha"], appendix["focal"]["gamma"])
    assert (lq.q, lq.truncation) == (appendix["lq"]["q"], None)
    assert center.centers_lr == appendix["center"]["centers_lr"]
    for cell, alpha in appendix["disturb_label_noise_rate"].items():
        model, dataset = cell.split("/")
        assert compose([f"model={model}", f"dataset={dataset}", "loss=disturb_label"]).loss.alpha == alpha


@pytest.mark.parametrize(("name", "grid"), [("lambda_cifar", "cifar_grid"), ("lambda_imagenet", "imagenet_grid")])
def test_the_searches_are_the_papers_grids_on_held_out_images(name, grid):
    table = load_table(name)
    assert [float(column[-1]) for column in table.columns] == REPORTED["lambda_0"][grid]
    for cell in table.cells:
        assert f"loss.lambda_0={cell.column[-1]}" in cell.overrides
        assert any(override.startswith("dataset.holdout=") for override in cell.overrides)
    labels = {row[0].split(", identity")[0] for row in table.rows}
    tables = ("table2", "table3") if name == "lambda_cifar" else ("table1",)
    assert {row["network"] for one in tables for row in REPORTED[one]["rows"]} <= labels


def test_a_finished_search_proposes_its_best_and_an_unfinished_one_says_what_it_lacks(
    finish, load_script, tmp_path, capsys, monkeypatch
):
    errors = {"0.1": 31.2, "0.25": 30.1, "0.5": 30.4, "0.75": 30.9, "1": 33.0}
    whole = load_table("lambda_cifar")
    table = replace(whole, rows=whole.rows[:2], cells=whole.cells[:10])
    for cell, runs in expand(table, compose).items():
        if (cell.row[1], cell.column[-1]) != ("CIFAR-10", "0.75"):
            finish(runs[0], *[errors[cell.column[-1]]] * 160, evaluated_on="holdout")
    script = load_script("lambda_0")
    monkeypatch.setattr(script, "load_table", lambda name: table)
    script.main(["table=lambda_cifar", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path}"])
    missing, found = capsys.readouterr().out.splitlines()
    assert missing == "# ResNet-32, CIFAR-10: not finished at 0.75"
    (entry,) = yaml.safe_load(found)
    source = entry.pop("source")
    assert entry == {"loss": "isda", "dataset": "cifar100", "model": "resnet32", "value": 0.25}
    assert source.startswith("our search, n = 1, held-out error 31.20% at 0.1, 30.10% at 0.25")


def test_small_data_has_what_its_search_proposes_for_each_number_of_images(load_script, root, tmp_path, capsys):
    arguments = ["table=lambda_small_data", f"runs_dir={tmp_path}", f"results_dir={root / 'results'}"]
    load_script("lambda_0").main(arguments)
    proposed = [line for line in capsys.readouterr().out.splitlines() if "not finished" not in line]
    cells = {cell.row: cell for cell in load_table("small_data").cells if cell.column == ("ISDA",)}
    assert len(proposed) == 4
    for line in proposed:
        row, value, limit = re.fullmatch(r"# (.*): ([\d.]+), for (\S+) alone: it belongs to .*", line).groups()
        cell = next(cell for label, cell in cells.items() if ", ".join(label) == row)
        assert limit in cell.overrides
        assert f"loss.lambda_0={value}" in cell.overrides


def test_what_is_in_force_is_shown_for_every_network(load_script, capsys):
    load_script("lambda_0").main([])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("wrn28_10") for line in lines) == 2 * 6
    assert any(line.split()[:4] == ["resnet101", "imagenet", "isda", "5"] for line in lines)


def test_a_table_that_is_no_search_is_refused(load_script):
    with pytest.raises(UserError, match="table=table5 is no search for lambda_0"):
        load_script("lambda_0").main(["table=table5"])
