"""The life of a run, whatever it trains: its folder, where it goes on from, its records, its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig

from isda_repro.config import build, write_frozen
from isda_repro.console import say, warn
from isda_repro.data import Source
from isda_repro.errors import UserError, is_out_of_memory
from isda_repro.files import move_aside
from isda_repro.revision import why_unknown
from isda_repro.runs.exit_status import clear_exit_status
from isda_repro.runs.lock import FolderLock
from isda_repro.runs.records import RecordError, SegmentRecord, as_json, read_lines
from isda_repro.runs.run_directory import RunDirectory, provenance, write_environment
from isda_repro.tracking import JsonLines, Tracker
from isda_repro.training import checkpoint, same_data
from isda_repro.training.account import segment_record
from isda_repro.training.checkpoint import Checkpoints
from isda_repro.training.compute import refuse_differences, resolve
from isda_repro.training.failing import noting
from isda_repro.training.joining import joined
from isda_repro.training.resume import find_start
from isda_repro.training.saving import Saver
from isda_repro.training.work import Work

Outcome = TypeVar("Outcome")


def live(cfg: DictConfig, kind: type[Work[Outcome]]) -> Outcome:
    """Train what ``cfg`` asks for; a finished run is not run twice.

    Under torchrun each of its processes calls this; the first one alone touches the run's folder.

    Args:
        cfg: a frozen configuration; it has ``run_id``, ``runs_dir``, ``force``, ``compute``, ``checkpoint`` and
            ``dataset``, whatever it trains.
        kind: of run.

    Raises:
        UserError: a setting, the data or the device is wrong, another process writes this run, or the loss diverged.
        StoppedError: a signal asked to stop; the state is saved.
    """
    waits = cfg.compute.get("timeout_minutes", 10)
    with noting(Path(cfg.runs_dir) / cfg.run_id), joined(waits) as processes:
        result = processes.told_by_first(lambda: _earlier_result(cfg, kind))
        if result is not None:
            return result
        compute = resolve(cfg.compute, processes.local_rank if processes.are_several else None)
        refuse_differences(compute, processes)
        compute.apply()
        with processes.first_before_others():  # it may have to download
            source: Source = build(cfg.dataset.source)
        work = kind(cfg, source, compute, processes)  # what can be refused has been; the folder is untouched
        return _lead(work) if processes.is_first else _follow(work)


def _earlier_result(cfg: DictConfig, kind: type[Work[Outcome]]) -> Outcome | None:
    """That of the run, if it has finished and is not wanted again."""
    directory = RunDirectory(Path(cfg.runs_dir), cfg.run_id)
    if not directory.finished or cfg.force:
        return None
    if Checkpoints(directory.path).newest_first():  # its process died before its last acts
        with FolderLock(directory.path):
            _conclude(cfg, kind, directory)
    return _finished(kind, directory)


def _lead(work: Work[Outcome]) -> Outcome:
    """The first process: the run's folder, and training."""
    directory = RunDirectory(Path(work.cfg.runs_dir), work.cfg.run_id)
    origin = provenance()
    if origin["git_revision"] is None:
        warn(why_unknown())
    if directory.finished and work.cfg.force:
        _move_aside(directory)
    directory.path.mkdir(parents=True, exist_ok=True)
    with FolderLock(directory.path) as lock:
        clear_exit_status(directory.path)
        if not directory.finished:
            return _train(work, directory, origin, lock)
        _conclude(work.cfg, type(work), directory)  # another launch was faster, since we looked
        return work.processes.told_by_first(lambda: _finished(type(work), directory))


def _follow(work: Work[Outcome]) -> Outcome:
    """Another process: what all do together, and nothing else, in the order of ``_lead`` and ``_train``."""
    folder = Path(work.cfg.runs_dir) / work.cfg.run_id
    told = work.processes.told_by_first(_nothing)
    if told is not None and not isinstance(told, tuple):  # the result: another launch was faster
        return cast(Outcome, told)
    work.enter(folder)

    def state() -> dict[str, Any]:
        work.collect()
        return work.learner.state_dict()

    saver = _saver(work, Checkpoints(folder), state)
    with saver.listening():
        if told is not None:
            work.learner.load_state_dict(*told)
        work.train([], None, saver)
        work.final_state()
        work.collect()
        return cast(Outcome, work.processes.told_by_first(_nothing))


def _nothing() -> Any:
    """What processes other than the first have to tell; see ``Processes.told_by_first``."""


def _saver(work: Work[Outcome], checkpoints: Checkpoints, state: Any) -> Saver:
    every = work.cfg.checkpoint
    return Saver(checkpoints, state, every.minutes, every.steps, work.processes)


def _move_aside(directory: RunDirectory) -> None:
    """Make room for a run that is wanted again."""
    with FolderLock(directory.path) as lock:  # nobody else moves it or writes there
        if not directory.finished:  # somebody has, since we looked, and has begun anew
            return
        aside = move_aside(directory.path, "before")
        lock.follow(aside)
    say(f"force=true: the finished run is now {aside}")


def _train(work: Work[Outcome], directory: RunDirectory, origin: dict[str, Any], lock: FolderLock) -> Outcome:
    """From where the run is to its result."""
    cfg, learner, checkpoints = work.cfg, work.learner, Checkpoints(directory.path)
    described = same_data.description(work.source)
    work.enter(directory.path)

    def state() -> dict[str, Any]:
        lock.ensure_held()
        work.collect()
        about = {"run_id": cfg.run_id, "metrics_bytes": metrics.bytes_written, same_data.KEY: described}
        return {**learner.state_dict(), **about}

    saver = _saver(work, checkpoints, state)
    with saver.listening():
        metrics_bytes = _go_on(work, directory, checkpoints)
        write_frozen(_said_once(cfg), directory.config)
        write_environment(directory.environment, origin, learner.compute.machine())
        say(work.opening())
        bar = work.bar()
        metrics = JsonLines(directory.metrics, keep=metrics_bytes, before_write=lock.ensure_held)
        trackers: list[Tracker] = [metrics, bar, *work.build_trackers(cfg, directory.metrics)]
        try:
            segment = as_json(segment_record(learner, origin))
            for tracker in trackers:
                tracker.log(segment)
            records = work.train(trackers, bar, saver)
            checkpoints.wait()
            lines = read_lines(directory.metrics, work.epoch_record)
            segments = [line for line in lines if isinstance(line, SegmentRecord)]
            result = work.result(segments, records, origin)
            final = {**work.final_state(), same_data.KEY: described}
            work.collect()
            lock.ensure_held()
            checkpoint.save(directory.checkpoint, final)
            work.write_result(directory.result, result)
            for tracker in trackers:
                tracker.log(work.result_json(result))
        finally:
            checkpoints.wait()
            for tracker in trackers:
                tracker.close()
    checkpoints.clear()  # the very last: until then the same command knows that there is something left to do
    work.conclude()
    say(f"{cfg.run_id}: {work.summary(result)}\n{directory.result}")
    return work.processes.told_by_first(lambda: result)


def _go_on(work: Work[Outcome], directory: RunDirectory, checkpoints: Checkpoints) -> int:
    """Put the learner where the run is; how many bytes of ``metrics.jsonl`` are of what it has done."""
    start = find_start(checkpoints, directory.metrics, directory.run_id, work.needed, work.epoch_record)
    if start.state is None:
        work.processes.told_by_first(lambda: None)
    else:
        same_data.check_unchanged(start.state, work.source, start.path or directory.path)
        work.processes.told_by_first(lambda: (start.state, start.records))
        try:
            work.learner.load_state_dict(start.state, start.records)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{start.path} is whole but does not fit this version of this program ({reason}): go on with the one "
                f"that {directory.environment} names, or delete the checkpoints there to begin anew"
            ) from error
    return start.metrics_bytes


def _conclude(cfg: DictConfig, kind: type[Work[Outcome]], directory: RunDirectory) -> None:
    """The last acts of a run whose process died when it had just written the result: telling W&B, and clearing up."""
    checkpoints = Checkpoints(directory.path)
    if not checkpoints.newest_first():
        return
    result = kind.result_json(_own_result(kind, directory))
    for tracker in kind.build_trackers(cfg, directory.metrics):
        tracker.log(result)
        tracker.close()
    checkpoints.clear()


def _said_once(cfg: DictConfig) -> DictConfig:
    """The configuration for the run's own file, which must not force each time that it is run."""
    frozen = cfg.copy()
    frozen.force = False
    return frozen


def _finished(kind: type[Work[Outcome]], directory: RunDirectory) -> Outcome:
    """Say so, and hand out its result."""
    result = _own_result(kind, directory)
    say(f"{directory.run_id} is already done: {kind.summary(result)}\n{directory.result}")
    return result


def _own_result(kind: type[Work[Outcome]], directory: RunDirectory) -> Outcome:
    try:
        result = kind.read_result(directory.result)
    except RecordError as error:
        raise UserError(f"{error}; delete that file to run again") from error
    if (run_id := cast(Any, result).run_id) != directory.run_id:
        raise UserError(f"{directory.result} is the result of {run_id}; move it away to run again")
    return result
