"""Folders of runs with anybody's files: no signal, no file lost, and a result or one sentence."""

import json
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sweeps import all_runs, compose

from isda_repro.errors import UserError
from isda_repro.runs import lock as lock_module
from isda_repro.runs.exit_status import (
    ExitStatus,
    clear_exit_status,
    exit_status_of,
    read_exit_status,
    write_exit_status,
)
from isda_repro.runs.lock import KEYS, FolderLock, here, process_start
from isda_repro.runs.records import EpochRecord
from isda_repro.sweeps.status import cancel, status
from isda_repro.sweeps.sweep import SweepOptions
from isda_repro.tracking import JsonLines
from isda_repro.training.checkpoint import Checkpoints
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.resume import find_start
from isda_repro.training.run import CLASSIFIER
from isda_repro.training.session import earlier_result

pytestmark = pytest.mark.slow

OTHER = os.getppid()  # a living process that works on no run
PIDS = [0, -1, 1, OTHER, os.getpid(), 2**22 + 1, 2**31, 2**63, 10**30, True, 1.5, "1", None, [], {}]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner))
LIVING = {**here(), "pid": OTHER, "start": process_start(OTHER)}
OWNERS = st.fixed_dictionaries(
    {},
    optional={
        "host": st.sampled_from([socket.gethostname(), "elsewhere"]) | VALUES,
        "boot": st.sampled_from([here()["boot"], "another"]) | VALUES,
        "pid": st.sampled_from(PIDS) | VALUES,
        "start": st.sampled_from([process_start(OTHER), 1]) | VALUES,
        "started": VALUES,
        "token": st.sampled_from(["../../x", "/x", "a" * 300, "abc"]) | VALUES,
        "notes": VALUES,
    },
)
STATUSES = st.fixed_dictionaries(
    {}, optional={"exit_code": VALUES, "said": VALUES | st.just("a\nb\x1b[2J"), "x": VALUES}
)
JOBS = st.fixed_dictionaries({}, optional={"job_id": st.sampled_from(["1", "1_2", "--help", "1 2"]) | VALUES})
LINES = st.lists(VALUES | st.fixed_dictionaries({"kind": st.sampled_from(["epoch", "segment"])}), max_size=3)


def text_of(values):
    return values.map(lambda value: json.dumps(value).encode())


CONTENTS = {
    "owner.json": text_of(OWNERS | VALUES),
    "owner.json.after-abc": text_of(OWNERS),
    "ended.json": text_of(STATUSES | VALUES),
    "job.json": text_of(JOBS | VALUES),
    "result.json": text_of(VALUES),
    "metrics.jsonl": LINES.map(lambda lines: b"".join(json.dumps(line).encode() + b"\n" for line in lines)),
}
NAMES = ("lock", "log.txt", "notes.tmp", "checkpoint-000000001.pt", "checkpoint-best.pt", "checkpoint.pt.tmp", "x")
FOLDERS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.binary(max_size=99) | content for name, content in CONTENTS.items()},
        **{name: st.binary(max_size=99) for name in NAMES},
    },
)
SPECIAL = st.dictionaries(
    st.sampled_from(["owner.json", "ended.json", "job.json", "lock", "log.txt"]),
    st.sampled_from(["pipe", "folder", "link"]),
    max_size=2,
)


class Clock:
    """The module ``time`` for the lock, with which sleeping takes no time."""

    strftime, time = time.strftime, time.time

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        assert self.now < 1000, "waits for ever"


def make(folder, files, special):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, kind in special.items():
        (folder / name).unlink(missing_ok=True)
        acts = {"pipe": os.mkfifo, "folder": Path.mkdir, "link": lambda path: path.symlink_to("nowhere")}
        acts[kind](folder / name)


def may_go(name, content):
    """Return whether a file may go because it is as this program writes it, or empty."""
    try:
        found = json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return content.strip(b"\0\n") == b"" or content.startswith(lock_module.BEGINS)
    if not isinstance(found, dict):
        return False
    if name == "ended.json":
        return type(found.get("exit_code")) is int and isinstance(found.get("said"), str)
    return name.startswith("owner.json") and {"host", "pid"} <= found.keys() <= KEYS


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def attempt(act):
    """Call a function, which may end with one sentence."""
    said = ""
    try:
        act()
    except (UserError, OSError) as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000


def work(folder):
    """Do what a run does at its start, without the training."""
    with FolderLock(folder) as lock:
        clear_exit_status(folder)
        checkpoints = Checkpoints(folder, lock.ensure_held)
        start = find_start(checkpoints, folder / "metrics.jsonl", folder.name, {"step"}, EpochRecord)
        assert start.state is None
        JsonLines(folder / "metrics.jsonl", keep=start.metrics_bytes, before_write=lock.ensure_held).close()
        checkpoints.clear()
    write_exit_status(folder, ExitStatus(1, "ended"))


@given(files=FOLDERS, special=SPECIAL, age=st.sampled_from([0, 1000, -(10**6)]))
@example(
    files={"owner.json": json.dumps({**here(), "pid": OTHER, "start": process_start(OTHER)}).encode()},
    special={},
    age=0,
)
@example(files={"owner.json": b'{"pid": 1' + b"0" * 5000 + b"}", "lock": b"mine"}, special={}, age=0)
@example(files={"owner.json": b"[" * 60000, "ended.json": b"[" * 60000, "job.json": b"[" * 60000}, special={}, age=0)
def test_folder_with_anybodys_files_is_left_whole(demo, files, special, age):
    sent, kill = [], os.kill
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        patch.setenv("PATH", "/nowhere")  # no SLURM
        patch.setattr(os, "kill", lambda pid, number: sent.append(pid) if number else kill(pid, number))
        patch.setattr(lock_module, "time", Clock())
        options = SweepOptions("demo", results_dir=None)
        folder = Path("runs").resolve() / (run := all_runs(demo)[1]).run_id
        folder.mkdir(parents=True)
        (folder.parent / "other").write_bytes(b"beside it")
        make(folder, files, special)
        if (folder / "owner.json").is_file():
            os.utime(folder / "owner.json", (time.time() - age,) * 2)
        before = everything(Path(name))
        attempt(lambda: list(status(options, compose)))
        attempt(lambda: cancel(options, compose))
        attempt(lambda: exit_status_of(folder, 1))
        attempt(lambda: read_exit_status(folder))
        assert everything(Path(name)) == before, "to look changes nothing"
        attempt(lambda: earlier_result(OmegaConf.merge(run.config, {"runs_dir": "runs"}), CLASSIFIER, SINGLE_PROCESS))
        attempt(lambda: work(folder))
        after = everything(Path(name))
    assert sent == []
    kept = list(after.values())
    for path, content in before.items():
        assert content in kept or may_go(path.name, content) or any(content in other for other in kept), path
        if path.name in ("notes.tmp", "checkpoint-best.pt", "checkpoint.pt.tmp", "x", "other", "log.txt"):
            assert after[path] == content
