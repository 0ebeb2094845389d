import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.options import parse_options
from isda_repro.tables.composed import Remembered
from isda_repro.tables.ending import Ending, note_ending
from isda_repro.tables.local import _Sweep, places, sweep_here
from isda_repro.tables.records import EpochRecord, as_json
from isda_repro.tables.status import cancel, status
from isda_repro.tables.sweep import SweepOptions, sweep_command

TRAINER = textwrap.dedent("""
    import sys
    from pathlib import Path

    from omegaconf import OmegaConf
    from synthetic import make_result
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
    assert sweep_here(options, config.compose, [sys.executable, "-c", HEEDS, str(seen), "obeys"]) == code
    assert seen.read_text().split() == [signal.Signals(number).name]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    *_, how, last = capfd.readouterr().out.splitlines()
    assert how.startswith("[1/6] ")
    assert f": stopped with exit code {code} after " in how
    assert last.startswith("to go on: python scripts/sweep.py table=demo 'runs_dir=")


def test_a_run_that_stopped_by_itself_ends_the_sweep_and_is_no_failure(options, capfd):
    assert sweep_here(options, config.compose, [sys.executable, "-c", "raise SystemExit(75)"]) == 75
    out = capfd.readouterr().out
    assert "failed" not in out.lower()
    assert out.count("starts") == 1


def test_a_run_that_heeds_nothing_is_killed_by_the_third_signal(options, tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.stopping.ECHO_SECONDS", 0.0)
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    send_when_begun(pid, *[signal.SIGTERM] * 3, between=0.3)
    begin = time.monotonic()
    assert sweep_here(options, config.compose, [sys.executable, "-c", HEEDS, str(seen), "ignores"]) == 75
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


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
        "  ResNet-20 on digits, ISDA  done 1 of 3; "
        "seed 1: interrupted, epoch 2 of 30, test error 4.12; seed 2: interrupted, in its first epoch",
    ]
    (folder_of(options, runs[5]) / "metrics.jsonl").write_text("?\n")
    assert "metrics.jsonl, line 1: not JSON" in list(status(options, config.compose))[-1]


def test_status_tells_running_failed_and_stopped_runs_apart(demo, options, tmp_path):
    options.runs_dir = str(tmp_path / "runs")
    runs = all_runs(demo)
    for run in runs[:5]:
        write_epochs(folder_of(options, run), 50.0)
    note_ending(folder_of(options, runs[0]), Ending(2, "out of memory with 128 images"))
    note_ending(folder_of(options, runs[1]), Ending(75, "SIGTERM: stopped and saved"))
    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    (folder_of(options, runs[2]) / "owner.json").write_text(json.dumps(owner))
    (folder_of(options, runs[3]) / "owner.json").write_text(json.dumps({**owner, "pid": 2**22 + 1}))
    (folder_of(options, runs[4]) / "owner.json").write_text(json.dumps({**owner, "host": "elsewhere"}))
    (folder_of(options, runs[0]) / "log.txt").touch()
    epoch = "epoch 1 of 30, test error 50.00"
    log = folder_of(options, runs[0]) / "log.txt"
    assert list(status(options, config.compose))[1:] == [
        f"  ResNet-20 on digits, CE    done 0 of 3; seed 0: failed: out of memory with 128 images (log: {log}); "
        f"seed 1: stopped, {epoch}; seed 2: running, {epoch}",
        f"  ResNet-20 on digits, ISDA  done 0 of 3; seed 0: interrupted, {epoch}; seed 1: running, {epoch}",
    ]
    os.utime(folder_of(options, runs[4]) / "owner.json", (1, 1))
    assert f"seed 1: interrupted, {epoch}" in list(status(options, config.compose))[2], "its heart beats no more"


def test_cancel_asks_the_runs_of_this_host_to_save(demo, options, tmp_path, capfd):
    options.runs_dir = str(tmp_path / "runs")
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", HEEDS, str(seen), "obeys"])
    while not pid.exists() or not pid.read_text():
        time.sleep(0.02)
    folder = folder_of(options, all_runs(demo)[1])
    folder.mkdir(parents=True)
    (folder / "owner.json").write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid}))
    assert cancel(options, config.compose) == 0
    assert process.wait(timeout=30) == 75
    assert seen.read_text().split() == ["SIGTERM"]
    assert "asked to stop: 0 jobs, 1 runs on this host" in capfd.readouterr().out


# ------------------------------------------------------------------------------------------------------ several at once

OVERLAPS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    here = Path(sys.argv[-1]).parent
    print("says", os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    (here / "began").write_text(str(time.time()))
    time.sleep(0.5)
    if "-ce-s1" in here.name:
        print("error: the disk is on fire", flush=True)
        sys.exit(2)
    if "-ce-s2" in here.name:
        os.kill(os.getpid(), 9)
    (here / "ended").write_text(str(time.time()))
""")


def test_several_runs_at_once_and_a_crash_of_one_leaves_the_others_running(demo, options, finish, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options.jobs = 3
    runs = all_runs(demo)
    assert sweep_here(options, config.compose, [sys.executable, "-c", OVERLAPS]) == 1
    folders = [folder_of(options, run) for run in runs]
    began = [float((folder / "began").read_text()) for folder in folders]
    ended = [float((folders[index] / "ended").read_text()) for index in (0, 3, 4, 5)]
    assert max(began[:3]) < min(ended), "the first three at once"
    assert min(began[3:]) >= min(began) + 0.5, "and no more"
    out = capfd.readouterr().out
    assert "says 1" not in out
    assert (folders[0] / "log.txt").read_text().startswith("says 1 None"), "the cores are divided"
    assert f"failed: {runs[1].run_id} (exit code 2: error: the disk is on fire; all of it is in {folders[1]}" in out
    assert f"failed: {runs[2].run_id} (exit code -9: ended by SIGKILL;" in out
    assert "failed: ended by SIGKILL" in list(status(options, config.compose))[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_them(demo, options, tmp_path, capfd, number):
    options.jobs = 2
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    send_when_begun(pid, number)
    code = 130 if number is signal.SIGINT else 75
    assert sweep_here(options, config.compose, [sys.executable, "-c", HEEDS, str(seen), "obeys"]) == code
    out = capfd.readouterr().out
    assert out.count(": starts") == 2
    assert out.count(": stopped with exit code") == 2
    assert "jobs=2" in out.splitlines()[-1]


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


def test_gpus_are_packed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    on = [place["CUDA_VISIBLE_DEVICES"] for place in places(SweepOptions(runs_per_gpu=2), ["0", "3"]).variables]
    assert on == ["0", "3", "0", "3"]
    assert places(SweepOptions(jobs=3), ["0", "1"]).variables[2] == {"CUDA_VISIBLE_DEVICES": "0"}
    assert places(SweepOptions(), ["0", "1"]).is_one, "one after the other, where nothing is asked for"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"jobs": 0}, "jobs=0 must be a whole number from 1 on"),
        ({"runs_per_gpu": 2, "gpus": []}, "runs_per_gpu=2, but PyTorch sees no GPU here: use jobs="),
        ({"runs_per_gpu": 2, "jobs": 3, "gpus": ["0"]}, "jobs=3, but 1 GPUs with runs_per_gpu=2 have room for 2"),
    ],
)
def test_places_that_cannot_be_are_one_sentence(asked, sentence):
    gpus = asked.pop("gpus", None)
    with pytest.raises(UserError, match=sentence):
        places(SweepOptions(**asked), gpus)


def test_a_sweep_says_the_command_that_goes_on_with_it():
    options = SweepOptions("demo", jobs=4, set=["recipe.epochs=2", "seed_=1"], dry_run=True)
    assert sweep_command(options) == "python scripts/sweep.py table=demo 'set=[recipe.epochs=2,seed_=1]' jobs=4"


# --------------------------------------------------------------------------------------------------- what is remembered


def test_compositions_are_remembered_and_forgotten_with_what_they_follow_from(tmp_path, monkeypatch):
    asked = []

    def compose(overrides):
        asked.append(overrides)
        return config.compose(overrides)

    first = Remembered(compose, tmp_path)
    fresh = first(["model=resnet20", "dataset=digits"])
    first.keep()
    again = Remembered(compose, tmp_path)
    assert again(["model=resnet20", "dataset=digits"]) == fresh
    assert len(asked) == 1
    monkeypatch.setenv("ISDA_DATA", "elsewhere")
    assert Remembered(compose, tmp_path)(["model=resnet20", "dataset=digits"]).data_dir == "elsewhere"
    assert len(asked) == 2
    next(tmp_path.glob("composed-*.json")).write_text("{")
    monkeypatch.undo()
    assert Remembered(compose, tmp_path)(["model=resnet20", "dataset=digits"]) == fresh, "a damaged cache is none"


def test_a_cache_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "cache").write_text("a file")
    remembered = Remembered(config.compose, tmp_path / "cache")
    remembered(["model=resnet20", "dataset=digits"])
    remembered.keep()


# -------------------------------------------------------------------------------------------------------------- options


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
