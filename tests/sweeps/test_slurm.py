"""Commands to SLURM and their output, with shell scripts in its place; tests/test_cluster.py uses the real one."""

import errno
import fcntl
import json
import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest
from sweeps import all_runs, compose, numbers_of, one_needs_the_other

from isda_repro import config
from isda_repro.errors import EXIT_INTERRUPTED, StoppedError, UserError
from isda_repro.runs.exit_status import ExitStatus, read_exit_status, write_exit_status
from isda_repro.sweeps import slurm
from isda_repro.sweeps.slurm import TrainingJob, minutes, sweep_on_slurm
from isda_repro.sweeps.slurm_queue import SUBMITTED, Waiting, job_of, log_of, note_job, query_queue
from isda_repro.sweeps.status import cancel, status
from isda_repro.sweeps.sweep import SweepOptions

SCRIPT = "$PWD/runs/.slurm/.submission_file_1.sh"  # squeue shows the command of each job
SBATCH = 'n=$(($(cat count 2>/dev/null || echo 76) + 1)); echo $n > count; cp "$1" job$n; echo Submitted batch job $n'


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return ``program(name, script)``, which puts a shell script on the PATH; tests run in an empty directory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def put(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    put("srun", "true")
    put("squeue", "true")
    put("sbatch", SBATCH)
    return put


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30", 30), ("2:30", 3), ("4:00:00", 240), ("0:02:30", 3), ("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)],
)
def test_time_limits_are_sbatchs(limit, expected):
    assert minutes(limit) == expected


@pytest.mark.parametrize(
    ("changed", "token"),
    [
        ({"time": "soon"}, "time=soon"),
        ({"time": "0"}, "time=0"),
        ({"time": "2:00"}, r"time=2:00.*2:00:00"),
        ({"nodes": 0}, "nodes=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"cpus": 0}, "cpus=0"),
        ({"max_parallel": 0}, "max_parallel=0"),
        ({"slurm": ["exclusive"]}, r"slurm=\[exclusive\]"),
        ({"slurm": ["comment=a\n#SBATCH --wrap=evil"]}, "slurm="),
        ({"slurm": ["comment\n#SBATCH --wrap=evil"]}, "slurm="),
        ({"slurm": ["a b=c"]}, "slurm="),
        ({"slurm": ["comment=caf\udce9"]}, "slurm="),
        ({"partition": "gpu\n#SBATCH --wrap=evil"}, "partition="),
        ({"memory": "1G\r#SBATCH"}, "memory="),
        ({"runs_dir": "a\nb"}, "runs_dir="),
        ({"runs_dir": "a%j"}, "runs_dir="),
        ({"minutes": 8}, "minutes="),
        ({"jobs": 2}, "jobs="),
        ({"runs_per_gpu": 2}, "runs_per_gpu="),
    ],
)
def test_options_that_cannot_be_are_named(changed, token):
    with pytest.raises(UserError, match=token):
        sweep_on_slurm(SweepOptions("demo", cluster="slurm", **changed), compose)


def test_jobs_are_refused_where_there_is_no_slurm_and_a_dry_run_is_not(demo, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch"):
        sweep_on_slurm(SweepOptions("demo", cluster="slurm"), compose)
    assert sweep_on_slurm(SweepOptions("demo", cluster="slurm", dry_run=True), compose) == 0
    assert all(f"runs/{run.run_id}/config.yaml" in capfd.readouterr().out for run in all_runs(demo)[:1])
    assert list(tmp_path.iterdir()) == []


def submitted(folder, job):
    folder.mkdir(parents=True)
    note_job(folder, job)


def lines_of(path):
    """Return the options that sbatch is given, by name."""
    return dict(re.findall(r"#SBATCH --([\w-]+)=?(.*)", path.read_text()))


def test_jobs_are_one_array_and_are_submitted_once(demo, program, tmp_path, capfd, finish):
    runs_dir = tmp_path / "runs"
    asked = SweepOptions("demo", cluster="slurm", partition="gpu", max_parallel=2, gpus=2, cpus=3, memory="32G")
    asked.slurm, asked.time = ["account=me"], "1-0"
    for name in ("squeue", "sbatch"):
        last = SBATCH if name == "sbatch" else "true"
        program(name, f"flock -n runs/{SUBMITTED}/lock true || echo {name} >> locked\n{last}")
    runs = all_runs(demo)
    finish(runs[0], 2.0)
    submitted(runs_dir / runs[1].run_id, "5")
    write_exit_status(runs_dir / runs[1].run_id, ExitStatus(2, "of before"))
    assert sweep_on_slurm(asked, compose) == 0
    assert (tmp_path / "locked").read_text().split() == ["squeue", "sbatch"], "no other sweep submits meanwhile"
    with (runs_dir / SUBMITTED / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    told = lines_of(tmp_path / "job77")
    expected = {"array": "0-4%2", "partition": "gpu", "gpus-per-node": "2", "cpus-per-task": "6", "mem": "32G"}
    expected |= {"account": "me", "time": "1440", "nodes": "1", "ntasks-per-node": "1", "requeue": ""}
    assert {name: told.get(name) for name in expected} == expected
    assert told["signal"] == "USR2@120"
    assert [job_of(runs_dir / run.run_id) for run in runs] == [None, *(f"77_{task}" for task in range(5))]
    assert read_exit_status(runs_dir / runs[1].run_id) is None
    assert config.read_frozen(runs_dir / runs[5].run_id / "config.yaml").run_id == runs[5].run_id

    queue = [(0, "RUNNING", "None"), (1, "PENDING", "Priority"), (2, "PENDING", "Dependency")]
    jobs_of_arrays_apart = '[ "$1 $3" = "--me --array" ] || exit 1\n'
    program(
        "squeue",
        jobs_of_arrays_apart + "\n".join(f'echo "77_{task}|{state}|{why}|{SCRIPT}"' for task, state, why in queue),
    )
    program("sacct", 'echo "77_3|OUT_OF_MEMORY"; echo "77_[4,6-9%2]|CANCELLED by 0"')
    dry = SweepOptions("demo", cluster="slurm", dry_run=True)
    assert sweep_on_slurm(dry, compose) == 0
    out = capfd.readouterr().out
    assert [f"{run.run_id}/config.yaml" in out for run in runs] == [False] * 4 + [True] * 2
    assert numbers_of(out, "table=demo") == [1, 6, 3, 2]

    def words():
        said = " ".join(list(status(asked, compose))[1:])
        return re.findall(r"seed \d: (\w+)", said), said

    found, said = words()
    assert found == ["running", "queued", "queued", "failed", "cancelled"]
    assert all(token in said for token in ("77_0", "77_1", "Priority", "77_2", "Dependency", "77_3", "OUT_OF_MEMORY"))
    own_log = log_of(runs_dir, "77_3").relative_to(tmp_path)
    own_log.write_text("submitit INFO - Loading pickle\n")
    assert str(own_log) in words()[1]
    own_log.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    assert "Detected 1 oom_kill event" in words()[1]

    program("scancel", f'echo "$@" > {tmp_path}/cancelled')
    capfd.readouterr()
    assert cancel(asked, compose) == 0
    assert (tmp_path / "cancelled").read_text().split() == ["77_0", "77_1", "77_2"]
    assert re.findall(r"\d+", capfd.readouterr().out) == ["3", "0"]


def test_runs_that_others_need_are_an_array_before_them(program, tmp_path):
    needed = one_needs_the_other(tmp_path / "own.yaml")
    assert sweep_on_slurm(SweepOptions("own.yaml", cluster="slurm"), compose) == 0
    jobs = {loss: [job_of(tmp_path / "runs" / run.run_id) for run in runs] for loss, runs in needed.items()}
    assert jobs == {"ISDA": ["77_0", "77_1"], "CE": ["78_0", "78_1"]}
    first, second = lines_of(tmp_path / "job77"), lines_of(tmp_path / "job78")
    assert "dependency" not in first
    assert (second["dependency"], second["kill-on-invalid-dep"]) == ("afterok:77_0:77_1", "yes")


def test_part_of_a_table_is_submitted_looked_at_and_cancelled(demo, program, tmp_path, capfd):
    asked, (ce, isda) = SweepOptions("demo", cluster="slurm", only=["ISDA"], seeds=[1]), demo[1].values()
    assert sweep_on_slurm(asked, compose) == 0
    out = capfd.readouterr().out
    assert "status table=demo 'only=[ISDA]' 'seeds=[1]'" in out
    jobs = {run.run_id: job_of(tmp_path / "runs" / run.run_id) for run in (*ce, *isda)}
    assert {name: job for name, job in jobs.items() if job} == {isda[1].run_id: "77"}
    submitted(tmp_path / "runs" / ce[0].run_id, "5")
    program("squeue", 'echo "77|PENDING|Priority|' + SCRIPT + '"; echo "5|RUNNING|None|' + SCRIPT + '"')
    title, *cells = status(asked, compose)
    assert (numbers_of(title, "table=demo"), len(cells)) == ([0, 1], 1)
    program("scancel", f'echo "$@" > {tmp_path}/cancelled')
    assert cancel(asked, compose) == 0
    assert (tmp_path / "cancelled").read_text().split() == ["77"]


@pytest.mark.parametrize(
    ("job", "command"),
    [
        ("5", "{cwd}/other.sh"),  # another job of this user: the folder was copied, or ids began again
        ("5", "{cwd}/other/.slurm/.submission_file_1.sh"),
        ("5", "{cwd}/runs/.slurm"),
        ("--state=all", SCRIPT),
        ("5 6", SCRIPT),
        ("5_[0-9]", SCRIPT),
        ([5], SCRIPT),
    ],
)
def test_job_that_is_not_certainly_of_these_runs_is_not_cancelled(demo, program, tmp_path, capfd, job, command):
    folder = tmp_path / "runs" / all_runs(demo)[0].run_id
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"cluster": "slurm", "job_id": job}))
    program("squeue", f'echo "{job}|RUNNING|None|{command.format(cwd=tmp_path)}"')
    program("scancel", f"touch {tmp_path}/cancelled")
    assert cancel(SweepOptions("demo"), compose) == 0
    assert not (tmp_path / "cancelled").exists()
    assert re.findall(r"\d+", capfd.readouterr().out) == ["0", "0"]
    assert "job" not in "".join(status(SweepOptions("demo"), compose))


@pytest.mark.parametrize(
    ("said", "token"),
    [
        ('echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1', "invalid partition specified: gpu$"),
        ('echo "sbatch: unrecognized option --nosuch" >&2; echo "Try sbatch --help" >&2; exit 1', "--nosuch$"),
    ],
)
def test_reason_of_a_cluster_that_refuses_is_passed_on(program, said, token):
    program("sbatch", said)
    with pytest.raises(UserError, match=token) as caught:
        sweep_on_slurm(SweepOptions("demo", cluster="slurm"), compose)
    assert "\n" not in str(caught.value)


def test_cluster_that_does_not_answer_is_named(demo, program, tmp_path, monkeypatch):
    asked = SweepOptions("demo", cluster="slurm")
    submitted(tmp_path / "runs" / all_runs(demo)[0].run_id, "5")
    program("squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(UserError, match=r"squeue.*Unable to contact"):
        list(status(asked, compose))
    program("squeue", "exec sleep 600")
    monkeypatch.setattr("isda_repro.sweeps.slurm_queue.SECONDS", 0.2)
    with pytest.raises(UserError, match="squeue"):
        list(status(asked, compose))


def test_jobs_are_noted_before_an_interrupted_sweep_ends(demo, program, tmp_path, monkeypatch):
    note = slurm.note_job

    def interrupted(folder, job):
        os.kill(os.getpid(), signal.SIGINT)
        note(folder, job)

    monkeypatch.setattr(slurm, "note_job", interrupted)
    monkeypatch.setattr("isda_repro.stopping.ECHO_SECONDS", 0.0)
    with pytest.raises(StoppedError) as stopped:
        sweep_on_slurm(SweepOptions("demo", cluster="slurm"), compose)
    assert stopped.value.exit_code == EXIT_INTERRUPTED
    assert [job_of(tmp_path / "runs" / run.run_id) for run in all_runs(demo)] == [f"77_{task}" for task in range(6)]


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EIO, False)])
def test_file_system_without_locks_has_sweeps_too(demo, program, tmp_path, monkeypatch, number, goes_on):
    def refuse(lock, operation):
        raise OSError(number, "no lock")

    monkeypatch.setattr("isda_repro.sweeps.slurm_queue.fcntl.flock", refuse)
    asked = SweepOptions("demo", cluster="slurm")
    if goes_on:
        assert sweep_on_slurm(asked, compose) == 0
    else:
        with pytest.raises(OSError, match=r"no lock.*\.slurm/lock"):
            sweep_on_slurm(asked, compose)
    assert (tmp_path / "job77").exists() == goes_on


def test_result_that_cannot_be_used_is_named_where_jobs_are_submitted(demo, program, tmp_path, capfd):
    run = all_runs(demo)[0]
    (tmp_path / "runs" / run.run_id).mkdir(parents=True)
    (tmp_path / "runs" / run.run_id / "result.json").write_text("{")
    assert sweep_on_slurm(SweepOptions("demo", cluster="slurm"), compose) == 0
    assert run.run_id in capfd.readouterr().err


def test_queue_without_accounting_still_knows_what_waits(program):
    jobs = ("4|COMPLETING|None", "9|RUNNING|None", "7|PENDING|a b")
    program("squeue", "\n".join(f'echo "{job}|{SCRIPT}"' for job in jobs))
    program("sacct", "exit 1")
    queue = query_queue(Path("runs"), ["4", "5", "7"])
    assert queue.waiting == {"4": Waiting("COMPLETING", "None"), "7": Waiting("PENDING", "a b")}
    assert query_queue(Path("other"), ["4", "5", "7"]).waiting == {}, "its jobs are others"
    states = ("RUNNING", "COMPLETING", "PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
    assert [Waiting(state, "").runs for state in states] == [True, True, False, False, False, False]
    assert queue.ended == {}
    program("squeue", "exit 1")
    assert query_queue(Path("runs"), []).waiting == {}, "nothing is asked where there is no job"


def test_job_of_several_processes_is_torchruns(tmp_path, program, monkeypatch):
    path = tmp_path / "config.yaml"
    assert TrainingJob(path, 1, 1).command() == [sys.executable, "train.py", str(path)]
    assert {"--standalone", "--nproc_per_node=4"} <= set(TrainingJob(path, 1, 4).command())
    program("scontrol", "echo alpha; echo beta")
    monkeypatch.setenv("SLURM_JOB_ID", "40007")
    for node, is_host in (("0", 1), ("1", 0)):
        monkeypatch.setenv("SLURM_NODEID", node)
        command = TrainingJob(path, 2, 8).command()
        assert command[-2:] == ["train.py", str(path)]
        asked = {"--nnodes=2", "--nproc_per_node=8", "--rdzv_endpoint=alpha:20007", f"--rdzv_conf=is_host={is_host}"}
        assert asked <= set(command)
