"""The status of runs as their folders tell it, and how the runs of this host are stopped."""

import json
import os
import re
import subprocess
import time

import pytest
from sweeps import all_runs, compose, folder_of, heeding_training, numbers_of, until
from synthetic import SEGMENT

from isda_repro.experiments.plan import Run
from isda_repro.runs.exit_status import ExitStatus, exit_status_of, read_exit_status, write_exit_status
from isda_repro.runs.lock import here, lives, pid_here
from isda_repro.runs.records import EpochRecord, GeneratorEpoch, as_json
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
    ],
)
def test_state_of_a_run_follows_from_its_owner_and_its_ending(demo, options, owner, age, ending, state):
    folder = folder_of(options, all_runs(demo)[1])
    write_epochs(folder, epoch(1, 50.0))
    if owner is not None:
        (folder / "owner.json").write_text(json.dumps({**here(), "pid": os.getpid(), **owner}))
        os.utime(folder / "owner.json", (time.time() - age,) * 2)
    if ending is not None:
        write_exit_status(folder, ending)
    (folder / "log.txt").touch()
    assert states(options) == {("ResNet-20 on digits, CE", 1): state}
    assert lives(folder) == (state == "running")
    assert pid_here(folder) == (os.getpid() if owner == {} else None)
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
    write_exit_status(tmp_path, ExitStatus(75, "SIGTERM: stopped"))
    write_exit_status(tmp_path, ExitStatus(2, "lost contact"), keep=True)
    assert exit_status_of(tmp_path, 1) == (75, "SIGTERM: stopped")
    write_exit_status(tmp_path, ExitStatus(2, "lost contact"))
    assert read_exit_status(tmp_path) == (2, "lost contact")
    (tmp_path / "ended.json").write_text("{")
    assert read_exit_status(tmp_path) is None
    write_exit_status(tmp_path / "missing", ExitStatus(1, "x"))
    assert not (tmp_path / "missing").exists()


# ------------------------------------------------------------------------------------------------------------ progress

TIMED = dict(train=100.0, evaluation=20.0, saving=5.0, data_wait=9999.0)


@pytest.mark.parametrize(
    ("records", "torn", "tokens"),
    [
        ([epoch(1, 50.0), epoch(2, 4.125)], '{"kind": "ep', ["2", "30", "4.12"]),
        ([epoch(1, 50.0), *[SEGMENT] * 50], "", ["1", "30", "50.00"]),  # longer than the first block that is read
        ([epoch(29, 3.0, **TIMED)], "", ["29", "30", "3.00", "2:05"]),
        ([epoch(10, 3.0, **TIMED)], "", ["10", "30", "3.00", "41:40"]),
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


def test_cancel_asks_the_runs_of_this_host_to_save(demo, options, capfd):
    folder = folder_of(options, all_runs(demo)[1])
    folder.mkdir(parents=True)
    process = subprocess.Popen([*heeding_training(), str(folder / "config.yaml")])
    until((folder / "pid").exists)
    owner = {**here(), "pid": process.pid}
    (folder / "owner.json").write_text(json.dumps({**owner, "boot": "before a restart"}))
    assert cancel(options, compose) == 0
    assert re.findall(r"\d+", capfd.readouterr().out) == ["0", "0"]
    assert not (folder / "seen").exists()
    (folder / "owner.json").write_text(json.dumps(owner))
    assert cancel(options, compose) == 0
    assert process.wait(timeout=60) == 75
    assert (folder / "seen").read_text().split() == ["SIGTERM"]
    assert re.findall(r"\d+", capfd.readouterr().out) == ["0", "1"]
