"""Training of one classifier from its frozen configuration, from start to result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import build, model_name, request, weights_digest
from isda_repro.console import say, warn
from isda_repro.data import Loader, Source, StreamingLoader
from isda_repro.data.source import counted
from isda_repro.errors import UserError
from isda_repro.files import append_to, open_regular
from isda_repro.models.weights import load_weights
from isda_repro.runs.diverged import DivergedRun
from isda_repro.runs.records import (
    COVARIANCE_CURVES,
    CURVES,
    OPTIONAL_CURVES,
    EpochRecord,
    RecordError,
    Result,
    SegmentRecord,
    as_json,
    mean_of_last,
    read_result,
)
from isda_repro.tracking import Progress
from isda_repro.training import builders
from isda_repro.training.compute import Compute
from isda_repro.training.ddp import convert_sync_batchnorm
from isda_repro.training.distributed import Processes, init_distributed
from isda_repro.training.running_metrics import total_timing
from isda_repro.training.session import RunKind, Session, earlier_result, prepare, record_exit
from isda_repro.training.step import refuse_single_images
from isda_repro.training.trainer import DivergedError, Trainer


def run(cfg: DictConfig) -> Result:
    """Train the classifier that ``cfg`` describes, or return its result if the run has finished.

    Under torchrun each process calls this function, and all of them return the result.

    Args:
        cfg: a frozen configuration, see ``isda_repro.config.freeze``.

    Raises:
        UserError: a setting, the data or the device is wrong, another process writes this run, or the loss diverged.
        StoppedError: a signal asked the run to stop; the state is saved.
    """
    folder = Path(cfg.runs_dir) / cfg.run_id
    with record_exit(folder), init_distributed(cfg.compute.get("timeout_minutes", 10)) as processes:
        if (earlier := earlier_result(cfg, CLASSIFIER, processes)) is not None:
            return earlier
        compute, source = prepare(cfg, processes)
        trainer = build_trainer(cfg, source, compute, processes)
        with closing(trainer), Session(cfg, CLASSIFIER, trainer, source) as session:
            if session.result is not None:  # another launch has finished the run in the meantime
                return session.result
            unreadable = UnreadableImages(folder, processes, trainer.train_batches, trainer.test_batches)
            session.resume(collect=unreadable.collect)
            bar = None
            if processes.is_main:
                say(opening(cfg, trainer, source))
                bar = Progress(trainer.epochs, trainer.train_batches.num_samples, images_done=trainer.images_done)
            try:
                records = trainer.train(session.start_trackers(bar), bar, session.saver)
            except DivergedError as error:
                try:
                    session.record_divergence(partial(diverged_record, cfg, error))
                except (OSError, RecordError) as why:  # a full disk must not hide that the run diverged
                    warn(f"the record that the run diverged could not be written ({why})")
                raise
            final_state = {
                "run_id": cfg.run_id,
                "epoch": cfg.recipe.epochs,
                "network": trainer.network.state_dict(),
                "criterion": trainer.criterion.whole_state_dict(),
            }
            result = session.finish(
                final_state, lambda segments, origin: result_record(cfg, trainer, source, segments, records, origin)
            )
            unreadable.conclude()
            session.announce(result)
            return result


def build_trainer(cfg: DictConfig, source: Source, compute: Compute, processes: Processes) -> Trainer:
    """Build the trainer of a frozen configuration: network with its weights, loss, optimizer and data.

    Raises:
        UserError: the parts do not fit the data, each other, or the device.
    """
    network = builders.build_network(cfg, source, compute)
    if cfg.model.get("weights") is not None:  # missing in files that were frozen before this setting existed
        weights_digest(cfg.model)
        loaded = load_weights(network, Path(cfg.model.weights), new_head=True)
        if processes.is_main:
            say(loaded)
    if compute.sync_bn and processes.is_distributed:
        network = convert_sync_batchnorm(network, processes, compute)
    counts = source.train_counts
    criterion = builders.build_criterion(cfg, network, compute, processes, counts)
    train_batches, test_batches = builders.build_loaders(cfg, source, compute, processes)
    refuse_single_images(network, train_batches, compute, (source.train.channels, *source.train.image_size))
    eval_model, train_model = builders.call_network(network, compute, processes)
    trainer = Trainer(
        network=network,
        eval_model=eval_model,
        train_model=train_model,
        criterion=criterion,
        optimizer=builders.build_optimizer(cfg, network, criterion),
        schedule=build(cfg.recipe.schedule),
        epochs=cfg.recipe.epochs,
        progress=cfg.faithful.progress,
        train_batches=train_batches,
        test_batches=test_batches,
        compute=compute,
        seed=cfg.seed,
        processes=processes,
        train_counts=counts if len({*counts}) > 1 else None,
    )
    if cfg.compute.get("cuda_graph") is True and trainer.eager_because is not None:
        raise UserError(f"compute.cuda_graph=true, but {trainer.eager_because}: leave it at auto")
    return trainer


def opening(cfg: DictConfig, trainer: Trainer, source: Source) -> str:
    """Return the text that a run prints first: run id, network, data and device."""
    network, compute = trainer.network, trainer.compute
    parameters = sum(parameter.numel() for parameter in network.parameters())
    layout = ", channels_last" if compute.channels_last else ""
    world = trainer.processes.world_size
    several = f"{world} processes, each on " if world > 1 else ""
    left_out = f"\nfiles of {source.name} that are not used: {counted(source.left_out)}" if source.left_out else ""
    resumed = f"goes on after step {trainer.step} of {trainer.total_steps}\n" if trainer.step else ""
    return (
        f"{cfg.run_id}\n{resumed}"
        f"{model_name(cfg)}: {parameters:,} parameters, {network.feature_dim} features | {source.name}: "
        f"{len(source.train):,} training images, {len(source.test):,} in {source.evaluated_on}, "
        f"{source.num_classes} classes | {several}{compute.device.type} ({compute.hardware}), "
        f"{compute.precision}{layout}{left_out}"
    )


def result_record(
    cfg: DictConfig,
    trainer: Trainer,
    source: Source,
    segments: list[SegmentRecord],
    records: list[EpochRecord],
    origin: dict[str, Any],
) -> Result:
    """Return the result of a finished run, which tables are made from."""
    errors, curves = [record.test_error for record in records], curves_of(records)
    finals: dict[str, Any] = {f"{name}_final": curves[name][-1] for name in OPTIONAL_CURVES if name in curves}
    return Result(
        **_asked(cfg),
        evaluated_on=source.evaluated_on,
        test_error_last10=mean_of_last(errors),
        test_error_final=errors[-1],
        test_error_best=min(errors),
        **finals,
        epochs=len(records),
        steps=records[-1].step,
        parameters=sum(parameter.numel() for parameter in trainer.network.parameters()),
        feature_dim=trainer.network.feature_dim,
        train_images=len(source.train),
        test_images=len(source.test),
        curves=curves,
        timing=total_timing(records, trainer.train_batches.num_samples),
        segments=[as_json(segment) for segment in segments],
        environment=origin,
    )


def diverged_record(
    cfg: DictConfig, error: DivergedError, segments: list[SegmentRecord], origin: dict[str, Any]
) -> DivergedRun:
    """Return the record of a run that diverged, which tables show instead of a result."""
    return DivergedRun(
        **_asked(cfg),
        epoch=error.epoch,
        step=error.step,
        reason=error.reason,
        segments=[as_json(segment) for segment in segments],
        environment=origin,
    )


def _asked(cfg: DictConfig) -> dict[str, Any]:
    """Return the fields that say which run it is."""
    settings = {"numerics_version": cfg.numerics_version, **request(cfg)}
    return {"run_id": cfg.run_id, "request": settings, "choices": OmegaConf.to_container(cfg.choice)}


def curves_of(records: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """Return the curves of a run, with one value for each epoch.

    Optional curves and figures of covariances are included only if every epoch has a value; older versions did not
    write them.
    """
    whole = (one for one in OPTIONAL_CURVES if all(getattr(record, one) is not None for record in records))
    curves = {name: [getattr(record, name) for record in records] for name in (*CURVES, *whole)}
    of_epochs = [record.covariances or {} for record in records]
    for name, key in COVARIANCE_CURVES.items():
        if all(key in one for one in of_epochs):
            curves[name] = [one[key] for one in of_epochs]
    return curves


def summary(result: Result) -> str:
    """Return a result as one line of text; errors of groups of classes only if there is more than one group."""
    where = f"{result.evaluated_on} error"
    last = min(10, result.epochs)
    top5 = "" if result.test_top5_error_final is None else f", final top-5 {result.test_top5_error_final:.2f}%"
    groups = {one: getattr(result, f"test_{one}_shot_error_final") for one in ("many", "medium", "few")}
    of_groups = [f", final {one}-shot {error:.2f}%" for one, error in groups.items() if error is not None]
    return (
        f"{where} {result.test_error_last10:.2f}% (mean of the last {last} epochs), "
        f"final {result.test_error_final:.2f}%, best {result.test_error_best:.2f}%{top5}"
    ) + "".join(of_groups if len(of_groups) > 1 else [])


CLASSIFIER = RunKind(
    epoch_record=EpochRecord,
    state_keys=frozenset({"step", "epoch", "network", "criterion", "optimizer", "ranks", "timing"}),
    read_result=read_result,
    summary=summary,
)


MOST_BYTES = 2**28  # of an unreadable.txt


class UnreadableImages:
    """Reports each unreadable image once, on standard error and in ``unreadable.txt`` in the run directory.

    Args:
        folder: the run directory.
        processes: the processes of the run; the main process reports for all of them.
        loaders: the loaders of the run; streaming loaders call this object for each image that they skip.
    """

    def __init__(self, folder: Path, processes: Processes, *loaders: Loader) -> None:
        self._file, self._processes = folder / "unreadable.txt", processes
        self._known: set[str] = set()
        if processes.is_main:
            with suppress(FileNotFoundError), open_regular(self._file, MOST_BYTES) as file:
                self._known = set(file.read().decode(errors="replace").split("\n")) - {""}
        self._unreported: list[tuple[str, str]] = []
        self._may_come = any(loader.may_fall_short for loader in loaders)
        for loader in loaders:
            if isinstance(loader, StreamingLoader):
                loader.report = self

    def __call__(self, where: str, reason: str) -> None:
        """Report an image that a loader has skipped for the first time since the process started."""
        if self._processes.is_main:
            self._name(where, reason)
        else:
            self._unreported.append((where, reason))

    def collect(self) -> None:
        """Send the skipped images of all processes to the main process, which reports them.

        All processes call this whenever the state is saved.
        """
        if not (self._may_come and self._processes.is_distributed):
            return
        gathered = self._processes.gather_to_main(self._unreported)
        self._unreported = []
        for where, reason in (one for of_rank in gathered or [] for one in of_rank):
            self._name(where, reason)

    def _name(self, where: str, reason: str) -> None:
        line = f"{where}: {reason}"
        if any(known.startswith(f"{where}: ") for known in self._known):  # already reported
            return  # only the path is compared: Pillow's reason may hold a memory address, which changes
        self._known.add(line)
        with append_to(self._file) as file:
            file.write(f"{line}\n".encode())
        warn(f"image {len(self._known)} that cannot be read, and is left out: {line}")

    def conclude(self) -> None:
        """Print the number of skipped images."""
        if self._known and self._processes.is_main:
            say(f"images that could not be read and were left out: {len(self._known)}, listed in {self._file}")
