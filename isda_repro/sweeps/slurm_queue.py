"""SLURM's view of jobs: ``squeue`` for those that wait or run, ``sacct`` for those that have ended."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from isda_repro.errors import UserError
from isda_repro.files import SMALL, atomic_write, named, open_regular
from isda_repro.runs.lock import NO_FILE_LOCKS

NAME = "job.json"  # in a run's folder: the job as which it was last submitted
SUBMITTED = ".slurm"  # folder beside the runs' folders, for submitit's own files
SECONDS = 30.0  # timeout of a SLURM command


class Waiting(NamedTuple):
    """A job that has not ended: SLURM's state, and the reason why it waits."""

    state: str
    reason: str

    @property
    def runs(self) -> bool:
        """True if the job has a node, which includes the state COMPLETING."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


@dataclass
class Queue:
    """Jobs of this user by job id: those that wait or run, and the final states of others."""

    waiting: dict[str, Waiting] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)


def note_job(folder: Path, job_id: str) -> None:
    """Record in a run's folder the job as which the run was submitted."""
    with atomic_write(folder / NAME) as file:
        file.write((json.dumps({"cluster": "slurm", "job_id": job_id}) + "\n").encode())


def job_of(folder: Path) -> str | None:
    """Return the id of the job as which a run was last submitted, or None if there is none, or nothing like one."""
    with (
        suppress(OSError, ValueError, KeyError, TypeError, RecursionError),
        open_regular(folder / NAME, SMALL) as file,
    ):
        job_id = str(json.loads(file.read())["job_id"])
        return job_id if re.fullmatch(r"[0-9]{1,12}(_[0-9]{1,9})?", job_id) else None
    return None


def log_of(runs_dir: Path, job_id: str) -> Path:
    """Return the path of submitit's log of a job.

    It contains what the job printed outside the run, for example the error if Python cannot start.
    """
    return runs_dir / SUBMITTED / f"{job_id}_0_log.out"


@contextmanager
def submitting(runs_dir: Path) -> Iterator[None]:
    """Lock against other sweeps that submit: the next one will find in the queue what this one has submitted.

    A file system may have no locks. Then two sweeps at the same time may both submit a run, whose second job waits.
    """
    path = runs_dir / SUBMITTED / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_FILE_LOCKS:
                raise named(error, path) from error
        yield


def query_queue(runs_dir: Path, job_ids: Iterable[str]) -> Queue:
    """Ask SLURM for the states of these jobs. The result is empty if there are no jobs, or no SLURM.

    An id in a file says little: ids begin again at 1, and folders are copied to other clusters. So a waiting job counts
    only if it is this user's and its command is a script that submitit has written below ``runs_dir``. On a cluster
    without accounting, the states of ended jobs are missing.

    Raises:
        UserError: ``squeue`` fails, or does not answer.
    """
    known = set(job_ids)
    if not known or shutil.which("squeue") is None:
        return Queue()
    lines = call_slurm("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%o")
    fields = (line.split("|", 3) for line in lines)
    scripts = str(runs_dir.resolve() / SUBMITTED) + os.sep
    queue = Queue(
        {job_id: Waiting(*rest) for job_id, *rest, command in fields if job_id in known and command.startswith(scripts)}
    )
    if gone := sorted(known - queue.waiting.keys()):
        with suppress(UserError):  # a cluster without accounting
            arrays = sorted({job_id.partition("_")[0] for job_id in gone})
            lines = call_slurm("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(arrays))
            ended = (line.partition("|") for line in lines)
            queue.ended = {job_id: state for jobs, _, state in ended for job_id in _each(jobs)}
    return queue


def _each(jobs: str) -> Iterator[str]:
    """Yield the job ids that a JobID of ``sacct`` stands for.

    sacct combines the tasks of an array that never started, as in ``77_[0-3,5%2]``.
    """
    together = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", jobs)
    if together is None:
        yield jobs
        return
    for part in together[2].split(","):
        first, _, last = part.partition("-")
        yield from (f"{together[1]}_{task}" for task in range(int(first), int(last or first) + 1))


def cancel_jobs(job_ids: Iterable[str]) -> None:
    """Cancel jobs. Those that run get a signal first and save."""
    if ids := sorted(job_ids):
        call_slurm("scancel", *ids)


def call_slurm(*command: str) -> list[str]:
    """Run one of SLURM's commands and return the lines that it prints.

    Raises:
        UserError: the command is not installed here, fails, or does not answer within ``SECONDS``.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not here: run this where jobs are submitted") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within {SECONDS:.0f} s: try again when SLURM is up") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout or "").strip().splitlines()
        raise UserError(f"{command[0]} failed: {reason[-1] if reason else f'exit code {error.returncode}'}") from error
    return done.stdout.splitlines()
