"""Tags and metrics by which sweeps tell W&B which tables and cells a run belongs to."""

import dataclasses

import pytest
from omegaconf import OmegaConf
from sweeps import compose

from isda_repro.config import read_frozen, run_id, write_frozen
from isda_repro.config.checks import ConfigError
from isda_repro.experiments.plan import LONGEST_TAG, cell_tag, plan_runs, tag_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.to_wandb import wandb_trackers
from isda_repro.sweeps.sweep import SweepOptions, missing


def test_runs_are_tagged_by_a_sweep_and_keep_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what = missing(SweepOptions(table="demo", set=["tracking.tags=[mine,demo]"]), compose)
    cell = what.table.cells[0]
    first = what.runs[0].settings
    tag = f"demo/{cell.slug}"
    assert first["tracking"]["tags"] == ["mine", "demo", tag]
    assert (first["tracking"]["group"], first["tracking"]["tables"]) == (tag, ["demo"])
    assert first["tracking"]["table_metric"] == cell.metric
    assert [run.run_id for run in what.runs] == [run_id(run.settings) for run in what.runs]
    assert {run.run_id for run in what.runs} == {
        run.run_id for runs in plan_runs(what.table, compose).values() for run in runs
    }


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what = missing(
        SweepOptions(table="demo", set=["tracking.group=mine", "tracking.table_metric=test_error_best"]), compose
    )
    tracking = what.runs[0].settings["tracking"]
    assert (tracking["group"], tracking["table_metric"]) == ("mine", "test_error_best")


def test_without_tracking_nothing_is_added():
    table = load_table("demo")
    plan = plan_runs(table, compose, ["tracking=none"])
    assert tag_runs(table, plan) == plan


def test_run_of_two_cells_has_the_tags_of_both_and_the_group_of_the_first():
    table = load_table("demo")
    first, *_ = table.cells
    again = dataclasses.replace(first, row=("Again",), labels=("again",), metric="test_error_best")
    both = dataclasses.replace(table, cells=(first, again))
    plan = tag_runs(both, plan_runs(both, compose))
    assert plan[first] == plan[again] or [run.settings for run in plan[first]] == [run.settings for run in plan[again]]
    tracking = plan[first][0].settings["tracking"]
    assert tracking["tags"] == ["demo", cell_tag(both, first), cell_tag(both, again)]
    assert (tracking["group"], tracking["table_metric"]) == (cell_tag(both, first), first.metric)


def test_tags_are_no_longer_than_wandb_takes_and_stay_different():
    table = load_table("demo")
    cell = table.cells[0]
    labels = [("x" * 80, end) for end in ("one", "two")]
    tags = [cell_tag(table, dataclasses.replace(cell, row=(text,), column=(end,), labels=())) for text, end in labels]
    assert [len(tag) for tag in tags] == [LONGEST_TAG, LONGEST_TAG]
    assert tags[0] != tags[1]
    assert all(tag.startswith("demo/xxx") for tag in tags)


def test_frozen_file_from_before_there_were_tags_is_read_and_stays_the_same_run(tmp_path):
    frozen = OmegaConf.create(compose(["model=resnet8", "dataset=digits"]))
    for key in ("group", "tags", "tables", "table_metric"):
        del frozen.tracking[key]
    write_frozen(frozen, tmp_path / "config.yaml")
    read = read_frozen(tmp_path / "config.yaml")
    assert read.run_id == frozen.run_id
    (tracker,) = wandb_trackers(read, tmp_path / "metrics.jsonl")
    tracker.log({"kind": "epoch"})
    tracker.close()


@pytest.mark.parametrize("tags", ["''", "word", f"[{'x' * 65}]", "[1]"])
def test_tags_that_wandb_would_refuse_are_refused_before_training(tags):
    with pytest.raises(ConfigError, match=r"tracking\.tags="):
        compose([f"tracking.tags={tags}"])
