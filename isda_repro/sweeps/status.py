"""Commands ``status`` and ``cancel`` of a sweep: show and stop a table's runs, wherever they execute."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from isda_repro.console import say
from isda_repro.errors import UserError
from isda_repro.experiments.plan import Compose, Run
from isda_repro.experiments.specification import table_names
from isda_repro.runs.exit_status import LOG, last_error, read_exit_status
from isda_repro.runs.lock import lives, pid_here
from isda_repro.runs.result_index import Ended
from isda_repro.runs.sources import FoundDiverged
from isda_repro.sweeps.run_progress import NOT_YET, describe_progress
from isda_repro.sweeps.slurm_queue import Queue, cancel_jobs, job_of, log_of, query_queue
from isda_repro.sweeps.sweep import Survey, SweepOptions, has_result, load_kept_results

ALL = "all"


def status(options: SweepOptions, compose: Compose) -> Iterator[str]:
    """Yield the lines to print.

    For each table these are a summary, the generators and other runs that it needs, and a line per cell.
    """
    tables = [Survey(one, compose) for one in _each(options)]
    folders = {name: folder for table in tables for name, folder in table.folders.items()}
    jobs = {name: job for name, folder in folders.items() if not has_result(folder) and (job := job_of(folder))}
    queue = query_queue(Path(options.runs_dir), jobs.values())
    in_results = load_kept_results(options.results_dir)
    for table in tables:
        instead = table.kept(in_results)

        def state(run: Run, instead: Mapping[str, Ended] = instead) -> str:
            kept = instead.get(run.run_id)
            if kept is not None:
                return kept.said if isinstance(kept, FoundDiverged) else "done"
            return _state(run, folders[run.run_id], jobs.get(run.run_id), queue)

        names = table.names
        done = sum(name in instead or has_result(folders[name]) for name in names)
        own = [one for name, one in instead.items() if name in names]
        said = f", {len(own)} of them kept in {options.results_dir}" if own else ""
        if lost := sum(isinstance(one, FoundDiverged) for one in own):
            said += f"; {lost} of these diverged"
        yield f"table={table.table.name}: {done} of {len(names)} runs done{said}"
        for name in sorted(table.wanted(instead) & table.needed.keys()):
            run = table.needed[name]
            yield f"  {'generator' if run.is_generator else 'needed'} {name}: {state(run)}"
        width = max(len(cell.name) for cell in table.plan)
        for cell, runs in table.plan.items():
            yield f"  {cell.name:<{width}}  {_of_cell(runs, [state(run) for run in runs])}"


def cancel(options: SweepOptions, compose: Compose) -> int:
    """Ask all runs of a table that wait or run, as jobs or on this host, to stop; running ones save.

    Only jobs that this ``runs_dir`` submitted are cancelled, and only processes are signalled that certainly work on a
    run, see ``pid_here``. Return exit code 0.
    """
    folders = {folder for one in _each(options) for folder in Survey(one, compose).folders.values()}
    jobs = {folder: job_of(folder) for folder in folders if not has_result(folder)}
    waiting = query_queue(Path(options.runs_dir), filter(None, jobs.values())).waiting
    cancel_jobs(waiting)
    asked, not_asked = 0, []
    for folder in sorted(folder for folder in folders if jobs.get(folder) not in waiting and lives(folder)):
        if _signal_owner(folder):
            asked += 1
        else:
            not_asked.append(folder)
    say(f"asked to stop: {len(waiting)} jobs, {asked} runs on this host; the same sweep goes on with them")
    for folder in not_asked:
        say(f"not asked to stop: {folder}, whose owner.json names no process of yours here for certain: stop it there")
    return 0


def _signal_owner(folder: Path) -> bool:
    """Send SIGTERM to the process that works on a run; return False if it is not certainly one of this user here."""
    pid = pid_here(folder)
    if pid is None:
        return False
    with suppress(ProcessLookupError):  # it has just ended
        try:
            os.kill(pid, signal.SIGTERM)
        except PermissionError:  # another user's
            return False
    return True


def _each(options: SweepOptions) -> list[SweepOptions]:
    if options.table == ALL and (options.only or options.seeds):
        raise UserError(f"table={ALL} is whole: only= and seeds= choose a part of one table")
    names = table_names() if options.table == ALL else [options.table]
    return [SweepOptions(**{**vars(options), "table": name}) for name in names]


def _of_cell(runs: tuple[Run, ...], states: list[str]) -> str:
    """Summarise a cell: how many of its runs are done, and the state of each run that has begun or is queued."""
    done, open_states = states.count("done"), [state for state in states if state not in ("done", "not started")]
    if not open_states:
        return f"done {done} of {len(runs)}" if done else "not started"
    said = (f"seed {run.seed}: {state}" for run, state in zip(runs, states, strict=True) if state in open_states)
    return "; ".join([f"done {done} of {len(runs)}", *said])


def _state(run: Run, folder: Path, job: str | None, queue: Queue) -> str:
    """Return the state of a run as text.

    It begins with done, running, queued, failed, cancelled, stopped, interrupted or not started, followed by what is
    known about it.
    """
    if has_result(folder):
        return "done"
    progress, ending = describe_progress(folder, run), read_exit_status(folder)
    waits = None if job is None else queue.waiting.get(job)
    if waits is not None:
        if waits.runs:
            return f"running, {progress or NOT_YET} (job {job})"
        return f"queued (job {job}, {waits.reason})" + (f", {progress}" if progress else "")
    if lives(folder):
        return f"running, {progress or NOT_YET}"
    if ending is not None and not ending.is_stop:
        return f"failed: {ending.said}{_see(folder / LOG)}"
    if job is not None and (how := queue.ended.get(job)) and not how.startswith("COMPLETED"):
        what = "cancelled" if how.startswith("CANCELLED") else _failed_job(folder, job, how)
        return what + (f", {progress}" if progress else "")
    if ending is not None:
        return f"stopped, {progress or 'before its first epoch'}"
    return f"interrupted, {progress}" if progress else "not started"


def _failed_job(folder: Path, job: str, how: str) -> str:
    """Describe a job that SLURM ended, or that ended before training began: its last error, and the log to read."""
    logs = [log for log in (log_of(folder.parent, job), folder / LOG) if log.exists()]
    said = [log for log in logs if last_error(log)]
    log = next(iter([*said, *reversed(logs)]), None)
    if log is None:
        return f"failed: job {job} is {how}"
    error = last_error(log)
    return f"failed: job {job} is {how}" + (f": {error}" if error else "") + _see(log)


def _see(log: Path) -> str:
    return f" (log: {log})" if log.exists() else ""
