"""Runs that train on generated images: a sweep trains their generators first."""

import json
import re

import pytest
from sweeps import compose, folder_of, generator_result, numbers_of, started, training

from isda_repro.errors import UserError
from isda_repro.experiments.plan import generators_of, plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.generator_records import read_generator_result
from isda_repro.runs.records import (
    OtherKindError,
    RecordError,
    as_json,
    read_result,
    write_result,
)
from isda_repro.sweeps.local import sweep_here
from isda_repro.sweeps.status import status
from isda_repro.sweeps.sweep import SweepOptions, missing

TABLE = """
title: two of the rows train on generated images
metric: test_error_last10
seeds: [0, 1]
set: [model=resnet20, dataset=digits, dataset.holdout=100]
rows: [{Basic: loss=ce, ACGAN: [loss=ce, synthetic=acgan], ISDA: [loss=isda, synthetic=acgan]}]
columns: [{digits: []}]
cells: [{row: ACGAN, needs: {generator: acgan}}, {row: ISDA, needs: {generator: acgan}}]
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Return the options of a sweep of a table with generators, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(TABLE)
    return SweepOptions("own.yaml")


@pytest.fixture
def plan(options):
    return plan_runs(load_table(options.table), compose)


@pytest.fixture
def generator(plan):
    """Return the one generator run that the plan needs."""
    (run,) = generators_of(plan, compose, []).values()
    return run


@pytest.fixture
def runs(plan):
    return [run for runs in plan.values() for run in runs]


def test_one_generator_serves_all_runs_that_differ_in_seed_and_loss(plan, runs):
    ((name, run),) = generators_of(plan, compose, ["runs_dir=elsewhere"]).items()
    assert name == run.run_id == runs[2].settings["synthetic"]["generator"]
    assert name.startswith("acgan-digits-s0-")
    assert (run.is_generator, runs[2].is_generator) == (True, False)
    assert run.settings["dataset"]["holdout"] == 100, "it sees what the classifier is trained on, and nothing else"
    assert run.settings["runs_dir"] == "elsewhere"


def test_sweep_makes_the_generator_first_and_once(options, generator, runs, tmp_path, capfd):
    title, of_generator, *_ = status(options, compose)
    assert numbers_of(title, "table=own") == [0, 6]
    assert generator.run_id in of_generator
    command = training(tmp_path, [generator, *runs])
    assert sweep_here(options, compose, command) == 0
    assert started(options) == [run.run_id for run in (generator, *runs)]
    assert numbers_of(capfd.readouterr().out, "table=own") == [7, 7, 7]
    title, *others = status(options, compose)
    assert numbers_of(title, "table=own") == [6, 6]
    assert generator.run_id not in " ".join(others)
    assert sweep_here(options, compose, command) == 0
    assert len(started(options)) == 7


def test_runs_whose_generator_failed_are_not_started_and_the_others_are(options, generator, runs, tmp_path, capfd):
    assert sweep_here(options, compose, training(tmp_path, [generator, *runs], {generator.run_id: 1})) == 1
    assert started(options) == [run.run_id for run in (generator, *runs[:2])]
    said = capfd.readouterr().out.rpartition("table=own")[2]
    assert [run.run_id in said for run in (generator, *runs)] == [True, False, False, *[True] * 4]


def test_no_generator_is_made_where_all_that_train_on_its_images_are_kept(options, plan, generator, finish, tmp_path):
    for cell, runs in plan.items():
        for run in runs if cell.generator else ():
            finish(run, 2.5, path=tmp_path / "results" / "own" / cell.slug / f"{run.seed}.json")
    basic = next(iter(plan.values()))
    assert sweep_here(options, compose, training(tmp_path, [generator, *basic])) == 0
    assert started(options) == [run.run_id for run in basic]


def test_generator_that_the_user_names_is_not_made_and_must_be_there(options):
    options.table, options.set = "demo", ["synthetic=acgan", "synthetic.generator=mine"]
    assert generators_of(plan_runs(load_table("demo"), compose, options.set), compose, []) == {}
    with pytest.raises(UserError, match=r"synthetic\.generator=mine"):
        missing(options, compose)


def test_runs_that_have_only_their_last_acts_left_wait_for_no_generator(options, runs, generator, finish, tmp_path):
    for run in runs:
        path = finish(run, 2.0, path=folder_of(options, run) / "result.json")
        (path.parent / "checkpoint-000000005.pt").touch()
    what = missing(options, compose)
    assert all(what.unmet(run) == [] for run in what.runs)
    assert sweep_here(options, compose, training(tmp_path, [generator, *runs])) == 0
    assert started(options) == [run.run_id for run in runs]


def test_result_of_another_generator_is_refused(options, generator, runs, tmp_path, capfd):
    folder_of(options, generator).mkdir(parents=True)
    write_result(folder_of(options, generator) / "result.json", generator_result("other"))
    assert sweep_here(options, compose, training(tmp_path, [generator, *runs])) == 1
    failed = capfd.readouterr().out.rpartition("table=own")[2]
    assert re.search(rf"{generator.run_id}.*other", failed)


def test_generator_is_trained_where_its_classifiers_are(options):
    options.set = ["compute.device=cpu", "data_dir='the\\'re'", "tracking=offline", "tracking.project=mine"]
    plan = plan_runs(load_table(options.table), compose, options.set)
    (run,) = generators_of(plan, compose, []).values()
    tracking = run.settings["tracking"]
    assert (run.settings["compute"]["device"], run.settings["data_dir"]) == ("cpu", "the're")
    assert (tracking["mode"], tracking["project"]) == ("offline", "mine")
    plan = plan_runs(load_table(options.table), compose, ["tracking=none"])
    (run,) = generators_of(plan, compose, []).values()
    assert run.settings["tracking"]["mode"] == "none"


def test_result_of_a_generator_comes_back_and_one_of_another_kind_or_schema_is_refused(tmp_path, demo, finish):
    path = tmp_path / "result.json"
    result = generator_result("g")
    write_result(path, result)
    assert read_generator_result(path) == result
    with pytest.raises(OtherKindError, match=re.escape(str(path))):
        read_result(path)
    path.write_text(json.dumps({**as_json(result), "schema": "generator-9"}))
    with pytest.raises(RecordError, match="generator-9"):
        read_generator_result(path)
    path.write_text(json.dumps({**as_json(result), "kind": "result"}))
    with pytest.raises(RecordError, match=re.escape(str(path))):
        read_generator_result(path)
    classifier = finish(next(iter(demo[1].values()))[0], 3.0)
    with pytest.raises(RecordError, match=re.escape(str(classifier))):
        read_generator_result(classifier)
    path.write_text("[1]")
    with pytest.raises(RecordError, match=re.escape(str(path))):
        read_generator_result(path)
