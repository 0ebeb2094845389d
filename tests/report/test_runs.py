"""Labels of lines and panels: each names the settings that differ from those of its neighbours."""

import re

import pytest
from omegaconf import OmegaConf

from isda_repro.experiments.plan import Run
from isda_repro.report.labels import differing, line_labels
from isda_repro.report.runs import described, slim
from isda_repro.runs.records import METRICS


@pytest.fixture
def run_of(composed):
    def run(*overrides):
        cfg = composed(["model=resnet20", "dataset=digits", *overrides])
        return Run(cfg.seed, cfg.run_id, OmegaConf.to_container(cfg))

    return run


@pytest.fixture
def described_runs(run_of, finished):
    def describe(*lists):
        runs = [run_of(*overrides) for overrides in lists]
        results = {run.run_id: (f"runs/{run.run_id}/result.json", slim(finished(run))) for run in runs}
        return described(results, [run.run_id for run in runs])

    return describe


def test_seeds_are_one_line_and_losses_one_panel(described_runs):
    data = described_runs(["loss=isda"], ["loss=ce"], ["loss=ce", "seed=1"])
    (panel,) = data["panels"]
    assert (panel["title"], panel["model"], panel["dataset"]) == ("resnet20, digits", "resnet20", "digits")
    assert [(line["label"], line["runs"]) for line in panel["lines"]] == [("ce", [1, 2]), ("isda", [0])]
    assert [data["runs"][number]["seed"] for number in (1, 2)] == [0, 1]


def test_lines_of_one_loss_are_told_apart_by_their_settings(described_runs):
    data = described_runs(
        ["loss=isda"], ["loss=isda", "loss.lambda_0=0.25"], ["loss=ce", "model.dropout=0.3"], ["loss=ce"]
    )
    (panel,) = data["panels"]
    assert [line["label"] for line in panel["lines"]] == [
        "ce, dropout=0.3", "ce, dropout=0", "isda, lambda_0=0.5", "isda, lambda_0=0.25",
    ]  # fmt: skip


def test_generated_images_make_a_line_of_their_own(described_runs):
    on_cifar = ["model=resnet110", "dataset=cifar10", "loss=ce"]
    data = described_runs([*on_cifar, "synthetic=wgan"], [*on_cifar, "synthetic=acgan"], on_cifar)
    (panel,) = data["panels"]
    assert [line["runs"] for line in panel["lines"]] == [[2], [0], [1]]
    labels = [line["label"] for line in panel["lines"]]
    assert labels[0] == "ce"
    assert re.fullmatch(r"ce, synthetic=0\.167 wgan-cifar10-s0-\w{10}", labels[1])
    assert re.fullmatch(r"ce, synthetic=0\.167 acgan-cifar10-s0-\w{10}", labels[2])


def test_other_settings_make_another_panel_that_says_which(described_runs):
    data = described_runs(["loss=ce"], ["loss=ce", "recipe.lr=0.02"])
    first, second = data["panels"]
    assert first["title"] == second["title"]
    assert second["facts"].endswith("recipe.lr=0.02")
    assert "weight_decay" not in first["facts"]


def test_the_facts_have_the_passes_of_an_epoch(described_runs):
    once, often = described_runs(["loss=ce"], ["loss=ce", "recipe.passes=10"])["panels"]
    assert "30 epochs" in once["facts"].replace("\xa0", " ")
    assert "passes" not in once["facts"].partition("recipe.")[0]
    assert "30 epochs of 10 passes" in often["facts"].replace("\xa0", " ")


def test_every_error_of_a_run_has_its_description(run_of, finished):
    run = run_of("loss=ce")
    data = described({run.run_id: ("a file", finished(run, test_top5_error_final=1.5))})
    (errors,) = [one["errors"] for one in data["runs"]]
    assert errors["test_top5_error_final"] == 1.5
    assert {name: data["metrics"][name] for name in errors} == {name: METRICS[name] for name in errors}


def test_drops_and_floor_are_those_of_the_runs(described_runs):
    (panel,) = described_runs(["loss=ce"])["panels"]
    assert panel["drops"] == [16, 24]
    assert panel["floor"] == 50 / 360


def test_what_runs_share_is_kept_once(described_runs):
    data = described_runs(*(["loss=ce", f"seed={seed}"] for seed in range(4)))
    for shared in ("settings", "sizes", "environments", "segments", "epochs"):
        assert len(data[shared]) == 1, shared
    assert {run["settings"] for run in data["runs"]} == {0}
    assert data["settings"][0]["choice"]["loss"] == "ce"
    assert "seed" not in data["settings"][0]


def test_runs_of_no_table_come_last(run_of, finished):
    runs = [run_of("loss=ce", f"seed={seed}") for seed in range(3)]
    results = {run.run_id: ("a file", slim(finished(run))) for run in runs}
    data = described(results, [runs[2].run_id])
    assert data["runs"][0]["id"] == runs[2].run_id
    assert [run["id"] for run in data["runs"][1:]] == sorted(run.run_id for run in runs[:2])


def test_a_slim_result_has_the_same_numbers(result):
    assert {name: list(values) for name, values in slim(result).curves.items()} == result.curves


def test_differing_settings():
    assert differing([{"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}]) == [["a.c=2"], ["a.c=3"]]
    assert differing([{"x": 1}]) == [[]]


def test_two_losses_with_the_same_settings_need_no_more_than_their_names():
    assert line_labels([{"choice": "ce", "loss": {"x": 1}}, {"choice": "isda", "loss": {"x": 2}}]) == ["ce", "isda"]
