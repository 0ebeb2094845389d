"""What SLURM says of jobs: ``squeue`` for those that wait or run, ``sacct`` for those that have ended."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from isda_repro.errors import UserError
from isda_repro.files import atomic_write

NAME = "job.json"  # in a run's folder: the job that it was submitted as
SUBMITTED = ".slurm"  # beside the runs' folders: submitit's own files
SECONDS = 30.0  # that SLURM may take to answer


class Waiting(NamedTuple):
    """A job that has not ended: SLURM's state, the time that is left of it, and why it waits."""

    state: str
    time_left: str
    reason: str

    @property
    def runs(self) -> bool:
        """Whether it has a node; COMPLETING, too."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


@dataclass
class Queue:
    """All jobs of this user that wait or run, by job id, and how others have ended."""

    waiting: dict[str, Waiting] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)


def note_job(folder: Path, job_id: str) -> None:
    """Keep which job a run was submitted as."""
    with atomic_write(folder / NAME) as file:
        file.write((json.dumps({"cluster": "slurm", "job_id": job_id}) + "\n").encode())


def job_of(folder: Path) -> str | None:
    """The last job that a run was submitted as."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / NAME).read_text(encoding="utf-8"))["job_id"])
    return None


def log_of(runs_dir: Path, job_id: str) -> Path:
    """What a job has said that was not yet, or no longer, a run: where Python cannot start for example."""
    return runs_dir / SUBMITTED / f"{job_id}_0_log.out"


@contextmanager
def submitting(runs_dir: Path) -> Iterator[None]:
    """Within the block no other sweep submits; the next one then sees in the queue what this one has submitted."""
    (runs_dir / SUBMITTED).mkdir(parents=True, exist_ok=True)
    with (runs_dir / SUBMITTED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def query_queue(job_ids: Iterable[str]) -> Queue:
    """What has become of these jobs; nothing where there are none, or no SLURM."""
    known = set(job_ids)
    if not known or shutil.which("squeue") is None:
        return Queue()
    lines = call_slurm("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%L|%r")
    fields = (line.split("|", 3) for line in lines)
    queue = Queue({job_id: Waiting(*rest) for job_id, *rest in fields if job_id in known})
    if gone := sorted(known - queue.waiting.keys()):
        with suppress(UserError):  # a cluster without accounting
            arrays = sorted({job_id.partition("_")[0] for job_id in gone})
            lines = call_slurm("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(arrays))
            ended = (line.partition("|") for line in lines)
            queue.ended = {job_id: state for jobs, _, state in ended for job_id in _each(jobs)}
    return queue


def _each(jobs: str) -> Iterator[str]:
    """A job, or those tasks of an array that never began, which sacct names together: ``77_[0-3,5%2]``."""
    together = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", jobs)
    if together is None:
        yield jobs
        return
    for part in together[2].split(","):
        first, _, last = part.partition("-")
        yield from (f"{together[1]}_{task}" for task in range(int(first), int(last or first) + 1))


def cancel_jobs(job_ids: Iterable[str]) -> None:
    """End them; those that run get a signal and save first."""
    if ids := sorted(job_ids):
        call_slurm("scancel", *ids)


def call_slurm(*command: str) -> list[str]:
    """The lines that one of SLURM's commands prints.

    Raises:
        UserError: it is not here, fails, or does not answer.
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
