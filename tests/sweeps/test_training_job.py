"""What a job of a SLURM sweep does: it trains, and saves, waits or fails."""

import json
import signal
import subprocess
import textwrap
import threading

import pytest
from sweeps import until

from isda_repro.runs.exit_status import ExitStatus, read_exit_status, write_exit_status
from isda_repro.runs.lock import here
from isda_repro.sweeps import slurm
from isda_repro.sweeps.slurm import TrainingJob

SAVES = textwrap.dedent("""
    import json, os, signal, sys, time
    from pathlib import Path

    folder = Path(sys.argv[1]).parent

    def stop(number, frame):
        (folder / "heeded").write_text(signal.Signals(number).name)
        (folder / "ended.json").write_text(json.dumps({"exit_code": 75, "said": "stopped and saved"}))
        sys.exit(75)

    signal.signal(signal.SIGUSR1, stop)
    (folder / "began").touch()
    while not (folder / "finish").exists():
        time.sleep(0.02)
    (folder / "result.json").touch()
""")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Return a job whose training saves and exits on a signal, and finishes when a file ``finish`` exists."""
    script = tmp_path / "train.py"
    script.write_text(SAVES)
    monkeypatch.setattr(slurm, "ROOT", tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    return TrainingJob(folder / "config.yaml", 1, 1)


def begun(function):
    """Run the function in a thread; return the thread and a list for its result or its error."""
    outcome = []

    def collect():
        try:
            outcome.append(function())
        except RuntimeError as error:
            outcome.append(error)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    return thread, outcome


def test_job_trains_to_its_result_and_a_stop_in_between_makes_it_another_job(job):
    folder = job.config.parent
    write_exit_status(folder, ExitStatus(2, "of before"))
    thread, outcome = begun(job)
    until((folder / "began").exists)
    assert read_exit_status(folder) is None
    delayed = job.checkpoint()
    thread.join()
    assert (folder / "heeded").read_text() == "SIGUSR1"
    assert isinstance(outcome[0], RuntimeError)
    assert "stopped and saved" in str(outcome[0])
    again = delayed.function
    assert (again.config, again.nodes, again.processes) == (job.config, 1, 1)
    (folder / "finish").touch()
    assert again() == str(folder / "result.json")
    assert read_exit_status(folder) is None
    assert (folder / "log.txt").read_text().count("job") == 2, "the log of the job before is kept"


def test_job_of_a_run_that_has_its_result_cleans_up_what_is_left(job):
    folder = job.config.parent
    (folder / "result.json").touch()
    assert job() == str(folder / "result.json")
    assert not (folder / "began").exists(), "there is nothing to do"
    (folder / "checkpoint-000000010.pt").touch()
    (folder / "finish").touch()
    assert job() == str(folder / "result.json")
    assert (folder / "began").exists(), "its process died before it had cleaned up"


def test_job_whose_training_is_killed_fails_with_its_signal(job):
    folder = job.config.parent
    thread, outcome = begun(job)
    until((folder / "began").exists)
    job._process.kill()
    thread.join()
    assert isinstance(outcome[0], RuntimeError)
    assert "SIGKILL" in str(outcome[0])
    assert read_exit_status(folder).exit_code == -signal.SIGKILL
    assert job.checkpoint().function.config == job.config, "there is nothing to save"
    again = TrainingJob(job.config, 2, 8).checkpoint().function
    assert (again.config, again.nodes, again.processes) == (job.config, 2, 8)


def test_job_waits_while_another_process_works_on_its_run(job, monkeypatch):
    folder, looks, alive = job.config.parent, [], slurm.lives

    def lives(where):
        looks.append(where)
        return alive(where)

    monkeypatch.setattr(slurm, "lives", lives)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.02)
    other = subprocess.Popen(["sleep", "600"])
    (folder / "owner.json").write_text(json.dumps({**here(), "pid": other.pid}))
    thread, outcome = begun(job)
    until(lambda: len(looks) > 2)
    (folder / "result.json").touch()
    other.kill()
    other.wait()
    thread.join()
    assert outcome == [str(folder / "result.json")]
    assert not (folder / "began").exists(), "the other has finished it"
