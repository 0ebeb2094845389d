"""Sweeps: the runs that are started, their order, and those that are skipped, refused or reported as failed."""

import json
import os
import shlex
import signal
import textwrap

import pytest
from sweeps import all_runs, compose, folder_of, numbers_of, one_needs_the_other, started, training

from isda_repro import config
from isda_repro.config.options import parse_options
from isda_repro.errors import UserError
from isda_repro.experiments.plan import Run, select_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.exit_status import ExitStatus, write_exit_status
from isda_repro.sweeps.local import sweep_here
from isda_repro.sweeps.status import cancel, status
from isda_repro.sweeps.sweep import SweepOptions, missing, sweep_command, write_frozen_runs


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Return the options of a sweep of the demo into a folder whose name has quotes and spaces."""
    monkeypatch.chdir(tmp_path)
    return SweepOptions("demo", runs_dir="a 'run' folder")


def names(runs):
    return [run.run_id for run in runs]


def test_table_runs_once_and_finished_runs_are_skipped(demo, options, tmp_path, capfd):
    runs, handler = all_runs(demo), signal.getsignal(signal.SIGTERM)
    command = training(tmp_path, runs)
    assert sweep_here(options, compose, command) == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    assert started(options) == names(runs)
    assert all((folder_of(options, run) / "result.json").exists() for run in runs)
    out = capfd.readouterr().out
    assert numbers_of(out, "table=demo") == [6, 6, 6]
    assert all(any(run.run_id in line and f" {2 + run.seed}.00" in line for line in out.splitlines()) for run in runs)

    (folder_of(options, runs[4]) / "result.json").unlink()
    assert sweep_here(options, compose, command) == 0
    assert started(options) == names([*runs, runs[4]])
    assert numbers_of(capfd.readouterr().out, "table=demo") == [6, 6, 1]


def failures(out):
    """Return the lines below the count, which list the failed runs."""
    return out.rpartition("table=demo")[2].splitlines()[1:]


def test_failed_runs_are_reported_and_the_others_still_run(demo, options, tmp_path, capfd):
    runs = all_runs(demo)
    ended = json.dumps({"exit_code": 3, "said": "the loss is not finite"})
    command = training(tmp_path, runs, {runs[1].run_id: ended, runs[2].run_id: 0, runs[3].run_id: 4})
    folder_of(options, runs[3]).mkdir(parents=True)
    write_exit_status(folder_of(options, runs[3]), ExitStatus(75, "stopped, of an earlier attempt"))
    assert sweep_here(options, compose, command) == 1
    assert started(options) == names(runs)
    out = capfd.readouterr().out
    assert numbers_of(out, "table=demo") == [3, 6, 6]
    bad, forgetful, other = failures(out)
    assert runs[1].run_id in bad
    assert runs[2].run_id in forgetful
    assert "3: the loss is not finite" in bad
    assert runs[3].run_id in other
    assert "earlier" not in other


def test_damaged_or_foreign_result_is_a_failure_and_is_not_overwritten(demo, options, tmp_path, finish, capfd):
    damaged, foreign, *_, last = runs = all_runs(demo)
    for run in runs[:5]:
        finish(run, 2.0, path=folder_of(options, run) / "result.json")
    (folder_of(options, damaged) / "result.json").write_text("{")
    finish(runs[4], 2.0, path=folder_of(options, foreign) / "result.json")
    assert sweep_here(options, compose, training(tmp_path, runs)) == 1
    assert started(options) == [last.run_id]
    assert (folder_of(options, damaged) / "result.json").read_text() == "{"
    out = capfd.readouterr().out
    assert numbers_of(out, "table=demo") == [4, 6, 1]
    assert [run.run_id in line for run, line in zip((damaged, foreign), failures(out), strict=True)] == [True, True]


def test_run_with_checkpoints_beside_its_result_is_started_again(demo, options, finish, tmp_path):
    """The process died after it wrote the result and before it removed the checkpoints."""
    runs = all_runs(demo)
    for run in runs:
        finish(run, 2.0, path=folder_of(options, run) / "result.json")
    (folder_of(options, runs[2]) / "checkpoint-000000005.pt").touch()
    assert sweep_here(options, compose, training(tmp_path, runs)) == 0
    assert started(options) == [runs[2].run_id]


def test_log_that_is_a_link_fails_alone(demo, options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("isda_repro.sweeps.local._visible", list)
    options.jobs = 2
    first, second, *others = runs = all_runs(demo)
    folder_of(options, second).mkdir(parents=True)
    (folder_of(options, second) / "log.txt").symlink_to(tmp_path / "elsewhere")
    assert sweep_here(options, compose, training(tmp_path, runs)) == 1
    assert sorted(started(options)) == sorted(names([first, *others]))
    (failed,) = failures(capfd.readouterr().out)
    assert "log.txt" in failed
    assert not (tmp_path / "elsewhere").exists()


def test_folder_that_cannot_be_used_fails_alone(demo, options, tmp_path, capfd):
    first, second, *others = runs = all_runs(demo)
    folder_of(options, first).parent.mkdir()
    folder_of(options, first).write_text("a file where the folder belongs")
    folder_of(options, second).mkdir()
    (folder_of(options, second) / "config.yaml").write_bytes(b"\xff")
    assert sweep_here(options, compose, training(tmp_path, runs)) == 1
    assert started(options) == names([second, *others])
    (failed,) = failures(capfd.readouterr().out)
    assert str(folder_of(options, first)) in failed


def test_signal_that_comes_when_a_run_ends_starts_no_other(demo, options, tmp_path):
    command = training(tmp_path, all_runs(demo))
    program = tmp_path / "trainer.py"
    begin = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    program.write_text(f"{begin}{program.read_text()}\nos.kill(os.getppid(), signal.SIGTERM)\n")
    assert sweep_here(options, compose, command) == 75
    assert started(options) == [all_runs(demo)[0].run_id]
    assert (folder_of(options, all_runs(demo)[0]) / "result.json").exists()


@pytest.mark.parametrize("code", [75, 130])
def test_run_that_stopped_by_itself_ends_the_sweep_and_is_no_failure(demo, options, tmp_path, capfd, code):
    runs = all_runs(demo)
    assert sweep_here(options, compose, training(tmp_path, runs, dict.fromkeys(names(runs), code))) == code
    assert started(options) == [runs[0].run_id]
    assert sweep_command(options) in capfd.readouterr().out


def test_sweep_of_runs_that_begin_anew_each_time_is_refused(options):
    options.set = ["force=true"]
    with pytest.raises(UserError, match="force=true"):
        missing(options, compose)


def test_runs_are_frozen_with_the_folders_and_an_equal_file_is_left_alone(demo, options, tmp_path, finish):
    run, *others = all_runs(demo)
    options.runs_dir = str(tmp_path / "a 'run' folder")
    for other in others:
        finish(other, 2.0, path=folder_of(options, other) / "result.json")
    command = training(tmp_path, [run])
    sweep_here(options, config.compose, command)
    frozen = folder_of(options, run) / "config.yaml"
    assert config.read_frozen(frozen).run_id == run.run_id
    assert config.read_frozen(frozen).runs_dir == options.runs_dir
    os.utime(frozen, (1, 1))
    (folder_of(options, run) / "result.json").unlink()
    sweep_here(options, config.compose, command)
    assert frozen.stat().st_mtime == 1
    (folder_of(options, run) / "result.json").unlink()
    options.data_dir = "elsewhere, 'with' {oddities}"
    sweep_here(options, config.compose, command)
    assert config.read_frozen(frozen).data_dir == options.data_dir
    assert config.read_frozen(frozen).run_id == run.run_id


def test_dry_run_names_what_would_run_and_changes_nothing(demo, options, finish, tmp_path, capfd):
    done, *others = runs = all_runs(demo)
    options.dry_run = True
    finish(done, 2.5, path=folder_of(options, done) / "result.json")
    before = sorted(tmp_path.rglob("*"))
    assert sweep_here(options, compose, ["false"]) == 0
    out = capfd.readouterr().out
    assert numbers_of(out, "table=demo") == [1, 6]
    would_run = [str(folder_of(options, run) / "config.yaml") in shlex.split(out.replace(":", " ")) for run in runs]
    assert would_run == [False, *(True for _ in others)]
    options.set = ["recipe.epochs=2"]
    assert sweep_here(options, compose, ["false"]) == 0
    out = capfd.readouterr().out
    assert out.count("config.yaml") == 6
    assert not [run for run in runs if run.run_id in out], "reduced runs are other runs"
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_whose_results_are_kept_are_not_made_again(demo, options, finish, tmp_path, capfd):
    runs = all_runs(demo)
    options.results_dir = "kept here"
    finish(runs[0], 2.5, path=tmp_path / "kept here" / "demo" / "a cell" / "0.json")
    finish(runs[3], 3.5, path=tmp_path / "kept here" / "another table" / "a cell" / "0.json")
    (tmp_path / "kept here" / "demo" / "a cell" / "1.json").write_text("{")
    made, command = names([runs[1], runs[2], *runs[4:]]), training(tmp_path, runs)

    options.dry_run = True
    assert sweep_here(options, compose, command) == 0
    said = capfd.readouterr()
    assert numbers_of(said.out, "table=demo") == [2, 6]
    assert "kept here/demo/a cell/1.json" in said.err
    options.dry_run = False
    assert sweep_here(options, compose, command) == 0
    assert started(options) == made
    assert numbers_of(capfd.readouterr().out, "table=demo") == [6, 6, 4]
    assert numbers_of(next(iter(status(options, compose))), "table=demo") == [6, 6, 2]
    options.results_dir = None
    assert sweep_here(options, compose, command) == 0
    assert started(options) == [*made, runs[0].run_id, runs[3].run_id]


@pytest.fixture
def own(options, tmp_path):
    options.table = "own.yaml"
    return one_needs_the_other(tmp_path / "own.yaml")


def chosen_of(name, *options):
    """Return the cells and seeds that ``only=`` and ``seeds=`` select from a table: labels -> seeds."""
    table = load_table(name)
    plan = {cell: tuple(Run(seed, "", {}) for seed in cell.seeds) for cell in table.cells}
    typed = parse_options(SweepOptions, [f"table={name}", *options])
    part = select_runs(table, plan, typed.only, typed.seeds)
    return {(*cell.row, *cell.column): [run.seed for run in runs] for cell, runs in part.items()}


NEXT, DENSE = "ResNeXt-29, 8x64d", "DenseNet-BC-190-40"


@pytest.mark.parametrize(
    ("table", "options", "expected"),
    [
        ("demo", [], {("ResNet-20 on digits", loss): [0, 1, 2] for loss in ("CE", "ISDA")}),
        ("demo", ["only=[ISDA]", "seeds=[2,0]"], {("ResNet-20 on digits", "ISDA"): [0, 2]}),
        ("demo", ["only=[ISDA,CE]", "seeds=[1]"], {("ResNet-20 on digits", loss): [1] for loss in ("CE", "ISDA")}),
        (
            "table2",
            ["only=[ISDA,'ResNeXt-29, 8x64d',ResNet-32,CIFAR-100]", "seeds=[1]"],
            {(network, "CIFAR-100", "ISDA"): [1] for network in ("ResNet-32", NEXT)},
        ),
        ("table2", [f"only=[{DENSE},Basic,CIFAR-10]"], {(DENSE, "CIFAR-10", "Basic"): [0]}),
        (
            "table2",
            [f"only=[{DENSE},ResNet-32,Basic,CIFAR-10]", "seeds=[2]"],
            {("ResNet-32", "CIFAR-10", "Basic"): [2]},
        ),
        ("lambda_small_data", ["only=[CIFAR-10,'1,000 images',0.1]"], {("CIFAR-10", "1,000 images", "0.1"): [0]}),
        ("odd.yaml", ["only=['a=1, [b]','''c'': {d}']"], {("a=1, [b]", "'c': {d}"): [0]}),
        ("odd.yaml", ["only=[both]"], {("both", "CE"): [0], ("both", "'c': {d}"): [0], ("a=1, [b]", "both"): [0]}),
        ("odd.yaml", ["only=[both,CE]"], {("both", "CE"): [0]}),
    ],
)
def test_part_of_a_table_is_chosen_by_labels_and_seeds(tmp_path, monkeypatch, table, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.yaml").write_text(
        textwrap.dedent("""
        title: labels that are odd, and one on both axes
        metric: test_error_last10
        seeds: [0]
        rows: [{"a=1, [b]": loss.lambda_0=1, both: loss.lambda_0=2}]
        columns: [{CE: loss=ce, "'c': {d}": loss=isda, both: loss=focal}]
        paper: {"a=1, [b]": [1, 1, 1], both: [1, 1, null]}
        """)
    )
    assert chosen_of(table, *options) == expected


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (["only=[ResNet-23]"], ["[ResNet-23]", "ResNet-32", "'ResNeXt-29, 8x64d'", "CIFAR-10", "Basic"]),
        (["only=[ResNeXt-29, 8x64d]"], ["[ResNeXt-29]"]),
        (["only=ISDA"], ["only=ISDA"]),
        (["only=null"], ["only=null"]),
        (["seeds=[0,3]"], ["[3]", "[0,1,2]"]),
        (["seeds=[1]", f"only=[{DENSE}]"], ["[1]", "[0]"]),
        (["seeds=0"], ["seeds=0"]),
        (["seeds=[one]"], ["seeds=[one]"]),
    ],
)
def test_unknown_part_of_a_table_is_named_with_the_known_ones(options, tokens):
    with pytest.raises(UserError) as caught:
        chosen_of("table2", *options)
    assert [token for token in tokens if token not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_labels_that_no_cell_has_together_are_refused():
    with pytest.raises(UserError, match="Basic"):
        chosen_of("table4", "only=[Basic,Wide-ResNet-28-10]")


def test_chosen_runs_are_made_and_those_before_them_that_they_need(options, own, tmp_path, capfd):
    options.only, options.seeds = ["CE"], [1]
    command, (_, chosen) = training(tmp_path, [*own["CE"], *own["ISDA"]]), own["CE"]
    title, *others = status(options, compose)
    assert numbers_of(title, "table=own") == [0, 1]
    assert [any(name in line for line in others) for name in names(own["ISDA"])] == [True, True]
    assert sweep_here(options, compose, command) == 0
    assert started(options) == names([*own["ISDA"], chosen])
    assert numbers_of(capfd.readouterr().out, "table=own") == [3, 3, 3]
    title, *others = status(options, compose)
    assert numbers_of(title, "table=own") == [1, 1]
    assert not any(name in line for line in others for name in names(own["ISDA"]))
    options.only, options.seeds = ["ISDA"], []
    assert sweep_here(options, compose, command) == 0
    assert numbers_of(capfd.readouterr().out, "table=own") == [2, 2]
    assert len(started(options)) == 3, "nothing that is not chosen is made"


def test_kept_run_needs_nothing_that_is_not_chosen(options, own, tmp_path, finish):
    finish(own["CE"][1], 2.5, path=tmp_path / "results" / "own" / "ce" / "1.json")
    options.only, options.seeds = ["CE"], [1]
    assert sweep_here(options, compose, training(tmp_path, [])) == 0
    assert started(options) == []


@pytest.mark.parametrize("act", [status, cancel])
@pytest.mark.parametrize("part", [{"only": ["CE"]}, {"seeds": [0]}])
def test_part_of_all_tables_is_refused(options, act, part):
    with pytest.raises(UserError, match="table=all"):
        list(act(SweepOptions("all", **part), compose))


def test_cell_waits_for_those_it_needs(options, own, tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.sweeps.local._visible", list)
    options.jobs = 4
    assert sweep_here(options, compose, training(tmp_path, [*own["CE"], *own["ISDA"]])) == 0
    assert set(started(options)[:2]) == set(names(own["ISDA"]))
    assert set(started(options)[2:]) == set(names(own["CE"]))


def test_kept_runs_are_counted_among_those_that_are_chosen(options, own, tmp_path, finish):
    for run in [*own["ISDA"], *own["CE"]]:
        finish(run, 2.5, path=tmp_path / "results" / "own" / run.config.choice.loss / f"{run.seed}.json")
    options.only = ["CE"]
    assert numbers_of(next(iter(status(options, compose))), "table=own") == [2, 2, 2]


def test_kept_run_that_another_needs_is_made_again_unless_both_are_kept(options, own, tmp_path, finish):
    def kept(run):
        return tmp_path / "results" / "own" / run.config.choice.loss / f"{run.seed}.json"

    for run in [*own["ISDA"], own["CE"][0]]:
        finish(run, 2.5, path=kept(run))
    assert numbers_of(next(iter(status(options, compose))), "table=own") == [1, 4, 1]
    finish(own["CE"][1], 2.5, path=kept(own["CE"][1]))
    assert numbers_of(next(iter(status(options, compose))), "table=own") == [4, 4, 4]
    command = training(tmp_path, [*own["CE"], *own["ISDA"]])
    assert sweep_here(options, compose, command) == 0
    assert started(options) == []
    kept(own["CE"][1]).unlink()
    assert sweep_here(options, compose, command) == 0
    assert started(options) == names([*own["ISDA"], own["CE"][1]])


def test_run_is_not_started_where_one_that_it_needs_failed(options, own, tmp_path, capfd):
    runs = [*own["CE"], *own["ISDA"]]
    command = training(tmp_path, runs, dict.fromkeys(names(own["ISDA"]), 3))
    assert sweep_here(options, compose, command) == 1
    assert started(options) == names(own["ISDA"])
    said = capfd.readouterr().out.rpartition("table=own")[2]
    assert all(run.run_id in said for run in runs)


def test_no_frozen_run_is_written_over_what_is_no_file(demo, tmp_path):
    path = tmp_path / "config.yaml"
    path.symlink_to(os.devnull)
    with pytest.raises(OSError, match=r"config\.yaml"):
        write_frozen_runs(all_runs(demo)[0], path)
    assert path.is_symlink()
