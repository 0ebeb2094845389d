"""Sweeps on this machine: signals, several runs at once, and runs that another process works on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
from sweeps import (
    all_runs,
    compose,
    folder_of,
    heeding_training,
    numbers_of,
    send_when_begun,
    started,
    training,
    until,
)

from isda_repro.errors import UserError
from isda_repro.runs.exit_status import read_exit_status
from isda_repro.runs.lock import here
from isda_repro.sweeps import local
from isda_repro.sweeps.local import Clock, sweep_here, worker_slots
from isda_repro.sweeps.run_progress import NOT_YET
from isda_repro.sweeps.sweep import SweepOptions, sweep_command


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Return the options of a sweep of the demo in an empty directory, on a machine without GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("isda_repro.sweeps.local._visible", list)
    return SweepOptions("demo")


@pytest.mark.parametrize(
    ("number", "code", "jobs", "both"),
    [
        (signal.SIGINT, 130, 1, True),
        (signal.SIGINT, 130, 2, False),
        (signal.SIGTERM, 75, 1, False),
        (signal.SIGTERM, 75, 2, True),
        (signal.SIGUSR1, 75, 1, True),
        (signal.SIGHUP, 75, 1, False),
    ],
)
def test_signal_reaches_each_run_once_and_ends_the_sweep(demo, options, tmp_path, capfd, number, code, jobs, both):
    """A terminal or a cluster sends the signal to the sweep and its runs, a person or a service to the sweep alone."""
    options.jobs = jobs
    send_when_begun(options, number, runs=jobs, run_too=both)
    assert sweep_here(options, compose, heeding_training()) == code
    folders = [folder_of(options, run) for run in all_runs(demo)]
    assert [folder.exists() for folder in folders] == [index < jobs for index in range(6)]
    for folder in folders[:jobs]:
        assert (folder / "seen").read_text().split() == [signal.Signals(number).name]
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / "pid").read_text()), 0)
        assert read_exit_status(folder) is None
    assert sweep_command(options) in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_that_a_signal_ends_after_its_result_is_done(demo, options, tmp_path, capfd, number):
    """SIGTERM reaches the run through the sweep, which ends, and SIGKILL the run alone."""
    command = training(tmp_path, all_runs(demo))
    trainer = tmp_path / "trainer.py"
    pid = "__import__('os').getpid()"
    ending = "__import__('time').sleep(60)" if number == signal.SIGTERM else f"__import__('os').kill({pid}, 9)"
    noted = f"(folder / 'seen').touch()\n(folder / 'pid').write_text(str({pid}))"
    trainer.write_text(f"{trainer.read_text()}\n{noted}\n{ending}\n")
    if number == signal.SIGTERM:
        send_when_begun(options, number)
    assert sweep_here(options, compose, command) == (75 if number == signal.SIGTERM else 0)
    out = capfd.readouterr().out
    assert not {"stopped", "FAILED"} & set(out.split())
    done = 1 if number == signal.SIGTERM else 6
    assert numbers_of(out.partition(sweep_command(options))[0], "table=demo") == [done, 6, done]


def test_run_that_heeds_nothing_is_killed_by_the_third_signal(demo, options, monkeypatch):
    monkeypatch.setattr("isda_repro.stopping.ECHO_SECONDS", 0.0)
    send_when_begun(options, *[signal.SIGTERM] * 3)
    assert sweep_here(options, compose, heeding_training("ignores", echo=0.0)) == 75
    folder = folder_of(options, all_runs(demo)[0])
    assert (folder / "seen").read_text().split() == ["SIGTERM", "SIGTERM"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


def test_signal_that_comes_while_a_run_is_started_reaches_it(demo, options, monkeypatch):
    def freeze(run, path):
        path.parent.mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(local, "write_frozen_runs", freeze)
    assert sweep_here(options, compose, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]) == 75
    assert read_exit_status(folder_of(options, all_runs(demo)[0])) is None, (
        "it has not come to its end without a result"
    )


@pytest.mark.parametrize(("does", "jobs"), [("obeys", 1), ("ignores", 2)])
def test_runs_save_before_time_is_up_and_those_that_do_not_are_killed(demo, options, capfd, does, jobs):
    options.jobs, options.minutes = jobs, 0.1
    begun = time.monotonic()
    assert sweep_here(options, compose, heeding_training(does)) == 75
    assert (time.monotonic() - begun >= 6) == (does == "ignores")
    folders = [folder_of(options, run) for run in all_runs(demo)]
    assert [folder.exists() for folder in folders] == [index < jobs for index in range(6)]
    for folder in folders[:jobs]:
        assert (folder / "seen").read_text().split() == ["SIGTERM"]
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / "pid").read_text()), 0)
        assert read_exit_status(folder) is None, "it has not failed"
    out = capfd.readouterr().out
    assert sweep_command(options) in out
    assert numbers_of(out.partition(sweep_command(options))[0], "table=demo") == [0, 6, jobs]


@pytest.mark.parametrize(
    ("minutes", "last_start", "save"), [(8, 390, 450), (3, 105, 150), (1, 30, 45), (0.1, 3, 4.5), (None, None, None)]
)
def test_time_for_saving_and_starting_is_kept_back(monkeypatch, minutes, last_start, save):
    monkeypatch.setattr(local.time, "monotonic", lambda: 1000.0)
    clock, never = Clock(minutes), float("inf")
    assert clock.save == (never if save is None else pytest.approx(1000 + save))
    assert clock.last_start == (never if save is None else pytest.approx(1000 + last_start))
    assert clock.end == (never if save is None else pytest.approx(1000 + 60 * minutes))


@pytest.fixture
def late(options, monkeypatch):
    """Return the options of a sweep whose time limit allows no further start."""
    options.minutes = 8
    monkeypatch.setattr(Clock, "__init__", lambda clock, _: vars(clock).update(last_start=0.0, save=1e12, end=1e12))
    return options


def test_no_run_is_started_when_too_little_time_is_left(demo, late, tmp_path, finish, capfd):
    runs = all_runs(demo)
    assert sweep_here(late, compose, training(tmp_path, runs)) == 75
    assert started(late) == []
    assert sweep_command(late) in capfd.readouterr().out
    late.dry_run = True
    assert sweep_here(late, compose, ["false"]) == 0
    assert all(run.run_id in capfd.readouterr().out for run in runs[:1])
    late.dry_run = False
    for run in runs:
        finish(run, 2.0)
    assert sweep_here(late, compose, ["false"]) == 0, "nothing is left to do"


def test_sweep_that_has_time_for_everything_ends_as_any(demo, options, tmp_path):
    options.minutes = 60
    runs = all_runs(demo)
    assert sweep_here(options, compose, training(tmp_path, runs, {runs[1].run_id: 3})) == 1
    assert sweep_here(options, compose, training(tmp_path, runs)) == 0


WAITS = textwrap.dedent("""
    import sys, time
    from pathlib import Path

    while not Path("reported").exists():
        time.sleep(0.02)
    sys.exit(75)
""")


def test_progress_of_runs_that_write_into_files_is_said_now_and_then(demo, options, tmp_path, monkeypatch, capfd):
    first, second = [run.run_id for run in all_runs(demo)[:2]]
    asked = []

    def progress(folder, run):
        asked.append(run.run_id)
        if asked.count(second) == 2:
            (tmp_path / "reported").touch()
        return None if run.run_id == first else "epoch 8"

    monkeypatch.setattr(local, "describe_progress", progress)
    monkeypatch.setattr(local, "REPORT_SECONDS", 0.0)
    options.jobs = 2
    assert sweep_here(options, compose, [sys.executable, "-I", "-S", "-c", WAITS]) == 75
    said = capfd.readouterr().out.splitlines()
    assert any(first in line and NOT_YET in line for line in said)
    assert any(second in line and "epoch 8" in line for line in said)


OVERLAPS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    here = Path(sys.argv[-1]).parent
    count = lambda name: len(list(here.parent.glob(f"*/{name}")))
    print("threads", os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    (here / "began").touch()
    while count("began") < 3:  # or the sweep would never end
        time.sleep(0.02)
    (here / "at_once").write_text(str(count("began") - count("gone")))
    (here / "gone").touch()
    if "-ce-s1" in here.name:
        print("error: the disk is on fire", flush=True)
        sys.exit(2)
    if "-ce-s2" in here.name:
        os.kill(os.getpid(), 9)
""")


def test_several_runs_train_at_once_and_one_that_fails_leaves_the_others_running(demo, options, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("isda_repro.sweeps.local._visible", lambda: ["0", "1", "2"])
    options.jobs = 3
    folders = [folder_of(options, run) for run in all_runs(demo)]
    folders[5].mkdir(parents=True)
    (folders[5] / "log.txt").write_text("of before\n")
    folders[2].mkdir(parents=True)
    (folders[2] / "ended.json").write_text(json.dumps({"exit_code": 75, "said": "stopped and saved"}))
    assert sweep_here(options, compose, [sys.executable, "-I", "-S", "-c", OVERLAPS]) == 1
    assert max(int((folder / "at_once").read_text()) for folder in folders) == 3
    out = capfd.readouterr().out
    threads = worker_slots(options).variables[0]["OMP_NUM_THREADS"]
    logs = [(folder / "log.txt").read_text() for folder in folders]
    assert sorted(logs[:3])[0].startswith(f"threads {threads} 0\n")
    assert sorted(log.split()[2] for log in logs[:3]) == ["0", "1", "2"], "one on each GPU"
    assert logs[5].startswith(f"of before\nthreads {threads} ")
    assert "threads" not in out, "only the terminal's owner writes there"
    for folder, said in ((folders[1], "the disk is on fire"), (folders[2], "SIGKILL")):
        assert any(folder.name in line and said in line for line in out.splitlines())
    assert [read_exit_status(folder).exit_code for folder in folders[1:4]] == [2, -9, 0]


TOGETHER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    here = Path(sys.argv[-1]).parent
    (here / "card").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    while len(list(here.parent.glob("*/card"))) < 4:  # those of both cards
        time.sleep(0.02)
    sys.exit(75)
""")


def test_each_gpu_has_several_runs_at_once(demo, options, monkeypatch):
    monkeypatch.setattr("isda_repro.sweeps.local._visible", lambda: ["0", "GPU-7"])
    options.runs_per_gpu = 2
    assert sweep_here(options, compose, [sys.executable, "-I", "-S", "-c", TOGETHER]) == 75
    cards = [folder_of(options, run) / "card" for run in all_runs(demo)]
    assert [card.read_text() for card in cards if card.exists()] == ["0", "GPU-7"] * 2


def test_cores_and_gpus_are_divided_among_the_runs(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_slots(SweepOptions(jobs=5), []).variables == ({"OMP_NUM_THREADS": "2"},) * 5
    assert worker_slots(SweepOptions(jobs=13), []).variables[12] == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    on = [place["CUDA_VISIBLE_DEVICES"] for place in worker_slots(SweepOptions(runs_per_gpu=2), ["0", "3"]).variables]
    assert sorted(on) == ["0", "0", "3", "3"]
    assert on[0] != on[1], "the first two runs are on different GPUs"
    assert worker_slots(SweepOptions(jobs=3), ["0", "1"]).variables[2] == {"CUDA_VISIBLE_DEVICES": "0"}
    assert worker_slots(SweepOptions(jobs=2, runs_per_gpu=2), ["5"]).variables == ({"CUDA_VISIBLE_DEVICES": "5"},) * 2
    assert len(worker_slots(SweepOptions(runs_per_gpu=1), ["0", "1"]).variables) == 2
    assert worker_slots(SweepOptions(), ["0", "1"]).variables == ({},), (
        "one after the other, where nothing is asked for"
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2)))
    for named, expected in (("", ["0", "1"]), ("4, GPU-6", ["4", "GPU-6"]), ("3,4,-1,5", ["3", "4"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert [place["CUDA_VISIBLE_DEVICES"] for place in worker_slots(SweepOptions(jobs=2)).variables] == expected


@pytest.mark.parametrize(
    ("asked", "gpus", "token"),
    [
        ({"jobs": 0}, None, "jobs=0"),
        ({"runs_per_gpu": 0}, None, "runs_per_gpu=0"),
        ({"runs_per_gpu": 2}, [], "runs_per_gpu=2"),
        ({"runs_per_gpu": 1}, [], "runs_per_gpu=1"),
        ({"runs_per_gpu": 1, "jobs": 3}, ["0", "1"], "jobs=3"),
        ({"runs_per_gpu": 2, "jobs": 3}, ["0"], "jobs=3"),
    ],
)
def test_number_of_runs_that_have_no_place_is_refused(asked, gpus, token):
    with pytest.raises(UserError, match=token):
        worker_slots(SweepOptions(**asked), gpus)


BEATEN = textwrap.dedent("""
    import sys
    from pathlib import Path

    owner = Path(sys.argv[-1]).with_name("owner.json")
    if owner.parent.name == RUN and not owner.exists():
        owner.write_text(OWNER)
        sys.exit(2)
""")


def test_runs_that_another_process_works_on_are_waited_for(demo, options, tmp_path, capfd):
    """A second sweep holds one run from the beginning, and takes another just as this sweep starts it."""
    runs = all_runs(demo)
    held, beaten, *others = [run.run_id for run in runs]
    other = subprocess.Popen(["sleep", "600"])
    text = json.dumps({**here(), "pid": other.pid})
    owner = folder_of(options, runs[0]) / "owner.json"
    owner.parent.mkdir(parents=True)
    owner.write_text(text)
    command, program = training(tmp_path, runs), tmp_path / "trainer.py"
    program.write_text(f"RUN, OWNER = {beaten!r}, {text!r}\n{BEATEN}{program.read_text()}")

    def end_when_nothing_else_is_left():
        try:
            until(lambda: len(started(options)) >= len(others))
        finally:
            other.kill()
            other.wait()

    thread = threading.Thread(target=end_when_nothing_else_is_left, daemon=True)
    thread.start()
    assert sweep_here(options, compose, command) == 0
    thread.join()
    assert started(options) == [*others, held, beaten]
    out = capfd.readouterr().out
    assert numbers_of(out, "table=demo") == [6, 6, 7]
    assert all(out.count(run) >= 3 for run in (held, beaten)), "that it is waited for is said, too"
