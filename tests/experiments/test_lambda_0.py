"""Values of lambda_0 and of the losses' other settings: the paper's where it states them, otherwise their search."""

import fnmatch
import functools
import re
from dataclasses import replace

import pytest
import yaml
from omegaconf import OmegaConf

from isda_repro.config import CONF_DIR, compose, lambda_0_of
from isda_repro.config.checks import ConfigError
from isda_repro.errors import UserError
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_on_disk
from isda_repro.tables.aggregate import aggregate

REPORTED = yaml.safe_load((CONF_DIR.parent / "isda_repro/experiments/reported.yaml").read_text())
ENTRIES = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "lambda_0.yaml"))
LATER_SEARCHES = [("CIFAR-10", "5,000"), ("CIFAR-100", "1,000"), ("CIFAR-100", "5,000")]
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
def test_on_imagenet_it_is_table_1s(row):
    assert lambda_0_of(IMAGENET[row["network"]], "imagenet", "isda")["value"] == row["lambda_0"]


def test_every_entry_can_be_reached():
    for number, entry in enumerate(ENTRIES):
        names = {key: entry[key].replace("*", "x").replace("[tx]", "t") for key in ("loss", "dataset", "model")}
        fitting = [i for i, e in enumerate(ENTRIES) if all(fnmatch.fnmatchcase(n, e[k]) for k, n in names.items())]
        assert fitting[0] == number


def test_a_run_that_no_entry_fits_is_named():
    with pytest.raises(ConfigError, match="model=a dataset=b loss=ce"):
        lambda_0_of("a", "b", "ce")


def test_every_isda_loss_reads_it_and_an_override_wins(monkeypatch):
    monkeypatch.setattr("isda_repro.config.rules.lambda_0_of", lambda *names: {"value": 0.125})
    for path in sorted((CONF_DIR / "loss").glob("isda*.yaml")):
        assert compose([f"loss={path.stem}"]).loss.lambda_0 == 0.125
    assert compose(["loss=isda", "loss.lambda_0=2"]).loss.lambda_0 == 2


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
    errors = {"0.1": 31.2, "0.25": 30.1, "0.5": 30.4}
    whole = load_table("lambda_cifar")
    rows, columns = whole.rows[:2], whole.columns[:3]
    cells = tuple(cell for cell in whole.cells if cell.row in rows and cell.column in columns)
    table = replace(whole, rows=rows, columns=columns, cells=cells)
    composed = functools.cache(lambda overrides: compose(list(overrides)))
    for cell, runs in plan_runs(table, lambda overrides: composed(tuple(overrides))).items():
        if (cell.row[1], cell.column[-1]) != ("CIFAR-10", "0.5"):
            finish(runs[0], errors[cell.column[-1]], evaluated_on="holdout")
    script = load_script("lambda_0")
    monkeypatch.setattr(script, "compose", lambda overrides: composed(tuple(overrides)))
    monkeypatch.setattr(script, "load_table", lambda name: table)
    script.main(["table=lambda_cifar", f"runs_dir={tmp_path / 'runs'}", f"results_dir={tmp_path}"])
    missing, found = capsys.readouterr().out.splitlines()
    assert missing.startswith("#"), "no entry"
    assert "ResNet-32, CIFAR-10" in missing
    assert re.findall(r"\d\.\d+", missing) == ["0.5"]
    (entry,) = yaml.safe_load(found)
    source = entry.pop("source")
    assert entry == {"loss": "isda", "dataset": "cifar100", "model": "resnet32", "value": 0.25}
    assert all(f"{error:.2f}% at {value}" in source for value, error in errors.items())


@pytest.mark.parametrize(
    ("data", "images"),
    [("CIFAR-10", "1,000"), *(pytest.param(*one, marks=pytest.mark.slow) for one in LATER_SEARCHES)],
)
def test_small_data_has_what_its_search_proposes_for_its_number_of_images(load_script, root, data, images):
    """The best value of the search's committed results is the one that the table's ISDA cell uses."""
    whole = load_table("lambda_small_data")
    (row,) = (row for row in whole.rows if row[0] == data and row[-1].startswith(images))
    table = replace(whole, rows=(row,), cells=tuple(cell for cell in whole.cells if cell.row == row))
    filled = aggregate(
        table, plan_runs(table, compose), index_results(results_on_disk(root / "nowhere", root / "results"))
    )
    errors = {column[-1]: filled.cells[row, column].summary.mean for column in table.columns}
    value = min(errors, key=errors.get)
    (cell,) = (one for one in load_table("small_data").cells if (one.row, one.column) == (row, ("ISDA",)))
    assert f"loss.lambda_0={value}" in cell.overrides
    (line,) = load_script("lambda_0").proposed(filled)
    assert re.search(rf"\b{value}\b", line)
    assert next(item for item in cell.overrides if item.startswith("dataset.train_limit=")) in line


def test_what_is_in_force_is_shown_for_every_network(load_script, capsys):
    load_script("lambda_0").main([])
    lines = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert sum(name == "wrn28_10" for name, *_ in lines) == 2 * len(list((CONF_DIR / "loss").glob("isda*.yaml")))
    for name, dataset, loss, value in lines:
        assert float(value) == pytest.approx(lambda_0_of(name, dataset, loss)["value"])
    assert ["resnet101", "imagenet", "isda", "5"] in lines


@pytest.mark.parametrize("name", ["table5", "small_data"])  # tables in which some cells set lambda_0
def test_a_table_that_is_no_search_is_named(load_script, name):
    with pytest.raises(UserError, match=name):
        load_script("lambda_0").main([f"table={name}"])
