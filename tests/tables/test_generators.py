"""Runs that train on generated images: a sweep makes their generators first, and status says how far these are."""

import json
import sys
from pathlib import Path

import pytest
from sweeps import started

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.tables.generator_records import GeneratorEpoch, GeneratorResult
from isda_repro.tables.generators import generators_of
from isda_repro.tables.local import sweep_here
from isda_repro.tables.plan import expand
from isda_repro.tables.records import as_json, write_result
from isda_repro.tables.specification import load_table
from isda_repro.tables.status import status
from isda_repro.tables.sweep import missing

TRAINS_BOTH = """
import sys
from pathlib import Path
from isda_repro import config
from isda_repro.tables.generator_records import GeneratorResult
from isda_repro.tables.records import write_result
path = Path(sys.argv[1])
cfg = config.read_any_frozen(path)
if "gan" in cfg:
    with (path.parent.parent / "started.txt").open("a") as log:
        log.write(cfg.run_id + "\\n")
    assert "fails" not in sys.argv[0]
    write_result(path.parent / "result.json", GeneratorResult(
        run_id=cfg.run_id, request={}, choices={}, epochs=7, steps=1, generator_steps=1, generators=1, parameters=1,
        train_images=1, curves={}, timing={}, segments=[], environment={}))
    sys.exit(0)
"""


@pytest.fixture
def own(options, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("""
title: two of the rows train on generated images
metric: test_error_last10
seeds: [0, 1]
set: [model=resnet20, dataset=digits, dataset.holdout=100]
rows: [{Basic: loss=ce, ACGAN: [loss=ce, synthetic=acgan], ISDA: [loss=isda, synthetic=acgan]}]
columns: [{digits: []}]
cells: [{row: ACGAN, needs: {generator: acgan}}, {row: ISDA, needs: {generator: acgan}}]
""")
    options.table = str(path)
    return options


@pytest.fixture
def both(trainer, tmp_path):
    """A command that trains either kind at once."""

    def command(name="works"):
        trainer(name)
        path = tmp_path / f"{name}.py"
        path.write_text(TRAINS_BOTH + path.read_text())
        return [sys.executable, str(path)]

    return command


def plan_of(options):
    table = load_table(options.table)
    return expand(table, config.compose_any, [f"runs_dir='{options.runs_dir.replace(chr(39), chr(92) + chr(39))}'"])


def test_one_generator_serves_all_runs_that_differ_in_seed_and_loss(own):
    generators = generators_of(plan_of(own), config.compose_any, ["runs_dir=elsewhere"])
    assert len(generators) == 1
    ((name, run),) = generators.items()
    assert name.startswith("acgan-digits-s0-")
    assert run.is_generator
    assert run.settings["dataset"]["holdout"] == 100, "it sees what the classifier is trained on, and nothing else"
    assert run.settings["runs_dir"] == "elsewhere"


def test_a_sweep_makes_it_first_and_once(own, both, capfd):
    (generator,) = generators_of(plan_of(own), config.compose_any, [])
    lines = list(status(own, config.compose_any))
    assert lines[:2] == ["table=own: 0 of 6 runs done", f"  generator {generator}: not started"]
    assert sweep_here(own, config.compose_any, both()) == 0
    assert started(own)[0] == generator
    assert len(started(own)) == 7
    out = capfd.readouterr().out
    assert f"[1/7] {generator}: done, 7 epochs, after" in out
    assert "table=own: 7 of 7 runs done, 7 started now" in out
    assert list(status(own, config.compose_any))[:2] == [
        "table=own: 6 of 6 runs done",
        "  ACGAN, digits  done 2 of 2",
    ] or (list(status(own, config.compose_any))[1].startswith("  Basic, digits"))
    assert sweep_here(own, config.compose_any, both()) == 0
    assert len(started(own)) == 7


def test_runs_whose_generator_failed_are_not_begun_and_the_others_are(own, both, capfd):
    assert sweep_here(own, config.compose_any, both("fails")) == 1
    (generator,) = generators_of(plan_of(own), config.compose_any, [])
    out = capfd.readouterr().out
    assert out.count(f"not started, since it needs {generator}, which failed") == 4
    assert f"failed: {generator}" in out


def test_nothing_that_trains_on_generated_images_is_left_to_do_no_generator_is_made(own, both, finish, tmp_path):
    own.results_dir = str(tmp_path / "results")
    plan = plan_of(own)
    for cell, runs in plan.items():
        for run in runs:
            if cell.generator:
                finish(run, 2.5, path=tmp_path / "results" / "own" / cell.slug / f"{run.seed}.json")
    assert sweep_here(own, config.compose_any, both()) == 0
    assert [name.split("-")[0] for name in started(own)] == ["resnet20", "resnet20"]


def test_one_that_the_user_names_is_the_users_and_must_be_there(own, both):
    own.table = "demo"
    own.set = ["synthetic=acgan", "synthetic.generator=mine"]
    assert generators_of(expand(load_table("demo"), config.compose_any, own.set), config.compose_any, []) == {}
    with pytest.raises(UserError, match=r"synthetic\.generator=mine is not in .*, and this sweep does not train it"):
        sweep_here(own, config.compose_any, both())
    assert started(own) == []


def test_runs_that_have_only_their_last_acts_left_wait_for_no_generator(own, both, finish):
    plan = plan_of(own)
    for runs in plan.values():
        for run in runs:
            path = finish(run, 2.0, path=Path(own.runs_dir) / run.run_id / "result.json")
            (path.parent / "checkpoint-000000005.pt").touch()
    assert sweep_here(own, config.compose_any, both()) == 0
    assert len(started(own)) == 6
    what = missing(own, config.compose_any)
    assert all(what.unmet(run) == [] for run in what.runs), "nor does a job"


def test_status_says_how_far_a_generator_is_and_a_result_of_another_is_refused(own, both, capfd):
    (run,) = generators_of(plan_of(own), config.compose_any, []).values()
    folder = Path(own.runs_dir) / run.run_id
    folder.mkdir(parents=True)
    scores = {"discriminator_loss": 0.5, "real_score": 0.6, "fake_score": 0.4}
    epoch = GeneratorEpoch(epoch=7, step=9, generator_steps=9, timing={"train": 2.0}, **scores)
    (folder / "metrics.jsonl").write_text(json.dumps(as_json(epoch)) + "\n")
    assert list(status(own, config.compose_any))[1] == (
        f"  generator {run.run_id}: interrupted, epoch 7 of 100, 3:06 left"
    )
    foreign = GeneratorResult(
        run_id="other", request={}, choices={}, epochs=7, steps=1, generator_steps=1, generators=1, parameters=1,
        train_images=1, curves={}, timing={}, segments=[], environment={},
    )  # fmt: skip
    write_result(folder / "result.json", foreign)
    assert sweep_here(own, config.compose_any, both()) == 1
    assert "it is the result of other" in capfd.readouterr().out


def test_a_generator_is_trained_where_its_classifiers_are(own):
    own.set = ["compute.device=cpu", "data_dir=there", "tracking.project=mine"]
    plan = expand(load_table(own.table), config.compose_any, own.set)
    (run,) = generators_of(plan, config.compose_any, []).values()
    found = run.settings
    assert (found["compute"]["device"], found["data_dir"], found["tracking"]["project"]) == ("cpu", "there", "mine")
