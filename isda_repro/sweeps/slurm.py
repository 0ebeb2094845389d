"""Sweeps on a SLURM cluster: job arrays of frozen configurations, submitted by submitit.

A job trains until the run is finished, or until SLURM asks it to stop, shortly before its time limit or because of a
preemption. Then the run saves and the job is requeued. The same sweep command submits again what is neither finished
nor in the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isda_repro.config import CONF_DIR
from isda_repro.config.checks import NOT_UTF8
from isda_repro.console import UNPRINTABLE, say
from isda_repro.errors import StoppedError, UserError
from isda_repro.experiments.plan import Compose, Run
from isda_repro.runs.exit_status import LOG, clear_exit_status, exit_status_of, read_exit_status, write_exit_status
from isda_repro.runs.lock import lives
from isda_repro.runs.records import RecordError
from isda_repro.stopping import exit_code, handle_stop_signals
from isda_repro.sweeps.slurm_queue import SUBMITTED, job_of, note_job, query_queue, submitting
from isda_repro.sweeps.sweep import (
    Missing,
    SweepOptions,
    has_result,
    is_over,
    missing,
    sweep_command,
    write_frozen_runs,
)

ROOT = CONF_DIR.parent
SIGNAL_DELAY_SECONDS = 120  # before the time limit: SLURM's signal may be a minute late, and saving takes a while
NEVER = 10**6  # how often a job may reach its time limit before submitit gives up
LOOK_SECONDS = 5.0
FIRST_PORT, PORTS = 20000, 20000
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
FORWARDED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


@dataclass
class TrainingJob:
    """Callable that trains one run; it is executed on each node of a job.

    submitit calls it, and calls ``checkpoint`` before the job must end.

    Args:
        config: the run's frozen configuration.
        nodes: number of nodes of the job.
        processes: number of training processes on each node.
    """

    config: Path
    nodes: int
    processes: int

    def __call__(self) -> str:
        """Train to the end and return the path of ``result.json``.

        Raises:
            RuntimeError: the run has stopped or failed, which makes the job fail.
        """
        folder = self.config.parent
        with (folder / LOG).open("ab", buffering=0) as log:
            log.write(f"--- job {os.environ.get('SLURM_JOB_ID')} on {os.environ.get('SLURMD_NODENAME')}\n".encode())
            while lives(folder):  # an earlier job, whose node SLURM took for dead, or another sweep
                time.sleep(LOOK_SECONDS)
            if is_over(folder):
                return str(folder / "result.json")
            if os.environ.get("SLURM_PROCID", "0") == "0":
                clear_exit_status(folder)
            environment = {**os.environ, "TORCHELASTIC_SIGNALS_TO_HANDLE": FORWARDED}
            self._process = subprocess.Popen(self.command(), cwd=ROOT, stdout=log, stderr=log, env=environment)
        while self._process.poll() is None:
            time.sleep(0.2)
        code = self._process.returncode
        if has_result(folder):
            return str(folder / "result.json")
        ending = read_exit_status(folder)
        if ending is not None and ending.is_stop:  # a signal reached the processes directly, not through this job
            raise RuntimeError(f"{folder.name} has stopped: {ending.said}")
        if ending is None:
            write_exit_status(folder, exit_status_of(folder, code))
        raise RuntimeError(f"{folder.name} has failed with exit code {code}: {exit_status_of(folder, code).said}")

    def checkpoint(self) -> Any:
        """Make the run save and stop, and return the submission with which the requeued job continues."""
        from submitit.helpers import DelayedSubmission

        if self._lives():
            self._process.send_signal(signal.SIGUSR1)
        while self._lives():
            time.sleep(0.1)
        return DelayedSubmission(TrainingJob(self.config, self.nodes, self.processes))

    def command(self) -> list[str]:
        """Return the command that trains: one process, or torchrun on each node with its rendezvous on the first."""
        train = ["train.py", str(self.config)]
        if self.nodes == self.processes == 1:
            return [sys.executable, *train]
        if self.nodes == 1:
            return [*TORCHRUN, "--standalone", f"--nproc_per_node={self.processes}", *train]
        nodes = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True)
        job = int(os.environ["SLURM_JOB_ID"])
        return [
            *TORCHRUN,
            f"--nnodes={self.nodes}",
            f"--nproc_per_node={self.processes}",
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={nodes.stdout.split()[0]}:{FIRST_PORT + job % PORTS}",
            f"--rdzv_id={job}",
            f"--rdzv_conf=is_host={int(os.environ['SLURM_NODEID'] == '0')}",
            *train,
        ]

    def _lives(self) -> bool:
        """Return whether the training process is still running.

        It uses ``waitid``, because ``Popen.poll`` is not safe in a signal handler that may have interrupted it.
        """
        process = getattr(self, "_process", None)
        if process is None or process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False


def sweep_on_slurm(options: SweepOptions, compose: Compose) -> int:
    """Submit the runs that are neither finished nor in the queue, and return exit code 0.

    Raises:
        UserError: SLURM is not available here, an option is invalid, or SLURM refuses the jobs.
    """
    parameters = _parameters(options)
    absent = [command for command in ("sbatch", "srun") if shutil.which(command) is None]  # submitit needs srun too
    if absent and not options.dry_run:
        raise UserError(
            f"cluster=slurm: {absent[0]} is not here; run this where jobs are submitted, or use cluster=local"
        )
    what = missing(options, compose)
    if options.dry_run:
        for run in _to_submit(what)[0]:
            say(f"would submit {what.folder(run) / 'config.yaml'}")
        return 0
    with submitting(Path(options.runs_dir)):
        _submit(what, *_to_submit(what), parameters)
    return 0


def _to_submit(what: Missing) -> tuple[list[Run], dict[str, str | None]]:
    """Return the runs to submit, which are neither finished nor in the queue, and the last job id of every run."""
    jobs = {run.run_id: job_of(what.folder(run)) for run in what.runs}
    queue = query_queue(Path(what.options.runs_dir), filter(None, jobs.values()))
    over: list[Run] = []
    open_runs: list[Run] = []
    for run in what.runs:
        (over if what.is_over(run) else open_runs).append(run)
    runs = [run for run in open_runs if jobs[run.run_id] not in queue.waiting]
    say(
        f"table={what.table.name}: {len(over)} of {len(what.runs)} runs done, "
        f"{len(open_runs) - len(runs)} in the queue, {len(runs)} to submit"
    )
    for run in over:
        try:
            what.says(run)
        except RecordError as error:
            say(f"{run.run_id}: its result cannot be used: {error}; delete the file and submit again", sys.stderr)
    return runs, jobs


def _parameters(options: SweepOptions) -> dict[str, Any]:
    """Return the sweep's options as parameters of submitit's executor.

    Raises:
        UserError: an option is invalid, or is only for ``cluster=local``.
    """
    if local := [name for name in ("jobs", "runs_per_gpu", "minutes") if getattr(options, name) is not None]:
        raise UserError(
            f"{local[0]}= is for cluster=local; SLURM takes time= of a job and max_parallel= jobs at once of each array"
        )
    for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("max_parallel", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be a whole number from {least} on")
    _refuse_script_lines(options)
    more = dict(option.partition("=")[::2] for option in options.slurm)
    if wrong := [option for option in options.slurm if not re.match(r"[A-Za-z][\w-]*=", option)]:
        raise UserError(f"slurm=[{wrong[0]}] must be options of sbatch as name=value, slurm=[account=x,qos=y]")
    parameters: dict[str, Any] = {
        "time": minutes(options.time),
        "nodes": options.nodes,
        "ntasks_per_node": 1,
        "signal_delay_s": SIGNAL_DELAY_SECONDS,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **more},
    }
    wanted = {
        "partition": options.partition,
        "gpus_per_node": options.gpus or None,
        "cpus_per_task": None if options.cpus is None else options.cpus * max(1, options.gpus),
        "mem": options.memory,
        "array_parallelism": options.max_parallel,
    }
    return parameters | {name: value for name, value in wanted.items() if value is not None}


def _refuse_script_lines(options: SweepOptions) -> None:
    """Refuse texts that would add lines to the job script, or that SLURM or its script would not take literally.

    Raises:
        UserError: an option has a control character or bytes that are not UTF-8, or ``runs_dir`` has a ``%``.
    """
    for name, value in vars(options).items():
        for text in value if isinstance(value, list) else [value]:
            if UNPRINTABLE.search(str(text)) or NOT_UTF8.search(str(text)):
                raise UserError(f"{name}={str(text)!a} has characters that a job script cannot have: leave them out")
    if "%" in (folder := str(Path(options.runs_dir).resolve())):
        raise UserError(
            f"runs_dir={folder} has a %, which SLURM replaces in the names of its logs: name another folder"
        )


def minutes(limit: str) -> int:
    """Parse a time limit of sbatch and return it in minutes, rounded up.

    sbatch accepts minutes, minutes:seconds, hours:minutes:seconds and days-hours[:minutes[:seconds]].

    Raises:
        UserError: the text has none of these forms, or leaves no time to save.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(limit))
    if match is None:
        raise UserError(f"time={limit} must be a time limit as sbatch takes it: 30 (minutes), 4:00:00, or 2-00:00:00")
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None or len(numbers) == 3:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, mins, seconds = 0, *(*numbers, 0)[:2]
    total = (int(days or 0) * 24 + hours) * 60 + mins + -(-seconds // 60)
    if 60 * total <= SIGNAL_DELAY_SECONDS:  # the job would be asked to save as soon as it starts, and requeued for ever
        raise UserError(
            f"time={limit} is {total} minutes for sbatch, and a job needs more than {SIGNAL_DELAY_SECONDS} s to save: "
            "two hours are 2:00:00"
        )
    return total


def _submit(what: Missing, runs: Sequence[Run], jobs: dict[str, str | None], parameters: dict[str, Any]) -> None:
    """Submit runs in dependency order, one array for all that wait for the same jobs."""
    left, options = list(runs), what.options
    coming = {run.run_id for run in left}
    while left:
        ready = [run for run in left if not what.needs[run.run_id] & coming]
        waves: defaultdict[tuple[str, ...], list[Run]] = defaultdict(list)
        for run in ready:
            needed = (jobs[name] for name in what.unmet(run))
            waves[tuple(sorted(job for job in needed if job is not None))].append(run)
        for needed_jobs, wave in waves.items():
            _submit_array(what, wave, jobs, needed_jobs, parameters)
        coming -= {run.run_id for run in ready}
        left = [run for run in left if run.run_id in coming]
    if not runs:
        say("nothing to submit")
        return
    look_, end = (sweep_command(options, action=action) for action in ("status", "cancel"))
    say(f"to look: {look_}; to end them: {end}")


def _submit_array(
    what: Missing, wave: list[Run], jobs: dict[str, str | None], needed: tuple[str, ...], parameters: dict[str, Any]
) -> None:
    """Submit runs as one array that starts when the jobs ``needed`` have succeeded; add the new job ids to ``jobs``."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    options = what.options
    for run in wave:
        write_frozen_runs(run, what.folder(run) / "config.yaml")
        clear_exit_status(what.folder(run))
    executor = SlurmExecutor(folder=Path(options.runs_dir).resolve() / SUBMITTED, max_num_timeout=NEVER)
    executor.update_parameters(job_name=f"isda-{what.table.name}", **parameters)
    if needed:
        more = {**parameters["additional_parameters"], "kill_on_invalid_dep": "yes"}
        executor.update_parameters(dependency=f"afterok:{':'.join(needed)}", additional_parameters=more)
    tasks = [
        TrainingJob((what.folder(run) / "config.yaml").resolve(), options.nodes, max(1, options.gpus)) for run in wave
    ]
    asked: list[signal.Signals] = []
    with handle_stop_signals(asked.append):  # a job that no folder names would be submitted again
        try:
            with executor.batch():
                submitted = [executor.submit(task) for task in tasks]
        except FailedJobError as error:
            lines = (str(error).strip() or "no reason given").splitlines()
            reason = next((line for line in reversed(lines) if "error: " in line), lines[0])  # advice may follow it
            raise UserError(f"SLURM refuses the jobs: {reason}") from error
        for run, job in zip(wave, submitted, strict=True):
            jobs[run.run_id] = job.job_id
            note_job(what.folder(run), job.job_id)
    after = f", after {', '.join(needed)}" if needed else ""
    say(f"submitted {len(wave)} runs as {submitted[0].job_id.partition('_')[0]}{after}")
    if asked:
        raise StoppedError(f"{asked[0].name}: submits no more; the same command goes on", exit_code(asked[0]))
