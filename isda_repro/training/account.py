"""What a run says of itself: when it begins, for its segments, when it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf

from isda_repro.config import model_name, request
from isda_repro.data import Source
from isda_repro.runs.records import EpochRecord, Result, SegmentRecord, as_json, mean_of_last
from isda_repro.training.trainer import Trainer
from isda_repro.training.work import Learner


class Timed(Protocol):
    """The record of an epoch, of whatever kind of run."""

    @property
    def timing(self) -> dict[str, float]:
        """As in ``EpochRecord``."""


def segment_record(learner: Learner, origin: Mapping[str, Any]) -> SegmentRecord:
    """The line of ``metrics.jsonl`` that a process begins with."""
    compute = learner.compute
    return SegmentRecord(
        step=learner.step,
        device=compute.device.type,
        hardware=compute.hardware,
        precision=compute.precision,
        tf32=compute.tf32,
        channels_last=compute.channels_last,
        compile=compute.compile,
        deterministic=compute.deterministic,
        eager_because=learner.eager_because if compute.device.type == "cuda" else None,
        world_size=learner.processes.world_size,
        threads=torch.get_num_threads(),
        git_revision=origin["git_revision"],
        git_clean=origin["git_clean"],
    )


def result_record(
    cfg: DictConfig,
    trainer: Trainer,
    source: Source,
    segments: list[SegmentRecord],
    records: list[EpochRecord],
    origin: dict[str, Any],
) -> Result:
    """What a run that has ended is summed up in."""
    errors = [record.test_error for record in records]
    choices: dict[str, Any] = OmegaConf.to_container(cfg.choice)  # type: ignore[assignment]
    return Result(
        run_id=cfg.run_id,
        request={"numerics_version": cfg.numerics_version, **request(cfg)},
        choices=choices,
        evaluated_on=source.evaluated_on,
        test_error_last10=mean_of_last(errors),
        test_error_final=errors[-1],
        test_error_best=min(errors),
        test_top5_error_final=records[-1].test_top5_error,
        epochs=len(records),
        steps=records[-1].step,
        parameters=sum(parameter.numel() for parameter in trainer.network.parameters()),
        feature_dim=trainer.network.feature_dim,
        train_images=len(source.train),
        test_images=len(source.test),
        curves=curves_of(records),
        timing=total_timing(records, trainer.train_batches.num_samples),
        segments=[as_json(segment) for segment in segments],
        environment=origin,
    )


def curves_of(records: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """An entry an epoch; of the top-5 error only where each epoch has one, and the first may be of older code."""
    names = ["test_error", "test_loss", "train_error", "train_loss", "lr"]
    if all(record.test_top5_error is not None for record in records):
        names.append("test_top5_error")
    return {name: [getattr(record, name) for record in records] for name in names}


def total_timing(records: Sequence[Timed], images: int) -> dict[str, float]:
    """Of a whole run of so many images an epoch: seconds by section, images/s, and the most memory."""
    measured = set.intersection(*(set(record.timing) for record in records))  # on a GPU: not the criterion
    sections = [name for name in records[-1].timing if name in measured - {"images_per_s", "peak_memory_mib"}]
    total = {name: sum(record.timing[name] for record in records) for name in sections}
    return {
        **total,
        "images_per_s": images * len(records) / total["train"],
        "peak_memory_mib": max(record.timing["peak_memory_mib"] for record in records),
    }


def opening(cfg: DictConfig, trainer: Trainer, source: Source) -> str:
    """The lines that a run begins with."""
    network, compute = trainer.network, trainer.compute
    parameters = sum(parameter.numel() for parameter in network.parameters())
    layout = ", channels_last" if compute.channels_last else ""
    world = trainer.processes.world_size
    several = f"{world} processes, each on " if world > 1 else ""
    resumed = f"goes on after step {trainer.step} of {trainer.total_steps}\n" if trainer.step else ""
    return (
        f"{cfg.run_id}\n{resumed}"
        f"{model_name(cfg)}: {parameters:,} parameters, {network.feature_dim} features | {source.name}: "
        f"{len(source.train):,} training images, {len(source.test):,} in {source.evaluated_on}, "
        f"{source.num_classes} classes | {several}{compute.device.type} ({compute.hardware}), "
        f"{compute.precision}{layout}"
    )


def summary(result: Result) -> str:
    """A result in one line."""
    where = f"{result.evaluated_on} error"
    last = min(10, result.epochs)
    top5 = "" if result.test_top5_error_final is None else f", final top-5 {result.test_top5_error_final:.2f}%"
    return (
        f"{where} {result.test_error_last10:.2f}% (mean of the last {last} epochs), "
        f"final {result.test_error_final:.2f}%, best {result.test_error_best:.2f}%{top5}"
    )
