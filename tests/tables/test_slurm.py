"""What is said to SLURM and read from it, with scripts in its place; tests/test_cluster.py has the real one."""

import json
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.tables import slurm
from isda_repro.tables.ending import Ending, ending_of, note_ending, read_ending
from isda_repro.tables.owner import here
from isda_repro.tables.queue import Waiting, job_of, log_of, look, note_job
from isda_repro.tables.slurm import TrainingJob, minutes, sweep_on_slurm
from isda_repro.tables.status import cancel, status
from isda_repro.tables.sweep import SweepOptions


@pytest.fixture
def program(tmp_path, monkeypatch):
    """``program(name, script)`` puts a shell script where commands are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def put(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30", 30), ("1:30", 2), ("4:00:00", 240), ("0:00:30", 1), ("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)],
)
def test_time_limits_are_sbatchs(limit, expected):
    assert minutes(limit) == expected


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"time": "soon"}, "time=soon must be a time limit as sbatch takes it"),
        ({"time": "0"}, "time=0 is less than a minute"),
        ({"nodes": 0}, "nodes=0 must be a whole number from 1 on"),
        ({"gpus": -1}, "gpus=-1 must be a whole number from 0 on"),
        ({"max_parallel": 0}, "max_parallel=0 must be"),
        ({"slurm": ["exclusive"]}, r"slurm=\[exclusive\] must be options of sbatch as name=value"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        sweep_on_slurm(SweepOptions("demo", cluster="slurm", **changed), config.compose)


def test_where_there_is_no_slurm_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch is not here; run this where jobs are submitted, or use cluster=local"):
        sweep_on_slurm(SweepOptions("demo", cluster="slurm"), config.compose)


def test_jobs_are_one_array_and_are_submitted_once(demo, program, tmp_path, monkeypatch, capfd, finish):
    runs_dir = tmp_path / "runs"
    asked = SweepOptions("demo", cluster="slurm", runs_dir=str(runs_dir), partition="gpu", max_parallel=2, gpus=2)
    asked.slurm = ["account=me"]
    program("sbatch", f'cp "$1" {tmp_path}/submitted; echo Submitted batch job 77')
    program("srun", "true")
    program("squeue", "true")
    runs = [run for cell in demo[1].values() for run in cell]
    finish(runs[0], 2.0)
    assert sweep_on_slurm(asked, config.compose) == 0
    submitted = (tmp_path / "submitted").read_text()
    for line in ("--array=0-4%2", "--partition=gpu", "--gpus-per-node=2", "--account=me", "--requeue", "--time=1440"):
        assert f"#SBATCH {line}" in submitted
    assert "#SBATCH --signal=USR2@120" in submitted
    assert [job_of(runs_dir / run.run_id) for run in runs] == [None, *(f"77_{task}" for task in range(5))]
    out = capfd.readouterr().out
    assert "table=demo: 1 of 6 runs done, 0 in the queue, 5 to submit" in out
    assert "submitted 5 runs as 77" in out

    program("squeue", "\n".join(f'echo "77_{task}|{state}|1:00|{why}"' for task, state, why in QUEUE))
    program("sacct", 'echo "77_3|OUT_OF_MEMORY"; echo "77_[4,6-9%2]|CANCELLED by 0"')
    assert (
        sweep_on_slurm(SweepOptions("demo", cluster="slurm", runs_dir=str(runs_dir), dry_run=True), config.compose) == 0
    )
    assert "3 in the queue, 2 to submit" in capfd.readouterr().out
    *_, ce, isda = status(asked, config.compose)
    assert "done 1 of 3; seed 1: running, not yet training (job 77_0); seed 2: queued (job 77_1, Priority)" in ce
    assert "seed 0: queued (job 77_2, Dependency); seed 1: failed: job 77_3 is OUT_OF_MEMORY; seed 2: cancelled" in isda
    own_log = log_of(runs_dir, "77_3")
    own_log.write_text("submitit INFO - Loading pickle\n")
    *_, isda = status(asked, config.compose)
    assert f"failed: job 77_3 is OUT_OF_MEMORY (log: {own_log})" in isda
    own_log.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    *_, isda = status(asked, config.compose)
    assert f"failed: job 77_3 is OUT_OF_MEMORY: slurmstepd: error: Detected 1 oom_kill event (log: {own_log})" in isda

    program("scancel", f'echo "$@" > {tmp_path}/cancelled')
    assert cancel(asked, config.compose) == 0
    assert (tmp_path / "cancelled").read_text().split() == ["77_0", "77_1", "77_2"]


QUEUE = [(0, "RUNNING", "None"), (1, "PENDING", "Priority"), (2, "PENDING", "Dependency")]


def test_a_cluster_that_refuses_or_does_not_answer_is_one_sentence(demo, program, tmp_path, monkeypatch):
    asked = SweepOptions("demo", cluster="slurm", runs_dir=str(tmp_path / "runs"))
    program("sbatch", 'echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1')
    program("srun", "true")
    program("squeue", "true")
    with pytest.raises(UserError, match=r"SLURM refuses the jobs: .*invalid partition specified: gpu") as caught:
        sweep_on_slurm(asked, config.compose)
    assert "\n" not in str(caught.value)
    program("sbatch", 'echo "sbatch: unrecognized option --nosuch" >&2; echo "Try sbatch --help" >&2; exit 1')
    with pytest.raises(UserError, match=r"SLURM refuses the jobs: .*unrecognized option --nosuch$"):
        sweep_on_slurm(asked, config.compose)
    run = next(iter(demo[1].values()))[0]
    note_job(tmp_path / "runs" / run.run_id, "5")
    program("squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(UserError, match="squeue failed: slurm_load_jobs error: Unable to contact"):
        list(status(asked, config.compose))
    program("squeue", "exec sleep 60")
    monkeypatch.setattr("isda_repro.tables.queue.SECONDS", 0.2)
    with pytest.raises(UserError, match="squeue did not answer within 0 s"):
        list(status(asked, config.compose))


def test_a_queue_without_accounting_still_knows_what_waits(program):
    program("squeue", 'echo "4|COMPLETING|0:10|None"; echo "9|RUNNING|1:00|None"')
    program("sacct", "exit 1")
    queue = look(["4", "5"])
    assert queue.waiting == {"4": Waiting("COMPLETING", "0:10", "None")}
    assert queue.waiting["4"].runs
    assert queue.ended == {}
    assert look([]).waiting == {}


# ------------------------------------------------------------------------------------------------------ what a job does

SAVES = textwrap.dedent("""
    import json, signal, sys, time
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
    """A job whose training saves when it is asked to, and ends when there is a file ``finish``."""
    script = tmp_path / "train.py"
    script.write_text(SAVES)
    monkeypatch.setattr(slurm, "ROOT", tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    return TrainingJob(folder / "config.yaml", 1, 1)


def until(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_trains_to_its_result_and_a_stop_in_between_makes_it_another_job(job):
    folder = job.config.parent
    said = []

    def train():
        with pytest.raises(RuntimeError) as caught:
            job()
        said.append(str(caught.value))

    thread = threading.Thread(target=train)
    thread.start()
    until(folder / "began")
    delayed = job.checkpoint()
    thread.join(timeout=30)
    assert (folder / "heeded").read_text() == "SIGUSR1"
    assert said == ["run has stopped: stopped and saved"]
    again = delayed.function
    assert (again.config, again.nodes, again.processes) == (job.config, 1, 1)
    (folder / "finish").touch()
    assert again() == str(folder / "result.json")
    assert read_ending(folder) is None
    assert (folder / "log.txt").read_text().count("--- job") == 2


def test_a_job_whose_training_is_killed_fails_and_says_so(job):
    folder = job.config.parent

    def train():
        with pytest.raises(RuntimeError, match="run has failed with exit code -9: ended by SIGKILL"):
            job()

    thread = threading.Thread(target=train)
    thread.start()
    until(folder / "began")
    job._process.kill()
    thread.join(timeout=30)
    assert read_ending(folder) == (-9, "ended by SIGKILL")
    assert job.checkpoint().function.config == job.config, "there is nothing to save"


def test_a_job_waits_while_somebody_else_works_on_its_run(job, monkeypatch):
    folder = job.config.parent
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.05)
    other = subprocess.Popen(["sleep", "60"])
    owner = {**here(), "pid": other.pid}
    (folder / "owner.json").write_text(json.dumps(owner))
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(job()))
    thread.start()
    time.sleep(0.3)
    assert not (folder / "began").exists()
    (folder / "result.json").touch()
    other.kill()
    other.wait()
    thread.join(timeout=30)
    assert outcome == [str(folder / "result.json")]
    assert not (folder / "began").exists(), "the other has finished it"


def test_jobs_of_several_processes_are_torchruns(tmp_path, program, monkeypatch):
    assert TrainingJob(tmp_path / "config.yaml", 1, 1).command() == [
        sys.executable,
        "train.py",
        str(tmp_path / "config.yaml"),
    ]
    assert "--nproc_per_node=4" in TrainingJob(tmp_path / "config.yaml", 1, 4).command()
    program("scontrol", "echo alpha; echo beta")
    monkeypatch.setenv("SLURM_JOB_ID", "40007")
    monkeypatch.setenv("SLURM_NODEID", "1")
    command = TrainingJob(tmp_path / "config.yaml", 2, 8).command()
    assert {"--nnodes=2", "--nproc_per_node=8", "--rdzv_endpoint=alpha:20007", "--rdzv_conf=is_host=0"} <= set(command)


def test_how_a_process_ended_is_told_by_what_it_noted_its_signal_or_its_log(tmp_path):
    assert ending_of(tmp_path, -9) == (-9, "ended by SIGKILL")
    assert ending_of(tmp_path, 1).said == "exit code 1"
    (tmp_path / "log.txt").write_text("epoch 1\nRuntimeError: a defect\nlast words\n")
    assert ending_of(tmp_path, 1).said == "RuntimeError: a defect"
    note_ending(tmp_path, Ending(75, "SIGTERM: stopped"))
    note_ending(tmp_path, Ending(2, "lost contact"), keep=True)
    assert ending_of(tmp_path, 1) == (75, "SIGTERM: stopped")
    (tmp_path / "ended.json").write_text("{")
    assert read_ending(tmp_path) is None
    note_ending(tmp_path / "missing", Ending(1, "x"))
    assert not (tmp_path / "missing").exists()
