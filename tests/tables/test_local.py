"""Sweeps on this machine: signals, and several runs at once."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from sweeps import HEEDS, TRAINER, all_runs, folder_of, send_when_begun, started

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.tables.local import places, sweep_here
from isda_repro.tables.owner import here
from isda_repro.tables.status import status
from isda_repro.tables.sweep import SweepOptions, sweep_command


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


def test_of_a_run_that_has_not_begun_to_train_the_sweep_says_so(options, capfd, monkeypatch):
    monkeypatch.setattr("isda_repro.tables.local.REPORT_SECONDS", 0.1)
    options.jobs = 2
    assert sweep_here(options, config.compose, [sys.executable, "-c", "import time; time.sleep(1); exit(75)"]) == 75
    out = capfd.readouterr().out
    assert ": not yet training" in out
    assert ": None" not in out


OVERLAPS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    here = Path(sys.argv[-1]).parent
    count = lambda name: len(list(here.parent.glob(f"*/{name}")))
    print("says", os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
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


def test_several_runs_at_once_and_a_crash_of_one_leaves_the_others_running(demo, options, finish, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options.jobs = 3
    runs = all_runs(demo)
    assert sweep_here(options, config.compose, [sys.executable, "-c", OVERLAPS]) == 1
    folders = [folder_of(options, run) for run in runs]
    assert max(int((folder / "at_once").read_text()) for folder in folders) == 3
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


BEATEN = textwrap.dedent("""
    import json, sys
    from pathlib import Path

    from isda_repro.tables.owner import here

    owner = Path(sys.argv[-1]).with_name("owner.json")
    if owner.parent.name == RUN and not owner.exists():
        owner.write_text(json.dumps({**here(), "pid": OTHER}))
        sys.exit(2)
    exec(TRAINER)
""")


def test_runs_that_another_process_works_on_are_waited_for(demo, options, trainer, capfd):
    """As of a second sweep: one that holds it before it is begun here, and one that takes it in the same moment."""
    trainer()  # the surroundings that its program needs
    held, beaten, *others = [run.run_id for run in all_runs(demo)]
    other = subprocess.Popen(["sleep", "600"])
    owner = Path(options.runs_dir) / held / "owner.json"
    owner.parent.mkdir(parents=True)
    owner.write_text(json.dumps({**here(), "pid": other.pid}))

    def end_when_nothing_else_is_left():
        while len(started(options)) < len(others):
            time.sleep(0.05)
        other.kill()
        other.wait()

    threading.Thread(target=end_when_nothing_else_is_left, daemon=True).start()
    program = f"RUN, OTHER, TRAINER = {beaten!r}, {other.pid}, {TRAINER!r}\n{BEATEN}"
    assert sweep_here(options, config.compose, [sys.executable, "-c", program]) == 0
    assert started(options) == [*others, held, beaten]
    out = capfd.readouterr().out
    for run in (held, beaten):
        assert f"{run}: another process works on it, and is waited for\n" in out
    assert "table=demo: 6 of 6 runs done, 7 started now" in out
