"""The run directory during training: lock, state to resume from, records and result.

``run.py`` trains a classifier and ``gan/run.py`` trains generators; both use this module. All processes of a run make
the same calls, and only the main process touches the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from omegaconf import DictConfig, OmegaConf

from isda_repro.config import build, write_frozen
from isda_repro.config.checks import check_tracking
from isda_repro.console import say, warn
from isda_repro.data import DataError, Source
from isda_repro.errors import EXIT_USER_ERROR, StoppedError, UserError, first_line, is_out_of_memory, sentence_of
from isda_repro.files import rename_aside
from isda_repro.revision import why_unknown
from isda_repro.runs.diverged import clear_divergence
from isda_repro.runs.exit_status import ExitStatus, clear_exit_status, write_exit_status
from isda_repro.runs.lock import FolderLock, LockedError, is_left_over
from isda_repro.runs.records import AnyRecord, RecordError, SegmentRecord, as_json, read_lines, write_result
from isda_repro.runs.run_directory import SET_ASIDE, RunDirectory, provenance, write_environment
from isda_repro.runs.to_wandb import tracked_result, wandb_trackers
from isda_repro.tracking import JsonLines, Tracker
from isda_repro.training.checkpoint import Checkpoints, Saver, save, snapshot
from isda_repro.training.compute import Compute, refuse_differences, resolve_compute
from isda_repro.training.distributed import LostContactError, Processes
from isda_repro.training.resume import (
    DATA_KEY,
    check_finished_data,
    check_same_data,
    check_same_on_all,
    data_to_compare,
    find_start,
    record_of_data,
)

Outcome = TypeVar("Outcome", bound=AnyRecord)


class Trainable(Protocol):
    """Interface of a training loop and of the state that it changes."""

    compute: Compute
    processes: Processes
    step: int
    eager_because: str | None
    """Reason why steps are not captured as a CUDA graph; None if they are."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to continue as if it had not stopped; all processes call it."""

    def load_state_dict(self, state: dict[str, Any], records: Sequence[Any]) -> None:
        """Continue from ``state``; ``records`` are those of the epochs that were over."""


@dataclass(frozen=True)
class RunKind(Generic[Outcome]):
    """Functions and types that differ between runs of classifiers and of generators.

    Args:
        epoch_record: record type of the lines of ``metrics.jsonl`` that describe epochs.
        state_keys: keys that the state of a trainer must have.
        read_result: reads a ``result.json``; raises ``RecordError`` if the file cannot be used.
        summary: formats a result as one line of text.
    """

    epoch_record: type[AnyRecord]
    state_keys: frozenset[str]
    read_result: Callable[[Path], Outcome]
    summary: Callable[[Outcome], str]


@contextmanager
def record_exit(folder: Path) -> Iterator[None]:
    """Record in the run directory how the block ended, unless it ended with a result.

    With several processes, an error is recorded by the process that raised it, and a stop by the main process.
    """
    try:
        yield
    except StoppedError as stop:
        if str(stop):
            write_exit_status(folder, ExitStatus(stop.exit_code, str(stop)))
        raise
    except LockedError:  # the directory belongs to another process
        raise
    except LostContactError as error:
        write_exit_status(folder, ExitStatus(EXIT_USER_ERROR, str(error)), keep=True)
        raise
    except Exception as error:
        if isinstance(error, DataError) and (folder / "result.json").exists():  # a finished run, refused for other data
            raise
        sentence = sentence_of(error)
        said = sentence or f"{type(error).__name__}: {first_line(error)}"
        write_exit_status(folder, ExitStatus(1 if sentence is None else EXIT_USER_ERROR, said))
        raise


def earlier_result(cfg: DictConfig, kind: RunKind[Outcome], processes: Processes) -> Outcome | None:
    """Return the result of a finished run, or None if it has to be trained (or ``force`` is set).

    Raises:
        DataError: the run was trained on other data than there is now.
    """

    def look() -> Outcome | None:
        directory = RunDirectory(Path(cfg.runs_dir), cfg.run_id)
        if not directory.finished or cfg.force:
            return None
        result = _own_result(kind, directory)
        check_finished_data(directory, result, data_to_compare(cfg))
        if Checkpoints(directory.path).newest_first() or is_left_over(directory.path):
            # its process died between writing the result and cleaning up
            with FolderLock(directory.path) as lock:
                _finish_last_acts(cfg, kind, directory, lock)
        return _already_done(kind, directory, result)

    return processes.broadcast_from_main(look)


def prepare(cfg: DictConfig, processes: Processes) -> tuple[Compute, Source]:
    """Resolve device and precision on all processes, and read the data.

    Raises:
        UserError: the device or the data is missing, the processes resolved ``auto`` differently or have other data, or
            W&B does not take a name of a frozen configuration.
    """
    check_tracking(cast(dict[str, Any], OmegaConf.to_container(cfg.tracking)))
    compute = resolve_compute(cfg.compute, processes.local_rank if processes.is_distributed else None)
    refuse_differences(compute, processes)
    compute.apply()
    with processes.main_first():  # the data may have to be downloaded
        source: Source = build(cfg.dataset.source)
    check_same_on_all(source, processes)
    return compute, source


class Session(Generic[Outcome]):
    """The directory of one run, locked by the main process during a ``with`` block.

    Args:
        cfg: the run's frozen configuration.
        kind: how runs of this kind are recorded.
        trainer: the training loop. It is built before the session, so that a run that is refused leaves no directory.
        source: the run's data.

    Attributes:
        result: the result, if another launch has finished the run in the meantime; None otherwise.
        saver: saves the state when it is due; set by ``resume``.
    """

    def __init__(self, cfg: DictConfig, kind: RunKind[Outcome], trainer: Trainable, source: Source) -> None:
        self._cfg, self._kind, self._trainer, self._source = cfg, kind, trainer, source
        self._processes = trainer.processes
        self._directory = RunDirectory(Path(cfg.runs_dir), cfg.run_id)
        self._checkpoints = Checkpoints(self._directory.path, self._ensure_held)
        self._while_training = ExitStack()
        self._trackers: list[Tracker] = []
        self.result: Outcome | None = None

    def __enter__(self) -> Session[Outcome]:
        """Lock the run directory; with ``force``, rename a finished run first."""
        with ExitStack() as stack:
            if self._processes.is_main:
                self._origin = provenance()
                if self._origin["git_revision"] is None:
                    warn(why_unknown())
                if self._directory.finished and self._cfg.force:
                    _move_finished_run_aside(self._directory)
                self._directory.path.mkdir(parents=True, exist_ok=True)
                self._lock = stack.enter_context(FolderLock(self._directory.path))
                clear_exit_status(self._directory.path)
            self.result = self._processes.broadcast_from_main(self._result_of_another_launch)
            self._locked = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for pending writes and unlock the run directory."""
        with self._locked:
            self._while_training.close()

    @cached_property
    def _data(self) -> dict[str, Any]:
        return record_of_data(self._cfg, self._source)

    def _ensure_held(self) -> None:
        self._lock.ensure_held()

    def _result_of_another_launch(self) -> Outcome | None:
        if not self._directory.finished:
            return None
        result = _own_result(self._kind, self._directory)
        check_finished_data(self._directory, result, self._source)
        _finish_last_acts(self._cfg, self._kind, self._directory, self._lock)
        return _already_done(self._kind, self._directory, result)

    def resume(self, collect: Callable[[], None] = lambda: None) -> None:
        """Load the run's state into the trainer on all processes. From now on signals stop the run at its next step.

        Args:
            collect: called by all processes whenever the state is saved, as it is after each epoch.

        Raises:
            UserError: the newest checkpoint does not fit this program or the data.
        """
        self._collect = collect
        every = self._cfg.checkpoint
        self.saver = Saver(self._checkpoints, self._state, every.minutes, every.steps, self._processes)
        self._while_training.enter_context(self.saver.listening())
        found = self._processes.broadcast_from_main(self._find_state)
        if found is not None:
            self._load(*found)
        if self._processes.is_main:
            frozen = self._cfg.copy()
            frozen.force = False  # a run started from this file must not force again
            write_frozen(frozen, self._directory.config)
            about = {**self._trainer.compute.machine(), DATA_KEY: self._data}
            write_environment(self._directory.environment, self._origin, about)

    def _find_state(self) -> tuple[dict[str, Any], list[Any]] | None:
        path, kind = self._directory, self._kind
        start = find_start(self._checkpoints, path.metrics, path.run_id, kind.state_keys, kind.epoch_record)
        self._metrics_bytes, self._started_from = start.metrics_bytes, start.path
        if start.state is None:
            return None
        check_same_data(start.state, self._source, start.path or path.path)
        return start.state, start.records

    def _load(self, state: dict[str, Any], records: list[Any]) -> None:
        try:
            self._trainer.load_state_dict(state, records)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error) or not self._processes.is_main:
                raise
            reason = first_line(error)
            raise UserError(
                f"{self._started_from} is whole but does not fit this version of this program ({reason}): go on with "
                f"the one that {self._directory.environment} names, or delete the checkpoints there to begin anew"
            ) from error

    def _state(self) -> dict[str, Any]:
        """Return the state to save; all processes call it."""
        if self._processes.is_main:
            self._lock.ensure_held()
        self._collect()
        state = self._trainer.state_dict()
        if not self._processes.is_main:
            return state
        about = {"metrics_bytes": self._metrics.bytes_written, DATA_KEY: self._data}
        return {**state, "run_id": self._cfg.run_id, **about}

    def start_trackers(self, bar: Tracker | None) -> list[Tracker]:
        """Open ``metrics.jsonl`` and the configured trackers, and log the segment that begins.

        Args:
            bar: the progress bar; None on every process but the main one.

        Returns:
            All trackers on the main process; an empty list elsewhere.
        """
        if bar is not None:
            self._while_training.callback(self._close_trackers)
            self._metrics = JsonLines(
                self._directory.metrics, keep=self._metrics_bytes, before_write=self._lock.ensure_held
            )
            self._trackers += [self._metrics, bar]
            self._trackers += wandb_trackers(self._cfg, self._directory.metrics)
            clear_divergence(self._directory.diverged)
            self._log(as_json(_segment_record(self._trainer, self._origin)))
        return self._trackers

    def finish(
        self, final_state: Mapping[str, Any], make_result: Callable[[list[SegmentRecord], dict[str, Any]], Outcome]
    ) -> Outcome:
        """Write ``checkpoint.pt`` and then ``result.json``, whose presence means that the run has finished.

        Args:
            final_state: content of the final checkpoint, the same on all processes.
            make_result: makes the result from the run's segments and its provenance, on the main process.

        Returns:
            The result, on all processes.
        """
        result: Outcome | None = None
        if self._processes.is_main:
            self._checkpoints.wait()
            result = make_result(self._segments(), self._origin)
            self._lock.ensure_held()
            final = {**snapshot(final_state), DATA_KEY: self._data}
            save(self._directory.checkpoint, final, self._ensure_held)
            self._lock.ensure_held()
            write_result(self._directory.result, result)
            self._log(tracked_result(result))
            self._while_training.close()
            self._checkpoints.clear()  # last: while checkpoints exist, the same command knows that work is left
        return cast(Outcome, self._processes.broadcast_from_main(lambda: result))

    def record_divergence(self, make_record: Callable[[list[SegmentRecord], dict[str, Any]], AnyRecord]) -> None:
        """Write ``diverged.json`` on the main process, from the run's segments and its provenance.

        The next launch goes on from the last checkpoint, and deletes the file when it begins to train.
        """
        if self._processes.is_main:
            self._checkpoints.wait()
            write_result(self._directory.diverged, make_record(self._segments(), self._origin))

    def announce(self, result: Outcome) -> None:
        """Print the result of the run, on the main process."""
        if self._processes.is_main:
            say(f"{self._cfg.run_id}: {self._kind.summary(result)}\n{self._directory.result}")

    def _segments(self) -> list[SegmentRecord]:
        """Return the segments of ``metrics.jsonl``, of a run directory that is still this process's."""
        lines = read_lines(self._directory.metrics, self._kind.epoch_record)
        self._lock.ensure_held()
        return [line for line in lines if isinstance(line, SegmentRecord)]

    def _log(self, record: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(record)

    def _close_trackers(self) -> None:
        self._checkpoints.wait()
        for tracker in self._trackers:
            tracker.close()


def _move_finished_run_aside(directory: RunDirectory) -> None:
    with FolderLock(directory.path) as lock:  # so that no other process moves it or writes there
        if not directory.finished:  # another process has moved it since we looked, and has started again
            return
        aside = rename_aside(directory.path, SET_ASIDE)
        lock.follow(aside)
    say(f"force=true: the finished run is now {aside}")


def _finish_last_acts(cfg: DictConfig, kind: RunKind[Outcome], directory: RunDirectory, lock: FolderLock) -> None:
    """Send the result to W&B and delete the checkpoints, for a process that died right after writing the result.

    Does nothing if there are no checkpoints left.
    """
    checkpoints = Checkpoints(directory.path, lock.ensure_held)
    if not checkpoints.newest_first():
        return
    result = tracked_result(_own_result(kind, directory))
    for tracker in wandb_trackers(cfg, directory.metrics):
        tracker.log(result)
        tracker.close()
    checkpoints.clear()


def _already_done(kind: RunKind[Outcome], directory: RunDirectory, result: Outcome) -> Outcome:
    say(f"{directory.run_id} is already done: {kind.summary(result)}\n{directory.result}")
    return result


def _own_result(kind: RunKind[Outcome], directory: RunDirectory) -> Outcome:
    try:
        result = kind.read_result(directory.result)
    except RecordError as error:
        raise UserError(f"{error}; delete that file to run again") from error
    if (run_id := cast(Any, result).run_id) != directory.run_id:
        raise UserError(f"{directory.result} is the result of {run_id}; move it away to run again")
    return result


def _segment_record(trainer: Trainable, origin: Mapping[str, Any]) -> SegmentRecord:
    compute = trainer.compute
    return SegmentRecord(
        step=trainer.step,
        device=compute.device.type,
        hardware=compute.hardware,
        precision=compute.precision,
        tf32=compute.tf32,
        channels_last=compute.channels_last,
        compile=compute.compile,
        deterministic=compute.deterministic,
        eager_because=trainer.eager_because if compute.device.type == "cuda" else None,
        world_size=trainer.processes.world_size,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        git_revision=origin["git_revision"],
        git_clean=origin["git_clean"],
    )
