"""One run from its frozen configuration: builds the parts, trains, writes the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from isda_repro.checks import ConfigError, generator_kind, lacks
from isda_repro.config import build, weights_digest, write_frozen
from isda_repro.console import say
from isda_repro.data import Source
from isda_repro.errors import UserError, is_out_of_memory
from isda_repro.files import move_aside
from isda_repro.tables.ending import forget_ending
from isda_repro.tables.records import (
    RecordError,
    Result,
    SegmentRecord,
    as_json,
    read_metrics,
    read_result,
    write_result,
)
from isda_repro.tracking import JsonLines, Progress, Tracker
from isda_repro.training import checkpoint, parts, same_data
from isda_repro.training.account import opening, result_record, segment_record, summary
from isda_repro.training.checkpoint import Checkpoints
from isda_repro.training.compute import Compute, refuse_differences, resolve
from isda_repro.training.environment import provenance, write_environment
from isda_repro.training.failing import noting
from isda_repro.training.joining import joined
from isda_repro.training.lock import FolderLock
from isda_repro.training.processes import Processes
from isda_repro.training.replicas import with_common_batch_norm
from isda_repro.training.resume import find_start
from isda_repro.training.run_directory import RunDirectory
from isda_repro.training.saving import Saver
from isda_repro.training.trainer import Trainer
from isda_repro.training.unreadable import UnreadableImages
from isda_repro.training.weights import load_weights


def run(cfg: DictConfig) -> Result:
    """Train what ``cfg`` (frozen, see ``isda_repro.config.freeze``) asks for; a finished run is not run twice.

    Under torchrun each of its processes calls this; the first one alone touches the run's folder.

    Raises:
        UserError: a setting, the data or the device is wrong, another process writes this run, or the loss diverged.
        StoppedError: a signal asked to stop; the state is saved.
    """
    if (lack := lacks(cfg)) is not None:
        raise ConfigError(f"synthetic={generator_kind(cfg)} {lack}; nothing has been run")
    waits = cfg.compute.get("timeout_minutes", 10)
    with noting(Path(cfg.runs_dir) / cfg.run_id), joined(waits) as processes:
        result = processes.told_by_first(lambda: _earlier_result(cfg))
        if result is not None:
            return result
        compute = resolve(cfg.compute, processes.local_rank if processes.are_several else None)
        refuse_differences(compute, processes)
        compute.apply()
        with processes.first_before_others():  # it may have to download
            source: Source = build(cfg.dataset.source)
        trainer = _trainer(cfg, source, compute, processes)  # what can be refused has been; the folder is untouched
        return _lead(cfg, trainer, source) if processes.is_first else _follow(cfg, trainer)


def _earlier_result(cfg: DictConfig) -> Result | None:
    """That of the run, if it has finished and is not wanted again."""
    directory = RunDirectory(Path(cfg.runs_dir), cfg.run_id)
    if not directory.finished or cfg.force:
        return None
    checkpoints = Checkpoints(directory.path)
    if checkpoints.newest_first():  # its process died before its last acts
        with FolderLock(directory.path):
            _conclude(cfg, directory, checkpoints)
    return _finished(directory)


def _lead(cfg: DictConfig, trainer: Trainer, source: Source) -> Result:
    """The first process: the run's folder, and training."""
    directory = RunDirectory(Path(cfg.runs_dir), cfg.run_id)
    checkpoints = Checkpoints(directory.path)
    origin = provenance()
    if directory.finished and cfg.force:
        _move_aside(directory)
    directory.path.mkdir(parents=True, exist_ok=True)
    with FolderLock(directory.path) as lock:
        forget_ending(directory.path)
        if not directory.finished:
            return _train(cfg, directory, checkpoints, trainer, source, origin, lock)
        _conclude(cfg, directory, checkpoints)  # another launch was faster, since we looked
        return trainer.processes.told_by_first(lambda: _finished(directory))


def _follow(cfg: DictConfig, trainer: Trainer) -> Result:
    """Another process: what all do together, and nothing else, in the order of ``_lead`` and ``_train``."""
    folder, processes = Path(cfg.runs_dir) / cfg.run_id, trainer.processes
    told = processes.told_by_first(_nothing)
    if isinstance(told, Result):
        return told
    unreadable = UnreadableImages(folder, processes, trainer.train_batches, trainer.test_batches)

    def state() -> dict[str, Any]:
        unreadable.collect()
        return trainer.state_dict()

    saver = _saver(cfg, Checkpoints(folder), state, processes)
    with saver.listening():
        if told is not None:
            trainer.load_state_dict(*told)
        trainer.train([], None, saver)
        trainer.criterion.whole_state_dict()
        unreadable.collect()
        return cast(Result, processes.told_by_first(_nothing))


def _nothing() -> Any:
    """What processes other than the first have to tell; see ``Processes.told_by_first``."""


def _saver(
    cfg: DictConfig, checkpoints: Checkpoints, state: Callable[[], dict[str, Any]], processes: Processes
) -> Saver:
    return Saver(checkpoints, state, cfg.checkpoint.minutes, cfg.checkpoint.steps, processes)


def _move_aside(directory: RunDirectory) -> None:
    """Make room for a run that is wanted again."""
    with FolderLock(directory.path) as lock:  # nobody else moves it or writes there
        if not directory.finished:  # somebody has, since we looked, and has begun anew
            return
        aside = move_aside(directory.path, "before")
        lock.follow(aside)
    say(f"force=true: the finished run is now {aside}")


def _train(
    cfg: DictConfig,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    trainer: Trainer,
    source: Source,
    origin: dict[str, Any],
    lock: FolderLock,
) -> Result:
    """From where the run is to its result."""
    described = same_data.description(source)
    unreadable = UnreadableImages(directory.path, trainer.processes, trainer.train_batches, trainer.test_batches)

    def state() -> dict[str, Any]:
        lock.ensure_held()
        unreadable.collect()
        about = {"run_id": cfg.run_id, "metrics_bytes": metrics.bytes_written, same_data.KEY: described}
        return {**trainer.state_dict(), **about}

    saver = _saver(cfg, checkpoints, state, trainer.processes)
    with saver.listening():
        metrics_bytes = _go_on(trainer, directory, checkpoints, source)
        write_frozen(_said_once(cfg), directory.config)
        write_environment(directory.environment, origin, trainer.compute)
        say(opening(cfg, trainer, source))
        bar = Progress(cfg.recipe.epochs, trainer.train_batches.num_samples, images_done=trainer.images_done)
        metrics = JsonLines(directory.metrics, keep=metrics_bytes, before_write=lock.ensure_held)
        trackers: list[Tracker] = [metrics, bar, *parts.build_trackers(cfg, directory.metrics)]
        try:
            segment = as_json(segment_record(trainer, origin))
            for tracker in trackers:
                tracker.log(segment)
            records = trainer.train(trackers, bar, saver)
            checkpoints.wait()
            segments = [line for line in read_metrics(directory.metrics) if isinstance(line, SegmentRecord)]
            result = result_record(cfg, trainer, source, segments, records, origin)
            final = {**_state(cfg, trainer), same_data.KEY: described}
            unreadable.collect()
            lock.ensure_held()
            checkpoint.save(directory.checkpoint, final)
            write_result(directory.result, result)
            for tracker in trackers:
                tracker.log(as_json(result))
        finally:
            checkpoints.wait()
            for tracker in trackers:
                tracker.close()
    checkpoints.clear()  # the very last: until then the same command knows that there is something left to do
    unreadable.conclude()
    say(f"{cfg.run_id}: {summary(result)}\n{directory.result}")
    return trainer.processes.told_by_first(lambda: result)


def _go_on(trainer: Trainer, directory: RunDirectory, checkpoints: Checkpoints, source: Source) -> int:
    """Put the trainer where the run is; how many bytes of ``metrics.jsonl`` are of what it has done."""
    start = find_start(checkpoints, directory.metrics, directory.run_id)
    if start.state is None:
        trainer.processes.told_by_first(lambda: None)
    else:
        same_data.check_unchanged(start.state, source, start.path or directory.path)
        trainer.processes.told_by_first(lambda: (start.state, start.records))
        try:
            trainer.load_state_dict(start.state, start.records)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{start.path} is whole but does not fit this version of this program ({reason}): go on with the one "
                f"that {directory.environment} names, or delete the checkpoints there to begin anew"
            ) from error
    return start.metrics_bytes


def _conclude(cfg: DictConfig, directory: RunDirectory, checkpoints: Checkpoints) -> None:
    """The last acts of a run whose process died when it had just written the result: telling W&B, and clearing up."""
    if not checkpoints.newest_first():
        return
    result = as_json(_own_result(directory))
    for tracker in parts.build_trackers(cfg, directory.metrics):
        tracker.log(result)
        tracker.close()
    checkpoints.clear()


def _said_once(cfg: DictConfig) -> DictConfig:
    """The configuration for the run's own file, which must not force each time that it is run."""
    frozen = cfg.copy()
    frozen.force = False
    return frozen


def _finished(directory: RunDirectory) -> Result:
    """Say so, and hand out its result."""
    result = _own_result(directory)
    say(f"{directory.run_id} is already done: {summary(result)}\n{directory.result}")
    return result


def _own_result(directory: RunDirectory) -> Result:
    try:
        result = read_result(directory.result)
    except RecordError as error:
        raise UserError(f"{error}; delete that file to run again") from error
    if result.run_id != directory.run_id:
        raise UserError(f"{directory.result} is the result of {result.run_id}; move it away to run again")
    return result


def _trainer(cfg: DictConfig, source: Source, compute: Compute, processes: Processes) -> Trainer:
    network = parts.build_network(cfg, source, compute)
    if cfg.model.get("weights") is not None:  # a file that was frozen before there was such a setting has none
        weights_digest(cfg.model)
        loaded = load_weights(network, Path(cfg.model.weights), new_head=True)
        if processes.is_first:
            say(loaded)
    if compute.sync_bn and processes.are_several:
        network = with_common_batch_norm(network, processes, compute)
    criterion = parts.build_criterion(cfg, network, compute, processes)
    train_batches, test_batches = parts.build_loaders(cfg, source, compute, processes)
    compiled, called = parts.call_network(network, compute, processes)
    return Trainer(
        network=network,
        compiled=compiled,
        called=called,
        criterion=criterion,
        optimizer=parts.build_optimizer(cfg, network, criterion),
        schedule=build(cfg.recipe.schedule),
        epochs=cfg.recipe.epochs,
        progress=cfg.faithful.progress,
        train_batches=train_batches,
        test_batches=test_batches,
        compute=compute,
        seed=cfg.seed,
        processes=processes,
    )


def _state(cfg: DictConfig, trainer: Trainer) -> dict[str, Any]:
    """What is kept of a finished run to evaluate it again."""
    return {
        "run_id": cfg.run_id,
        "epoch": cfg.recipe.epochs,
        "network": trainer.network.state_dict(),
        "criterion": trainer.criterion.whole_state_dict(),
    }
