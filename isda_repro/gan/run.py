"""Generators from a frozen configuration: the parts that are trained, and what is said and kept of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from isda_repro.checks import ConfigError
from isda_repro.config import build, request
from isda_repro.data import Loader, PadCropFlip, ResidentLoader, Share, Source, Split
from isda_repro.gan.objectives import Game, Shape
from isda_repro.gan.pictures import draw_losses, grid, shown_epochs, write_picture
from isda_repro.gan.sampling import ImageGenerator
from isda_repro.gan.steps import Pair
from isda_repro.gan.trainer import GanTrainer
from isda_repro.randomness import stream_seed
from isda_repro.runs.records import (
    GeneratorEpoch,
    GeneratorResult,
    SegmentRecord,
    as_json,
    read_generator_result,
    write_result,
)
from isda_repro.tracking import Progress, Tracker
from isda_repro.tracking.tracker import Record
from isda_repro.training import parts
from isda_repro.training.account import total_timing
from isda_repro.training.compute import Compute
from isda_repro.training.lifecycle import live
from isda_repro.training.processes import Processes
from isda_repro.training.saving import Saver
from isda_repro.training.work import Work


class GanProgress(Progress):
    """The same bar and lines as a classifier's, with both losses and what the discriminator says."""

    def running_words(self, running: Any) -> str:
        """An epoch's losses so far."""
        discriminator, generator = (running.get(f"{who}/loss") for who in ("discriminator", "generator"))
        said = f"discriminator {discriminator:.3f}"
        return said if generator is None else f"{said}, generator {generator:.3f}"

    def epoch_words(self, record: Record) -> str:
        """What an epoch came to."""
        named = f"  class loss of generated {record['fake_class_loss']:.3f}" if "fake_class_loss" in record else ""
        codes = f"  of the codes {record['code_loss']:.3f}" if "code_loss" in record else ""
        generator = f", generator {record['generator_loss']:.4f}" if "generator_loss" in record else ""
        return (
            f"loss of discriminator {record['discriminator_loss']:.4f}{generator}  "
            f"real {record['real_score']:.3f}, generated {record['fake_score']:.3f}{named}{codes}"
        )


CURVES = ("discriminator_loss", "generator_loss", "real_score", "fake_score")
MORE_CURVES = ("real_class_loss", "fake_class_loss", "code_loss")


def train_generator(cfg: DictConfig) -> GeneratorResult:
    """Train the generators that ``cfg`` asks for (frozen, see ``isda_repro.config``): ``lifecycle.live``."""
    return live(cfg, GeneratorTraining)


class GeneratorTraining(Work[GeneratorResult]):
    """Generators that are trained; see ``Work``."""

    epoch_record = GeneratorEpoch
    needed = frozenset({"step", "epoch", "network", "pairs", "totals", "timing"})
    read_result = staticmethod(read_generator_result)

    def __init__(self, cfg: DictConfig, source: Source, compute: Compute, processes: Processes) -> None:
        super().__init__(cfg, source, compute, processes)
        train = source.train
        if not isinstance(train, Split):
            raise ConfigError(f"gan= is for images in memory, and those of dataset={source.name} stay in their files")
        height, width = train.image_size
        if height != width:
            raise ConfigError(f"gan= is for square images, and those of {source.name} have {height} x {width} pixels")
        self.shape = Shape(source.num_classes, height, train.channels)
        game: Game = build(cfg.gan.game)
        self.classes = _classes(cfg, source)
        self.learner: GanTrainer = GanTrainer(
            game=game,
            pairs=_pairs(cfg, game, self.shape, compute, self.classes),
            loaders=_loaders(cfg, train, game, self.classes, compute, processes),
            num_classes=source.num_classes,
            epochs=cfg.gan.epochs,
            compute=compute,
            seed=cfg.seed,
            processes=processes,
        )

    @staticmethod
    def result_json(result: GeneratorResult, /) -> dict[str, Any]:
        """For trackers, to whom it is the last record of a run like any."""
        return {**as_json(result), "kind": "result"}

    @staticmethod
    def summary(result: GeneratorResult, /) -> str:
        """How many generators took how many steps."""
        many = f"{result.generators} generators" if result.generators > 1 else "a generator"
        return f"{many} of {result.parameters:,} parameters, {result.generator_steps:,} steps, {result.epochs} epochs"

    @staticmethod
    def build_trackers(cfg: DictConfig, metrics: Path) -> list[Tracker]:
        """W&B, under a kind of its own, which no table reads."""
        group = cfg.run_id.rpartition("-s")[0]
        return parts.wandb_trackers(cfg, metrics, group, job_type="generator", summary_of=wandb_summary)

    def opening(self) -> str:
        """Networks, data and device."""
        learner, compute = self.learner, self.learner.compute
        pair, many = learner.pairs[0], len(learner.pairs)
        sizes = [sum(one.numel() for one in net.parameters()) for net in (pair.generator, pair.discriminator)]
        of_each = f"{many} pairs, one for each class, of " if many > 1 else ""
        wanted = "" if len(self.classes) == self.source.num_classes else f" of classes {list(self.classes)}"
        resumed = f"goes on after step {learner.step} of {learner.epochs * learner.steps_per_epoch}\n"
        several = f"{self.processes.world_size} processes, each on " if self.processes.are_several else ""
        return (
            f"{self.cfg.run_id}\n{resumed if learner.step else ''}{self.cfg.gan.kind}: {of_each}a generator of "
            f"{sizes[0]:,} parameters and a discriminator of {sizes[1]:,} | {self.source.name}: "
            f"{learner.images_per_epoch:,} training images{wanted} of {self.shape.image_size} pixels, "
            f"{self.shape.num_classes} classes | "
            f"{several}{compute.device.type} ({compute.hardware}), {compute.precision}"
        )

    def bar(self) -> GanProgress:
        """Losses, images/s and the time left."""
        return GanProgress(self.learner.epochs, self.learner.images_per_epoch, images_done=self.learner.images_done)

    def train(self, trackers: Sequence[Tracker], bar: GanProgress | None, saver: Saver) -> list[GeneratorEpoch]:
        """The loop; the first process keeps pictures."""
        folder = Path(self.cfg.runs_dir) / self.cfg.run_id / "samples"
        shown = shown_epochs(self.learner.epochs) if self.processes.is_first else set()
        seed = stream_seed(self.cfg.seed, "pictures")

        def epoch_ended(epoch: int) -> None:
            if epoch in shown:
                generator = ImageGenerator(self.learner.game, self._generators(), self.shape, self.classes)
                write_picture(folder / f"epoch-{epoch:05}.png", grid(generator, seed))

        return self.learner.train(trackers, None if bar is None else bar.advance, saver, epoch_ended)

    def _generators(self) -> list[Any]:
        return [pair.generator for pair in self.learner.pairs]

    def result(
        self, segments: list[SegmentRecord], records: list[GeneratorEpoch], origin: dict[str, Any]
    ) -> GeneratorResult:
        """Curves, how far it went, where and with what."""
        learner = self.learner
        names = [*CURVES, *(name for name in MORE_CURVES if getattr(records[0], name) is not None)]
        choices: dict[str, Any] = OmegaConf.to_container(self.cfg.choice)  # type: ignore[assignment]
        return GeneratorResult(
            run_id=self.cfg.run_id,
            request={"numerics_version": self.cfg.numerics_version, **request(self.cfg)},
            choices=choices,
            epochs=len(records),
            steps=learner.step,
            generator_steps=learner.generator_steps,
            generators=len(learner.pairs),
            parameters=sum(one.numel() for network in self._generators() for one in network.parameters()),
            train_images=learner.images_per_epoch,
            curves={name: [getattr(record, name) for record in records] for name in names},
            timing=total_timing(records, learner.images_per_epoch),
            segments=[as_json(segment) for segment in segments],
            environment=origin,
        )

    def write_result(self, path: Path, result: GeneratorResult) -> None:
        """The curves as a picture, then ``result.json``."""
        draw_losses(path.with_name("losses.png"), result.curves, result.run_id)
        write_result(path, result)

    def final_state(self) -> Mapping[str, Any]:
        """The weights, and what they make."""
        return {
            "run_id": self.cfg.run_id,
            "epoch": self.cfg.gan.epochs,
            "network": self.learner.weights(),
            "shape": vars(self.shape),
            "classes": list(self.classes),
        }


def wandb_summary(result: Mapping[str, Any], _metric: str | None = None, _tables: Sequence[str] = ()) -> dict[str, Any]:
    """What W&B shows of trained generators beside their curves."""
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float) and key != "schema"}
    return {**numbers, **{f"total/{key}": value for key, value in result["timing"].items()}}


def _classes(cfg: DictConfig, source: Source) -> tuple[int, ...]:
    """Of which images are made: all, or those that gan.classes= names."""
    wanted = cfg.gan.get("classes")
    if wanted is None:
        return tuple(range(source.num_classes))
    if max(wanted) >= source.num_classes:
        names = ", ".join(f"{index} {name}" for index, name in enumerate(source.class_names[:10]))
        raise ConfigError(f"gan.classes={list(wanted)}: the classes of {source.name} are {names}")
    return tuple(wanted)


def _pairs(cfg: DictConfig, game: Game, shape: Shape, compute: Compute, classes: Sequence[int]) -> list[Pair]:
    """Each with weights from a stream of its own."""
    return [_pair(cfg, game, shape, compute, index) for index in (classes if game.one_for_each_class else [0])]


def _pair(cfg: DictConfig, game: Game, shape: Shape, compute: Compute, index: int) -> Pair:
    torch.manual_seed(stream_seed(cfg.seed, "initialisation", index))
    place: dict[str, Any] = {"device": compute.device, "memory_format": compute.memory_format}
    generator, discriminator = game.generator(shape).to(**place), game.discriminator(shape).to(**place)
    optimizer: Callable[[Any], torch.optim.Optimizer] = build(cfg.gan.optimizer)
    try:
        of_generator, of_discriminator = (optimizer(one.parameters()) for one in (generator, discriminator))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"gan.optimizer cannot be made as it is set: {error}") from error
    return Pair(generator, discriminator, of_generator, of_discriminator)


def _loaders(
    cfg: DictConfig, train: Split, game: Game, classes: Sequence[int], compute: Compute, processes: Processes
) -> list[Loader]:
    """The training images, all of them or class by class, in [-1, 1]."""
    parts = {0: train}
    if game.one_for_each_class:
        parts = {one: train.select((train.targets == one).nonzero()[:, 0]) for one in classes}
    middle = [0.5] * train.channels
    augmentation = PadCropFlip(padding=0, flip=cfg.gan.flip)
    return [
        ResidentLoader(
            part,  # each class has an order of its own
            batch_size=cfg.gan.batch_size,
            mean=middle,
            std=middle,
            augmentation=augmentation,
            shuffle=True,
            seed=stream_seed(cfg.seed, "class", index) if game.one_for_each_class else cfg.seed,
            device=compute.device,
            memory_format=compute.memory_format,
            share=Share(processes.rank, processes.world_size),
        )
        for index, part in parts.items()
    ]
