import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.options import parse_options
from isda_repro.tables.records import EpochRecord, as_json
from isda_repro.tables.status import status
from isda_repro.tables.sweep import SweepOptions, _Sweep, sweep

TRAINER = textwrap.dedent("""
    import sys
    from pathlib import Path

    from conftest import make_result
    from omegaconf import OmegaConf
    from isda_repro import config
    from isda_repro.tables.plan import Run
    from isda_repro.tables.records import write_result

    path = Path(sys.argv[1])
    cfg = config.read_frozen(path)
    assert Path(cfg.runs_dir) == path.parent.parent
    with (path.parent.parent / "started.txt").open("a") as log:
        log.write(cfg.run_id + "\\n")
    if "fails" in sys.argv[0] and cfg.choice.loss == "ce" and cfg.seed > 0:
        sys.exit(3 if cfg.seed == 1 else 0)
    run = Run(cfg.seed, cfg.run_id, OmegaConf.to_container(cfg))
    write_result(path.parent / "result.json", make_result(run, [2.0 + cfg.seed]))
""")


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A command that trains at once; "fails" in its name: seed 1 of CE fails, seed 2 leaves no result."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(config.CONF_DIR.parent)]))

    def command(name="works"):
        path = tmp_path / f"{name}.py"
        path.write_text(TRAINER)
        return [sys.executable, str(path)]

    return command


@pytest.fixture
def options(tmp_path):
    return SweepOptions(table="demo", runs_dir=str(tmp_path / "a 'run' folder"))


def started(options):
    path = Path(options.runs_dir) / "started.txt"
    return path.read_text().split() if path.exists() else []


def all_runs(demo):
    return [run for runs in demo[1].values() for run in runs]


def folder_of(options, run):
    return Path(options.runs_dir) / run.run_id


def test_the_whole_table_runs_once_and_is_then_skipped(demo, options, trainer, capfd):
    assert sweep(options, config.compose, trainer()) == 0
    runs = all_runs(demo)
    assert started(options) == [run.run_id for run in runs]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"[1/6] {runs[0].run_id}: starts"
    assert lines[1].startswith(f"[1/6] {runs[0].run_id}: done, test error 2.00, after ")
    assert lines[-1] == "table=demo: 6 of 6 runs done, 6 started now"

    (folder_of(options, runs[4]) / "result.json").unlink()
    assert sweep(options, config.compose, trainer()) == 0
    assert started(options) == [run.run_id for run in runs] + [runs[4].run_id], "finished runs are skipped"
    lines = capfd.readouterr().out.splitlines()
    assert lines[1] == f"[2/6] {runs[1].run_id}: already done, test error 3.00"
    assert lines[-1] == "table=demo: 6 of 6 runs done, 1 started now"


def test_failed_runs_are_reported_and_the_others_still_run(demo, options, trainer, capfd):
    assert sweep(options, config.compose, trainer("fails")) == 1
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
    assert sweep(options, config.compose, trainer()) == 1
    assert started(options) == [last.run_id]
    out = capfd.readouterr().out
    assert "table=demo: 5 of 6 runs done, 1 started now\n" in out
    assert "delete the file and run again" in out


def test_a_run_that_died_before_its_last_acts_is_concluded(demo, options, trainer, finish, capfd):
    runs = all_runs(demo)
    for run in runs:
        finish(run, 2.0, path=folder_of(options, run) / "result.json")
    (folder_of(options, runs[2]) / "checkpoint-000000005.pt").touch()
    assert sweep(options, config.compose, trainer()) == 0
    assert started(options) == [runs[2].run_id]


def test_a_folder_that_cannot_be_used_fails_alone(demo, options, trainer, capfd):
    first, second, *others = all_runs(demo)
    folder_of(options, first).parent.mkdir()
    folder_of(options, first).write_text("a file where the folder belongs")
    folder_of(options, second).mkdir()
    (folder_of(options, second) / "config.yaml").write_bytes(b"\xff")
    assert sweep(options, config.compose, trainer()) == 1
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
    assert sweep(options, config.compose, trainer()) == 75
    assert len(started(options)) == 1
    assert ": done, test error 2.00, after" in capfd.readouterr().out


def test_a_sweep_that_would_begin_anew_each_time_is_refused(options):
    options.set = ["force=true"]
    with pytest.raises(UserError, match=r"force=true is for one run, by train\.py"):
        sweep(options, config.compose)


def test_runs_are_frozen_and_an_equal_file_is_left_alone(demo, options, trainer, finish):
    run, *others = all_runs(demo)
    for other in others:
        finish(other, 2.0, path=folder_of(options, other) / "result.json")
    sweep(options, config.compose, trainer())
    frozen = folder_of(options, run) / "config.yaml"
    assert config.read_frozen(frozen).run_id == run.run_id
    os.utime(frozen, (1, 1))
    (folder_of(options, run) / "result.json").unlink()
    sweep(options, config.compose, trainer())
    assert frozen.stat().st_mtime == 1
    (folder_of(options, run) / "result.json").unlink()
    options.data_dir = "elsewhere, 'with' {oddities}"
    sweep(options, config.compose, trainer())
    assert config.read_frozen(frozen).data_dir == options.data_dir
    assert config.read_frozen(frozen).run_id == run.run_id


def test_reduced_runs_are_others(demo, options, capfd):
    options.set, options.dry_run = ["recipe.epochs=2"], True
    assert sweep(options, config.compose) == 0
    out = capfd.readouterr().out
    assert out.count("would run") == 6
    assert not [run for run in all_runs(demo) if run.run_id in out]


def test_dry_run_says_and_touches_nothing(demo, options, finish, tmp_path, capfd):
    options.runs_dir, options.dry_run = str(tmp_path / "runs"), True
    runs = all_runs(demo)
    finish(runs[0], 2.5)
    before = sorted(tmp_path.rglob("*"))
    assert sweep(options, config.compose, ["false"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"[1/6] {runs[0].run_id}: already done, test error 2.50"
    assert lines[5] == f"[6/6] {runs[5].run_id}: would run python train.py {tmp_path}/runs/{runs[5].run_id}/config.yaml"
    assert lines[6] == "table=demo: 1 of 6 runs done"
    assert sorted(tmp_path.rglob("*")) == before


HEEDS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    from isda_repro.errors import StoppedError, one_sentence_errors
    from isda_repro.stopping import exit_code, heeding

    asked = []

    def take(number):
        asked.append(number)
        with Path(sys.argv[1]).open("a") as log:
            log.write(number.name + "\\n")

    with one_sentence_errors(), heeding(take):
        Path(sys.argv[1]).with_name("pid").write_text(str(os.getpid()))
        while not asked or sys.argv[2] == "ignores":
            time.sleep(0.05)
        raise StoppedError("saved", exit_code(asked[0]))
""")


def send_when_begun(pid, *numbers, run_too=False, between=0.0):
    """Send signals to the sweep, which is this process, when its run has written its pid."""

    def send():
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
        for number in numbers:
            for target in [os.getpid(), int(pid.read_text())] if run_too else [os.getpid()]:
                os.kill(target, number)
            time.sleep(between)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)]
)
@pytest.mark.parametrize("both", [False, True], ids=["to the sweep", "to both"])
def test_a_signal_reaches_the_run_once_and_ends_the_sweep(options, tmp_path, capfd, number, code, both):
    """A terminal and a cluster send it to both; a person, or a service, to the sweep alone."""
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    send_when_begun(pid, number, run_too=both)
    assert sweep(options, config.compose, [sys.executable, "-c", HEEDS, str(seen), "obeys"]) == code
    assert seen.read_text().split() == [signal.Signals(number).name]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    *_, how, last = capfd.readouterr().out.splitlines()
    assert how.startswith("[1/6] ")
    assert f": stopped with exit code {code} after " in how
    assert last.startswith("to go on: python scripts/sweep.py table=demo 'runs_dir=")


def test_a_run_that_stopped_by_itself_ends_the_sweep_and_is_no_failure(options, capfd):
    assert sweep(options, config.compose, [sys.executable, "-c", "raise SystemExit(75)"]) == 75
    out = capfd.readouterr().out
    assert "failed" not in out.lower()
    assert out.count("starts") == 1


def test_a_run_that_heeds_nothing_is_killed_by_the_third_signal(options, tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.stopping.ECHO_SECONDS", 0.0)
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    send_when_begun(pid, *[signal.SIGTERM] * 3, between=0.3)
    begin = time.monotonic()
    assert sweep(options, config.compose, [sys.executable, "-c", HEEDS, str(seen), "ignores"]) == 75
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_an_unknown_cluster_is_one_sentence(options):
    options.cluster = "slurm"
    with pytest.raises(UserError, match="there is no cluster=slurm; cluster= can be local"):
        sweep(options, config.compose)


def write_epochs(folder, *errors, torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        as_json(
            EpochRecord(
                epoch=epoch,
                step=epoch,
                lr=0.1,
                train_loss=1.0,
                train_error=1.0,
                test_loss=1.0,
                test_error=error,
                timing={},
            )
        )
        for epoch, error in enumerate(errors, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def test_status_of_each_cell(demo, options, finish, tmp_path):
    options.runs_dir = str(tmp_path / "runs")
    assert list(status(options, config.compose)) == [
        "table=demo: 0 of 6 runs done",
        "  ResNet-20 on digits, CE    not started",
        "  ResNet-20 on digits, ISDA  not started",
    ]
    runs = all_runs(demo)
    for run in runs[:4]:
        finish(run, 2.0)
    write_epochs(folder_of(options, runs[4]), 50.0, 4.125, torn='{"kind": "ep')
    write_epochs(folder_of(options, runs[5]))
    assert list(status(options, config.compose)) == [
        "table=demo: 4 of 6 runs done",
        "  ResNet-20 on digits, CE    done 3 of 3",
        "  ResNet-20 on digits, ISDA  done 1 of 3; seed 1: epoch 2 of 30, test error 4.12; seed 2: in its first epoch",
    ]
    (folder_of(options, runs[5]) / "metrics.jsonl").write_text("?\n")
    assert "metrics.jsonl, line 1: not JSON" in list(status(options, config.compose))[-1]


def test_options_are_typed():
    options = parse_options(SweepOptions, ["table=demo", "dry_run=true", "set=[recipe.epochs=2,model.dropout=0.3]"])
    assert options == SweepOptions(table="demo", dry_run=True, set=["recipe.epochs=2", "model.dropout=0.3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=demo", "jobs=4"], r"unknown option jobs=; there are table=, cluster=, dry_run=.*set=\[jobs=4\]"),
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
