"""Jobs that Hydra composes: the one of a command line, or those of a multirun, of which one may fail."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from isda_repro.console import say
from isda_repro.errors import StoppedError, UserError, one_sentence_errors, sentence_of

EXIT_FAILED_JOBS = 1
"""Exit code of a multirun of which a job failed, as of a sweep."""

_launcher: int | None = None  # pid of the process that runs the multirun; None in the processes of its SLURM jobs


class FailedJob:
    """Failure of one job, which the job returns to Hydra: an exception would end the multirun.

    Every failure that is made in a process, or unpickled there, is in ``all`` of that process. So the process that
    launched the jobs knows those of its SLURM jobs too, which Hydra's launcher receives and keeps to itself.

    Args:
        overrides: the job's part of the command line.
        sentence: what was wrong.
    """

    all: ClassVar[dict[str, str]] = {}  # sentences by overrides

    def __init__(self, overrides: str, sentence: str) -> None:
        self._arguments = (overrides, sentence)
        self.all[overrides] = sentence

    def __reduce__(self) -> tuple[type[FailedJob], tuple[str, str]]:
        return FailedJob, self._arguments


def run_job(job: Callable[[], None]) -> FailedJob | None:
    """Run the job that Hydra has composed, and return its failure if it is one of a multirun.

    A job that is not one of several ends the process with its error. So does one of a run of several processes, which
    could not find each other again after an error. A stop signal ends the multirun where the jobs run one after
    another; on SLURM it only concerns its own job.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    with one_sentence_errors():  # inside the job, because Hydra adds a line to an exception that passes through it
        if config.mode != RunMode.MULTIRUN or os.environ.get("WORLD_SIZE", "1") != "1":
            job()
            return None
        sentence = _failure_of(job)
    return None if sentence is None else FailedJob(" ".join(config.overrides.task), sentence)


def _failure_of(job: Callable[[], None]) -> str | None:
    """Run a job, and return what was wrong. The exception is not kept: it would hold the memory of the failed run."""
    try:
        job()
    except StoppedError as stop:
        if os.getpid() == _launcher:
            raise
        return str(stop)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:  # a bug
            traceback.print_exc()
            sentence = " ".join(f"{type(error).__name__}: {error}".splitlines()[:1])
        say(f"error: {sentence}", sys.stderr)
        return sentence
    return None


@contextmanager
def report_failed_jobs() -> Iterator[None]:
    """Name the failed jobs of a multirun after the block, and exit with ``EXIT_FAILED_JOBS`` if there are any."""
    global _launcher
    _launcher = os.getpid()
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "submitit":
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"a job of this multirun was lost, and its jobs are no longer waited for: {reason}; those in SLURM's queue "
            "go on: repeat this command when they have ended"
        ) from error
    finally:
        for overrides, sentence in FailedJob.all.items():
            say(f"failed: {overrides} ({sentence})", sys.stderr)
    if FailedJob.all:
        sys.exit(EXIT_FAILED_JOBS)
