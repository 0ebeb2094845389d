"""Sweeps on this machine: the missing runs of a table, one at a time in the terminal, or several at once."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from isda_repro.console import say
from isda_repro.errors import EXIT_STOPPED, EXIT_USER_ERROR, UserError, sentence_of
from isda_repro.experiments.plan import Compose, Run
from isda_repro.files import append_to
from isda_repro.runs.exit_status import (
    LOG,
    STOPPED,
    ExitStatus,
    clear_exit_status,
    exit_status_of,
    read_exit_status,
    write_exit_status,
)
from isda_repro.runs.lock import lives
from isda_repro.runs.records import RecordError
from isda_repro.stopping import exit_code, handle_stop_signals
from isda_repro.sweeps.run_progress import NOT_YET, describe_progress
from isda_repro.sweeps.sweep import TRAIN, Missing, SweepOptions, missing, sweep_command, write_frozen_runs


@dataclass(frozen=True)
class WorkerSlots:
    """Slots in which runs execute at the same time, each with the environment variables of its run."""

    variables: tuple[Mapping[str, str], ...]

    @property
    def is_one(self) -> bool:
        """True if there is a single slot, whose run has the terminal to itself."""
        return len(self.variables) == 1


def worker_slots(options: SweepOptions, gpus: Sequence[str] | None = None) -> WorkerSlots:
    """Return ``jobs=`` slots, or ``runs_per_gpu=`` slots for each GPU, and divide the CPU cores among them.

    Args:
        options: the options of the sweep.
        gpus: names of the GPUs to use, as in CUDA_VISIBLE_DEVICES; None means all that PyTorch sees.

    Raises:
        UserError: a number is less than 1, or there are not enough GPUs.
    """
    for name in ("jobs", "runs_per_gpu"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be a whole number from 1 on")
    if (options.jobs or 1) == 1 and options.runs_per_gpu is None:
        return WorkerSlots(({},))
    gpus = _visible() if gpus is None else gpus
    if options.runs_per_gpu is not None and not gpus:
        raise UserError(f"runs_per_gpu={options.runs_per_gpu}, but PyTorch sees no GPU here: use jobs=")
    room = len(gpus) * (options.runs_per_gpu or 1)
    jobs = options.jobs or room
    if options.runs_per_gpu is not None and jobs > room:
        raise UserError(
            f"jobs={jobs}, but {len(gpus)} GPUs with runs_per_gpu={options.runs_per_gpu} have room for {room}: "
            "raise runs_per_gpu=, or leave jobs= out"
        )
    import joblib

    shared = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, joblib.cpu_count() // jobs))}
    return WorkerSlots(
        tuple(shared | ({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {}) for job in range(jobs))
    )


def _visible() -> list[str]:
    """Return the names under which CUDA_VISIBLE_DEVICES knows the GPUs that PyTorch sees."""
    import torch  # imported here because it takes seconds, and only these sweeps need it

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(index) for index in range(count)]  # CUDA ignores all names after an invalid one


LOOK_SECONDS = 0.05
REPORT_SECONDS = 60.0  # interval of progress messages about runs that write to a log instead of the terminal
SAVE_SECONDS = 30.0  # the last seconds of minutes=, in which runs save and exit
START_SECONDS = 60.0  # the seconds before SAVE_SECONDS, in which no run is started


def sweep_here(options: SweepOptions, compose: Compose, command: Sequence[str] = TRAIN) -> int:
    """Run what is missing. A failed run is reported, and the remaining runs still start.

    A stop signal is passed on to the runs in progress and ends the sweep once they have stopped. The end of
    ``minutes=`` does the same, see ``Clock``.

    Args:
        options: the options of the sweep.
        compose: ``isda_repro.config.compose``.
        command: the command that starts one run; the path of its frozen configuration is appended.

    Returns:
        The exit code: 0; 1 if a run failed; 75, or 130 after Ctrl-C, if the sweep was stopped or ran out of time with
        runs left to do.
    """
    clock = Clock(options.minutes)
    return _Sweep(missing(options, compose), worker_slots(options), command, clock).run()


class Clock:
    """Time limit of a sweep: ``minutes=`` from its start, or none.

    - ``SAVE_SECONDS`` before the end, runs are asked to save, by the signal that a stop sends. Runs that have not
      exited at the end are killed; they will continue from their last checkpoint.
    - In the ``START_SECONDS`` before that, no run is started: imports, data and compilation can take as long, and the
      few steps that would be left are not worth it.
    - Each of the two takes at most a quarter of the time, so that runs can start in the first half of any limit.
    """

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and not 0 < minutes < math.inf:
            raise UserError(f"minutes={minutes:g} must be a number greater than 0")
        seconds = math.inf if minutes is None else 60 * minutes
        self.end = time.monotonic() + seconds
        self.save = self.end - min(SAVE_SECONDS, seconds / 4)
        self.last_start = self.save - min(START_SECONDS, seconds / 4)


@dataclass
class _Process:
    """A run in progress: its process, its slot, and when it started."""

    run: Run
    position: str
    process: subprocess.Popen[bytes]
    place: int
    begun: float = field(default_factory=time.monotonic)


class _Sweep:
    """One pass over the runs of a table."""

    def __init__(self, what: Missing, where: WorkerSlots, command: Sequence[str], clock: Clock) -> None:
        self._what, self._where, self._command, self._clock = what, where, command, clock
        self._waiting: list[tuple[str, Run]] = []
        self._running: list[_Process] = []
        self._asked: signal.Signals | None = None
        self._stopped: int | None = None
        self._times = self._started = 0
        self._failed: dict[str, str] = {}
        self._elsewhere: set[str] = set()
        self._reported = time.monotonic()

    def run(self) -> int:
        """Run all of them and return the exit code."""
        runs = self._what.runs
        self._waiting = [(f"[{number}/{len(runs)}] {run.run_id}", run) for number, run in enumerate(runs, start=1)]
        with handle_stop_signals(self._take):
            while self._running or (self._waiting and not self._ends):
                self._collect()
                self._watch_clock()
                while len(self._running) < len(self._where.variables) and self._start_next():
                    pass
                self._report()
                if self._running or self._waiting:
                    time.sleep(LOOK_SECONDS)
        code = self._end()
        if not self._ends or all(run.run_id in self._failed or self._what.is_over(run) for run in runs):
            return code
        say(f"to go on: {sweep_command(self._what.options)}")
        return exit_code(self._asked) if self._asked is not None else self._stopped or EXIT_STOPPED

    @property
    def _ends(self) -> bool:
        """True if no further run may be started."""
        late = time.monotonic() >= self._clock.last_start and not self._what.options.dry_run
        return late or self._asked is not None or self._stopped is not None

    def _take(self, asked: signal.Signals) -> None:
        """Pass a stop signal on to all runs in progress.

        Runs save at the first signal and exit at once at the second. At the third they are killed.
        """
        self._asked, self._times = self._asked or asked, self._times + 1
        for one in self._running:
            one.process.send_signal(asked if self._times < 3 else signal.SIGKILL)

    def _watch_clock(self) -> None:
        """Ask the runs to save when it is time to, and kill those that are left when time is up."""
        now = time.monotonic()
        if self._running and now >= self._clock.save and self._asked is None:
            say(f"minutes={self._what.options.minutes:g} are nearly over: runs save and stop")
            self._take(signal.SIGTERM)
        if now >= self._clock.end:
            for one in self._running:
                one.process.kill()

    # ------------------------------------------------------------------------------------------------------- starting

    def _start_next(self) -> bool:
        """Start the first waiting run that is ready, or report that it is done or cannot start.

        Return False if no run is ready.
        """
        for index, (position, run) in enumerate(self._waiting):
            if self._ends:
                return False
            unmet = self._what.unmet(run)
            failed = [name for name in unmet if name in self._failed]
            if not self._what.options.dry_run and ((unmet and not failed) or self._is_elsewhere(run, position)):
                continue
            del self._waiting[index]
            if failed:
                self._failed[run.run_id] = f"not started: it needs {failed[0]}"
                say(f"{position}: not started, since it needs {failed[0]}, which failed")
            else:
                self._deal_with(run, position)
            return True
        return False

    def _is_elsewhere(self, run: Run, position: str) -> bool:
        """Return whether another process, for example of a second sweep, works on the run.

        The sweep then waits for it.
        """
        if not lives(self._what.folder(run)):
            return False
        if run.run_id not in self._elsewhere:
            self._elsewhere.add(run.run_id)
            say(f"{position}: another process works on it, and is waited for")
        return True

    def _deal_with(self, run: Run, position: str) -> None:
        """Start a run, or report that it is done, or in a dry run what would be started."""
        folder = self._what.folder(run)
        if self._what.is_over(run):
            say(f"{position}: {self._already(run)}")
        elif self._what.options.dry_run:
            say(f"{position}: would run {shlex.join(['python', 'train.py', str(folder / 'config.yaml')])}")
        else:
            self._start(run, folder, position)

    def _already(self, run: Run) -> str:
        """Return the message for a run that is already done. A result that cannot be used counts as a failure."""
        try:
            return f"already done, {self._what.says(run)}"
        except RecordError as error:
            self._failed[run.run_id] = f"{error}; delete the file and run again"
            return "FAILED, its result cannot be used"

    def _start(self, run: Run, folder: Path, position: str) -> None:
        """Write the run's frozen configuration and start its process in a free slot."""
        place = next(place for place in range(len(self._where.variables)) if place not in self._places_taken())
        say(f"{position}: starts{'' if self._where.is_one else f', says more in {folder / LOG}'}")
        try:
            write_frozen_runs(run, folder / "config.yaml")
            clear_exit_status(folder)  # of an earlier attempt
            with self._output(folder) as output:
                process = subprocess.Popen(
                    [*self._command, str(folder / "config.yaml")],
                    env={**os.environ, **self._where.variables[place]},
                    stdout=output,
                    stderr=output,
                )
        except (OSError, UserError) as error:  # such as a link in place of the log
            self._failed[folder.name] = sentence_of(error) or str(error)
            say(f"{position}: FAILED to start")
            return
        self._started += 1
        self._running.append(_Process(run, position, process, place))
        if self._asked is not None:  # the signal came while the process was being started
            process.send_signal(self._asked)

    def _places_taken(self) -> set[int]:
        return {one.place for one in self._running}

    @contextmanager
    def _output(self, folder: Path) -> Iterator[IO[bytes] | None]:
        """Yield None for a run that has the terminal to itself, otherwise its open log file."""
        if self._where.is_one:
            yield None
            return
        with append_to(folder / LOG) as log:
            yield log

    # --------------------------------------------------------------------------------------------------------- ending

    def _collect(self) -> None:
        """Report each run whose process has ended."""
        for one in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(one)
            code = one.process.returncode
            if code == EXIT_USER_ERROR and self._is_elsewhere(one.run, one.position):  # it lost the race for the lock
                self._waiting.append((one.position, one.run))
                continue
            say(f"{one.position}: {self._how_it_went(one.run, code)} after {time.monotonic() - one.begun:.1f} s")
            if code in STOPPED:
                self._stopped = code

    def _how_it_went(self, run: Run, code: int) -> str:
        """Return the message for a run whose process has ended, and record a failure in ``ended.json``."""
        folder = self._what.folder(run)
        is_stopped, is_done = code in STOPPED or (code != 0 and self._asked is not None), self._what.is_done(run)
        if is_stopped and not is_done:
            return f"stopped with exit code {code}"
        ends_late = is_done and (is_stopped or code < 0)  # a signal came after the result was written
        if code != 0 and not ends_late:
            if read_exit_status(folder) is None:  # it was killed, or failed before it could record its error
                write_exit_status(folder, exit_status_of(folder, code))
            self._failed[folder.name] = self._why(folder, code)
            return f"FAILED with exit code {code}"
        try:
            return f"done, {self._what.says(run)},"
        except RecordError as error:
            said = f"exit code {code}, but no result"
            write_exit_status(folder, ExitStatus(code, said))
            self._failed[folder.name] = f"{said}: {error}"
            return "FAILED without a result"

    def _why(self, folder: Path, code: int) -> str:
        said = f"exit code {code}: {exit_status_of(folder, code).said}"
        return said if self._where.is_one else f"{said}; all of it is in {folder / LOG}"

    def _report(self) -> None:
        """Once every ``REPORT_SECONDS``, report the progress of runs that write to a log."""
        if self._where.is_one or time.monotonic() - self._reported < REPORT_SECONDS:
            return
        self._reported = time.monotonic()
        for one in self._running:
            say(f"{one.position}: {describe_progress(self._what.folder(one.run), one.run) or NOT_YET}")

    def _end(self) -> int:
        """Print the summary of the sweep, and return 1 if a run failed, otherwise 0."""
        runs = self._what.runs
        done = sum(run.run_id not in self._failed and self._what.is_done(run) for run in runs)
        now = f", {self._started} started now" if self._started else ""
        say(f"table={self._what.table.name}: {done} of {len(runs)} runs done{now}")
        for name, why in self._failed.items():
            say(f"failed: {name} ({why})")
        return 1 if self._failed else 0
