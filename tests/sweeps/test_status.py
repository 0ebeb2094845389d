"""The status of runs as their folders tell it, and how the runs of this host are stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from sweeps import all_runs, compose, folder_of, numbers_of, until
from synthetic import SEGMENT

from isda_repro.experiments.plan import Run
from isda_repro.runs import lock
from isda_repro.runs.exit_status import ExitStatus, exit_status_of, read_exit_status, write_exit_status
from isda_repro.runs.generator_records import GeneratorEpoch
from isda_repro.runs.lock import FolderLock, here, lives, pid_here, process_start
from isda_repro.runs.records import EpochRecord, as_json
from isda_repro.sweeps.run_progress import describe_progress
from isda_repro.sweeps.status import cancel, status
from isda_repro.sweeps.sweep import SweepOptions

NOBODY = 2**22 + 1  # larger than any process id of Linux


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Return the options of the demo in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return SweepOptions("demo")


def epoch(number, error, **timing):
    losses = dict(lr=0.1, train_loss=1.0, train_error=1.0, test_loss=1.0)
    return EpochRecord(epoch=number, step=number, test_error=error, timing=timing, **losses)


def write_epochs(folder, *records, torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(as_json(record)) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text("".join(lines) + torn)


def states(options):
    """Return the state of each started, unfinished run: its first word, by cell and seed."""
    said = {}
    for line in list(status(options, compose))[1:]:
        name, _, rest = line.strip().partition("  ")
        for seed, word in re.findall(r"seed (\d+): (\w+)", rest):
            said[name, int(seed)] = word
    return said


def test_status_counts_what_is_done_and_names_what_is_begun(demo, options, finish):
    assert numbers_of(next(iter(status(options, compose))), "table=demo") == [0, 6]
    assert states(options) == {}
    runs = all_runs(demo)
    for run in runs[:4]:
        finish(run, 2.0)
    write_epochs(folder_of(options, runs[4]), epoch(1, 50.0))
    write_epochs(folder_of(options, runs[5]))
    title, ce, isda = status(options, compose)
    assert numbers_of(title, "table=demo") == [4, 6]
    assert numbers_of(ce, "ResNet-20") == [3, 3]
    assert numbers_of(isda, "ResNet-20")[:2] == [1, 3]
    assert states(options) == {("ResNet-20 on digits, ISDA", seed): "interrupted" for seed in (1, 2)}


FAILED, STOPPED = ExitStatus(2, "out of memory with 128 images"), ExitStatus(75, "stopped and saved")


@pytest.mark.parametrize(
    ("owner", "age", "ending", "state"),
    [
        (None, 0, FAILED, "failed"),
        (None, 0, STOPPED, "stopped"),
        (None, 0, ExitStatus(130, "interrupted"), "stopped"),
        (None, 0, None, "interrupted"),
        ({}, 0, FAILED, "running"),
        ({"pid": NOBODY}, 0, None, "interrupted"),
        ({"boot": "before a restart"}, 0, None, "interrupted"),  # another process has its id now
        ({"host": "elsewhere"}, 0, None, "running"),
        ({"host": "elsewhere", "boot": "another"}, 40, None, "running"),
        ({"host": "elsewhere"}, 90, None, "interrupted"),  # its heartbeat has stopped
        ({"host": "elsewhere"}, -1e6, None, "interrupted"),  # nobody's heartbeat is of next week
        ({"start": 1}, 0, None, "interrupted"),  # its pid has been given again
        ({}, 90, None, "interrupted"),  # as in a copied folder
        ({"pid": 0}, 0, None, "interrupted"),
        ({"pid": -1}, 0, None, "interrupted"),
        ({"pid": 10**30}, 0, None, "interrupted"),
        ({"pid": True}, 0, None, "interrupted"),
    ],
)
def test_state_of_a_run_follows_from_its_owner_and_its_ending(demo, options, owner, age, ending, state):
    folder = folder_of(options, all_runs(demo)[1])
    write_epochs(folder, epoch(1, 50.0))
    if owner is not None:
        (folder / "owner.json").write_text(
            json.dumps({**here(), "pid": os.getpid(), "start": process_start(os.getpid()), **owner})
        )
        os.utime(folder / "owner.json", (time.time() - age,) * 2)
    if ending is not None:
        write_exit_status(folder, ending)
    (folder / "log.txt").touch()
    assert states(options) == {("ResNet-20 on digits, CE", 1): state}
    assert lives(folder) == (state == "running")
    assert pid_here(folder) is None, "nobody holds the lock"
    said = "\n".join(status(options, compose))
    assert (FAILED.said in said and str(folder / "log.txt") in said) == (state == "failed")


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_torn_owner_file_names_nobody(tmp_path, text):
    (tmp_path / "owner.json").write_text(text)
    assert not lives(tmp_path)
    assert pid_here(tmp_path) is None


def test_how_a_process_ended_is_told_by_what_it_noted_its_signal_or_its_log(tmp_path):
    assert exit_status_of(tmp_path, -9).exit_code == -9
    assert "SIGKILL" in exit_status_of(tmp_path, -9).said
    assert "signal 40" in exit_status_of(tmp_path, -40).said, "a real-time signal has no name"
    assert exit_status_of(tmp_path, 1).exit_code == 1
    (tmp_path / "log.txt").write_text("epoch 1\nlast words\n")
    assert exit_status_of(tmp_path, 1) == (1, "last words")
    (tmp_path / "log.txt").write_text("ValueError: caught\nepoch 1\nRuntimeError: a defect\nlast words\n")
    assert exit_status_of(tmp_path, 1) == (1, "RuntimeError: a defect")
    with (tmp_path / "log.txt").open("a") as log:
        log.write("epoch 2\n" * 2**18 + "OSError: the last defect\n")
    assert exit_status_of(tmp_path, 1) == (1, "OSError: the last defect"), "only the end of a large log is read"
    write_exit_status(tmp_path, ExitStatus(75, "SIGTERM: stopped"))
    write_exit_status(tmp_path, ExitStatus(2, "lost contact"), keep=True)
    assert exit_status_of(tmp_path, 1) == (75, "SIGTERM: stopped")
    write_exit_status(tmp_path, ExitStatus(2, "lost contact"))
    assert read_exit_status(tmp_path) == (2, "lost contact")
    codes = [f'{{"exit_code": {code}, "said": "x"}}' for code in ("true", "3.0", 1024, -(10**30))]
    for damaged in ("{", *codes, '{"exit_code": 3, "said": 4}', '{"exit_code": 3}', "[3]"):
        (tmp_path / "ended.json").write_text(damaged)
        assert read_exit_status(tmp_path) is None
    write_exit_status(tmp_path / "missing", ExitStatus(1, "x"))
    assert not (tmp_path / "missing").exists()


# ------------------------------------------------------------------------------------------------------------ progress

OF_CLASSES = {"trace_of_classes": [1 / 3] * 1000}  # as a line of ImageNet has
TIMED = dict(train=100.0, evaluation=20.0, saving=5.0, data_wait=9999.0)


@pytest.mark.parametrize(
    ("records", "torn", "tokens"),
    [
        ([epoch(1, 50.0), epoch(2, 4.125)], '{"kind": "ep', ["2", "30", "4.12"]),
        ([epoch(1, 50.0), *[SEGMENT] * 50], "", ["1", "30", "50.00"]),  # longer than the first block that is read
        ([epoch(29, 3.0, **TIMED)], "", ["29", "30", "3.00", "2:05"]),
        ([epoch(10, 3.0, **TIMED)], "", ["10", "30", "3.00", "41:40"]),
        ([epoch(1, 50.0), replace(epoch(2, 4.125), covariances=OF_CLASSES)], '{"kind": "ep', ["2", "30", "4.12"]),
        ([SEGMENT], "", []),
        ([], "?\n", ["metrics.jsonl", "1"]),
    ],
)
def test_progress_is_that_of_the_last_whole_epoch(demo, tmp_path, records, torn, tokens):
    run = all_runs(demo)[0]
    assert describe_progress(tmp_path, run) is None
    write_epochs(tmp_path, *records, torn=torn)
    said = describe_progress(tmp_path, run).replace(str(tmp_path), "")
    assert re.findall(r"metrics\.jsonl|[\d.:]*\d", said)[: len(tokens)] == tokens
    assert bool(tokens) == bool(re.search(r"\d", said))


def test_progress_of_a_generator_is_its_own_epochs(tmp_path):
    scores = {"discriminator_loss": 0.5, "real_score": 0.6, "fake_score": 0.4}
    write_epochs(tmp_path, GeneratorEpoch(epoch=7, step=9, generator_steps=9, timing={"train": 2.0}, **scores))
    said = describe_progress(tmp_path, Run(0, "g", {"gan": {"epochs": 100}}))
    assert re.findall(r"[\d:]+", said) == ["7", "100", "3:06"]


# ---------------------------------------------------------------------------------------------------------- cancelling


HOLDS = """
import sys, time
from pathlib import Path

from isda_repro.errors import StoppedError, one_sentence_errors
from isda_repro.runs.lock import FolderLock
from isda_repro.stopping import exit_code, handle_stop_signals

asked = []
with one_sentence_errors(), FolderLock(Path(sys.argv[1])), handle_stop_signals(asked.append):
    print("ready", flush=True)
    while not asked:
        time.sleep(0.02)
    raise StoppedError("saved", exit_code(asked[0]))
"""


@pytest.fixture
def locked(demo, options):
    """Return the folder of a run and the process that works on it and obeys a signal."""
    folder = folder_of(options, all_runs(demo)[1])
    folder.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield folder, process
    process.kill()
    process.wait()


def test_cancel_asks_the_runs_of_this_host_to_save(locked, options, capfd):
    folder, process = locked
    assert lives(folder)
    assert pid_here(folder) == process.pid
    os.utime(folder / "owner.json", (0, 0))
    assert lives(folder), "it was suspended, and holds the lock"
    assert cancel(options, compose) == 0
    assert process.wait(timeout=60) == 75
    assert re.findall(r"\d+", capfd.readouterr().out) == ["0", "1"]


@pytest.mark.parametrize(
    "changes",
    [{"boot": "before a restart"}, {"start": 1}, {"start": None}, {"host": "elsewhere"}]
    + [{"pid": pid} for pid in (0, -1, 10**30, "1", True, None)],
    ids=str,
)
def test_process_that_is_not_certainly_the_owner_gets_no_signal(locked, options, capfd, changes, monkeypatch):
    """The file lock is held, by a process that ``owner.json`` does not name."""
    folder, process = locked
    owner = json.loads((folder / "owner.json").read_text())
    (folder / "owner.json").write_text(json.dumps({**owner, **changes}))
    sent, kill = [], os.kill
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: sent.append(pid) if number else kill(pid, number))
        assert cancel(options, compose) == 0
    out = capfd.readouterr().out
    assert sent == []
    assert re.findall(r"\d+", out.splitlines()[0]) == ["0", "0"]
    assert (str(folder) in out) == lives(folder), "it is named if it seems to live"
    assert process.poll() is None


def test_process_whose_folder_was_copied_gets_no_signal(locked, options, capfd, monkeypatch):
    """The copy names the process with all that is certain about it, but nobody holds its lock."""
    folder, process = locked
    process.send_signal(signal.SIGSTOP)  # its own folder is renamed: it must not notice before the end
    folder.rename(folder.with_name("elsewhere"))
    shutil.copytree(folder.with_name("elsewhere"), folder)
    sent, kill = [], os.kill
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: sent.append(pid) if number else kill(pid, number))
        assert cancel(options, compose) == 0
    assert sent == []
    assert str(folder) in capfd.readouterr().out


def test_process_of_another_user_is_named(locked, options, capfd, monkeypatch):
    def refused(_pid, number):
        if number:
            raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refused)
        assert cancel(options, compose) == 0
    assert str(locked[0]) in capfd.readouterr().out


def test_process_that_has_ended_unnoticed_works_on_nothing(locked):
    """It is a zombie: its pid exists until its parent asks how it ended."""
    folder, process = locked
    process.kill()
    until(lambda: process_start(process.pid) is None)
    assert not lives(folder)
    until(lambda: not lock._is_locked(folder))  # its other threads, which end a moment later, hold the file open
    with FolderLock(folder):
        assert json.loads((folder / "owner.json").read_text())["pid"] == os.getpid()
