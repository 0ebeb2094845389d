import os
import signal
import sys

import pytest
from sweeps import all_runs, folder_of, started

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.options import parse_options
from isda_repro.tables.local import _Sweep, sweep_here
from isda_repro.tables.plan import expand
from isda_repro.tables.specification import load_table
from isda_repro.tables.status import status
from isda_repro.tables.sweep import SweepOptions, sweep_command


def test_the_whole_table_runs_once_and_is_then_skipped(demo, options, trainer, capfd):
    assert sweep_here(options, config.compose, trainer()) == 0
    runs = all_runs(demo)
    assert started(options) == [run.run_id for run in runs]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"[1/6] {runs[0].run_id}: starts"
    assert lines[1].startswith(f"[1/6] {runs[0].run_id}: done, test error 2.00, after ")
    assert lines[-1] == "table=demo: 6 of 6 runs done, 6 started now"

    (folder_of(options, runs[4]) / "result.json").unlink()
    assert sweep_here(options, config.compose, trainer()) == 0
    assert started(options) == [run.run_id for run in runs] + [runs[4].run_id], "finished runs are skipped"
    lines = capfd.readouterr().out.splitlines()
    assert lines[1] == f"[2/6] {runs[1].run_id}: already done, test error 3.00"
    assert lines[-1] == "table=demo: 6 of 6 runs done, 1 started now"


def test_failed_runs_are_reported_and_the_others_still_run(demo, options, trainer, capfd):
    assert sweep_here(options, config.compose, trainer("fails")) == 1
    assert len(started(options)) == 6
    _, bad, forgetful, *_ = [run.run_id for run in all_runs(demo)]
    out = capfd.readouterr().out
    assert f"[2/6] {bad}: FAILED with exit code 3 after" in out
    assert f"[3/6] {forgetful}: FAILED without a result after" in out
    *_, summary, first, second = out.splitlines()
    assert summary == "table=demo: 4 of 6 runs done, 6 started now"
    assert first == f"failed: {bad} (exit code 3)"
    assert second.startswith(f"failed: {forgetful} (exit code 0, but no result: ")


def test_a_damaged_result_is_a_failure_and_not_run_over(demo, options, trainer, finish, capfd):
    run, last = all_runs(demo)[0], all_runs(demo)[5]
    for other in all_runs(demo)[:5]:
        finish(other, 2.0, path=folder_of(options, other) / "result.json")
    (folder_of(options, run) / "result.json").write_text("{")
    assert sweep_here(options, config.compose, trainer()) == 1
    assert started(options) == [last.run_id]
    out = capfd.readouterr().out
    assert "table=demo: 5 of 6 runs done, 1 started now\n" in out
    assert "delete the file and run again" in out


def test_a_run_that_died_before_its_last_acts_is_concluded(demo, options, trainer, finish, capfd):
    runs = all_runs(demo)
    for run in runs:
        finish(run, 2.0, path=folder_of(options, run) / "result.json")
    (folder_of(options, runs[2]) / "checkpoint-000000005.pt").touch()
    assert sweep_here(options, config.compose, trainer()) == 0
    assert started(options) == [runs[2].run_id]


def test_a_folder_that_cannot_be_used_fails_alone(demo, options, trainer, capfd):
    first, second, *others = all_runs(demo)
    folder_of(options, first).parent.mkdir()
    folder_of(options, first).write_text("a file where the folder belongs")
    folder_of(options, second).mkdir()
    (folder_of(options, second) / "config.yaml").write_bytes(b"\xff")
    assert sweep_here(options, config.compose, trainer()) == 1
    assert started(options) == [run.run_id for run in [second, *others]]
    out = capfd.readouterr().out
    assert f"[1/6] {first.run_id}: FAILED to start\n" in out
    assert f"failed: {first.run_id} (File exists: {folder_of(options, first)})" in out


def test_a_signal_between_two_runs_starts_no_other(demo, options, trainer, monkeypatch, capfd):
    how_it_went = _Sweep._how_it_went

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return how_it_went(self, *arguments)

    monkeypatch.setattr(_Sweep, "_how_it_went", signalled)
    assert sweep_here(options, config.compose, trainer()) == 75
    assert len(started(options)) == 1
    assert ": done, test error 2.00, after" in capfd.readouterr().out


def test_a_sweep_that_would_begin_anew_each_time_is_refused(options):
    options.set = ["force=true"]
    with pytest.raises(UserError, match=r"force=true is for one run, by train\.py"):
        sweep_here(options, config.compose)


def test_runs_are_frozen_and_an_equal_file_is_left_alone(demo, options, trainer, finish):
    run, *others = all_runs(demo)
    for other in others:
        finish(other, 2.0, path=folder_of(options, other) / "result.json")
    sweep_here(options, config.compose, trainer())
    frozen = folder_of(options, run) / "config.yaml"
    assert config.read_frozen(frozen).run_id == run.run_id
    os.utime(frozen, (1, 1))
    (folder_of(options, run) / "result.json").unlink()
    sweep_here(options, config.compose, trainer())
    assert frozen.stat().st_mtime == 1
    (folder_of(options, run) / "result.json").unlink()
    options.data_dir = "elsewhere, 'with' {oddities}"
    sweep_here(options, config.compose, trainer())
    assert config.read_frozen(frozen).data_dir == options.data_dir
    assert config.read_frozen(frozen).run_id == run.run_id


def test_reduced_runs_are_others(demo, options, capfd):
    options.set, options.dry_run = ["recipe.epochs=2"], True
    assert sweep_here(options, config.compose) == 0
    out = capfd.readouterr().out
    assert out.count("would run") == 6
    assert not [run for run in all_runs(demo) if run.run_id in out]


def test_dry_run_says_and_touches_nothing(demo, options, finish, tmp_path, capfd):
    options.runs_dir, options.dry_run = str(tmp_path / "runs"), True
    runs = all_runs(demo)
    finish(runs[0], 2.5)
    before = sorted(tmp_path.rglob("*"))
    assert sweep_here(options, config.compose, ["false"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"[1/6] {runs[0].run_id}: already done, test error 2.50"
    assert lines[5] == f"[6/6] {runs[5].run_id}: would run python train.py {tmp_path}/runs/{runs[5].run_id}/config.yaml"
    assert lines[6] == "table=demo: 1 of 6 runs done"
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_whose_results_are_kept_are_not_made_again(demo, options, trainer, finish, tmp_path, capfd):
    runs = all_runs(demo)
    options.results_dir = str(tmp_path / "results")
    finish(runs[0], 2.5, path=tmp_path / "results" / "demo" / "a cell" / "0.json")
    finish(runs[3], 3.5, path=tmp_path / "results" / "another table" / "a cell" / "0.json")
    (tmp_path / "results" / "demo" / "a cell" / "1.json").write_text("{")
    made = [run.run_id for run in (runs[1], runs[2], *runs[4:])]

    options.dry_run = True
    assert sweep_here(options, config.compose, trainer()) == 0
    lines = capfd.readouterr().out.splitlines()
    kept = f"the results of 2 runs are kept in {tmp_path}/results; results_dir=null makes these again"
    assert lines[0] == f"table=demo: {kept}"
    assert lines[1] == f"[1/6] {runs[0].run_id}: already done, test error 2.50"
    assert lines[-1] == "table=demo: 2 of 6 runs done"

    options.dry_run = False
    assert sweep_here(options, config.compose, trainer()) == 0
    assert started(options) == made
    assert capfd.readouterr().out.splitlines()[-1] == "table=demo: 6 of 6 runs done, 4 started now"

    options.results_dir = None
    assert sweep_command(options).endswith(" results_dir=null")
    assert sweep_here(options, config.compose, trainer()) == 0
    assert started(options) == [*made, runs[0].run_id, runs[3].run_id]


def own_table(tmp_path, needs="{column: ISDA}"):
    path = tmp_path / "own.yaml"
    path.write_text(f"""
title: one needs the other
metric: test_error_last10
seeds: [0, 1]
rows: [{{digits: [model=resnet20, dataset=digits]}}]
columns: [{{CE: loss=ce, ISDA: loss=isda}}]
cells: [{{column: CE, needs: {needs}}}]
""")
    return str(path)


def test_a_cell_waits_for_those_it_needs(options, tmp_path, trainer, capfd):
    options.table, options.jobs = own_table(tmp_path), 4
    assert sweep_here(options, config.compose, trainer()) == 0
    losses = [name.split("-")[3] for name in started(options)]
    assert losses == ["isda", "isda", "ce", "ce"]


def test_a_run_that_another_needs_must_be_here_unless_both_are_kept(options, tmp_path, trainer, finish, capfd):
    options.table, options.results_dir = own_table(tmp_path), str(tmp_path / "results")
    table = load_table(options.table)
    plan = expand(table, config.compose)
    by_loss = {cell.column[0]: runs for cell, runs in plan.items()}
    for run in by_loss["ISDA"]:
        finish(run, 2.5, path=tmp_path / "results" / "own" / "isda" / f"{run.seed}.json")
    finish(by_loss["CE"][0], 2.5, path=tmp_path / "results" / "own" / "ce" / "0.json")
    assert "table=own: 1 of 4 runs done, 1 of them kept in" in next(iter(status(options, config.compose)))
    finish(by_loss["CE"][1], 2.5, path=tmp_path / "results" / "own" / "ce" / "1.json")
    assert "table=own: 4 of 4 runs done, 4 of them kept in" in next(iter(status(options, config.compose)))
    assert sweep_here(options, config.compose, trainer()) == 0
    assert started(options) == []
    (tmp_path / "results" / "own" / "ce" / "1.json").unlink()
    assert sweep_here(options, config.compose, trainer()) == 0
    assert [name.split("-")[3] for name in started(options)] == ["isda", "isda", "ce"]


def test_and_is_not_begun_where_one_of_those_failed(options, tmp_path, capfd):
    options.table = own_table(tmp_path)
    assert sweep_here(options, config.compose, [sys.executable, "-c", "raise SystemExit(3)"]) == 1
    out = capfd.readouterr().out
    assert out.count(": starts") == 2
    assert out.count("not started, since it needs resnet20-digits-baseline-isda-s0-") == 2


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        ("{column: Focal}", r"own\.yaml: cells: row \*, column CE: needs: row \*, column Focal fits no cell"),
        ("{column: CE}", "needs: digits, CE needs, directly or by others, itself"),
        ("{cell: CE}", "needs has the unknown key cell; it can have row, column"),
        ("ISDA", "needs must be a mapping with some of: row, column"),
    ],
)
def test_a_need_that_cannot_be_is_one_sentence(options, tmp_path, needs, sentence):
    options.table = own_table(tmp_path, needs)
    with pytest.raises(UserError, match=sentence):
        sweep_here(options, config.compose)


def test_options_are_typed():
    options = parse_options(SweepOptions, ["table=demo", "dry_run=true", "set=[recipe.epochs=2,model.dropout=0.3]"])
    assert options == SweepOptions(table="demo", dry_run=True, set=["recipe.epochs=2", "model.dropout=0.3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=demo", "job=4"], r"unknown option job=; there are table=, cluster=, dry_run=.*set=\[job=4\]"),
        (["table=demo", "jobs=many"], "jobs=many cannot be read"),
        (["table=demo", "recipe.epochs=2"], r"settings of the runs go into set=\[recipe\.epochs=2\]"),
        (["table=demo", "dryrun"], "'dryrun' is not an option"),
        (["table=demo", "dry_run=perhaps"], "dry_run=perhaps cannot be read"),
        (["table=demo", "set=recipe.epochs=2"], r"set= takes a list: set=\[a=1,b=2\]"),
        (["table=[demo"], r"table=\[demo cannot be read"),
        ([], "table= is missing"),
    ],
)
def test_a_mistyped_option_is_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_options(SweepOptions, arguments)
    assert "\n" not in str(caught.value)
