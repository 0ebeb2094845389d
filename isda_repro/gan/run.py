"""Training of generators from their frozen configuration, from start to result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from isda_repro.config import build, request
from isda_repro.config.checks import ConfigError
from isda_repro.console import say
from isda_repro.data import InMemoryLoader, Loader, PadCropFlip, Share, Source, Split
from isda_repro.gan.objectives import Game, Shape
from isda_repro.gan.pictures import draw_losses, grid, shown_epochs
from isda_repro.gan.sampling import ImageGenerator
from isda_repro.gan.steps import Pair
from isda_repro.gan.trainer import GanTrainer
from isda_repro.randomness import stream_seed
from isda_repro.runs.generator_records import GeneratorEpoch, GeneratorResult, read_generator_result
from isda_repro.runs.records import SegmentRecord, as_json
from isda_repro.sheets import write_picture
from isda_repro.tracking import Progress
from isda_repro.tracking.tracker import Record
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import Processes, init_distributed
from isda_repro.training.running_metrics import total_timing
from isda_repro.training.session import RunKind, Session, earlier_result, prepare, record_exit


class GanProgress(Progress):
    """A classifier's progress bar and lines, with the losses of both networks and the discriminator's scores."""

    def running_words(self, running: Any) -> str:
        """Return the mean losses of the epoch so far, as text."""
        discriminator, generator = (running.get(f"{who}/loss") for who in ("discriminator", "generator"))
        named = (("discriminator", discriminator), ("generator", generator))
        return ", ".join(f"{who} {loss:.3f}" for who, loss in named if loss is not None)

    def epoch_words(self, record: Record) -> str:
        """Return the losses and scores of a finished epoch, as text."""
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
    """Train the generators that ``cfg`` describes, or return their result if the run has finished.

    Args:
        cfg: a frozen configuration, see ``isda_repro.config.freeze_generator``.

    Raises:
        UserError: a setting, the data or the device is wrong, another process writes this run, or a loss diverged.
        StoppedError: a signal asked the run to stop; the state is saved.
    """
    folder = Path(cfg.runs_dir) / cfg.run_id
    with record_exit(folder), init_distributed(cfg.compute.get("timeout_minutes", 10)) as processes:
        if (earlier := earlier_result(cfg, GENERATOR, processes)) is not None:
            return earlier
        compute, source = prepare(cfg, processes)
        trainer, shape, classes = build_gan_trainer(cfg, source, compute, processes)
        generators = [pair.generator for pair in trainer.pairs]
        with Session(cfg, GENERATOR, trainer, source) as session:
            if session.result is not None:  # another launch has finished the run in the meantime
                return session.result
            session.resume()
            bar = None
            if processes.is_main:
                say(opening(cfg, trainer, source, shape, classes))
                bar = GanProgress(trainer.epochs, trainer.images_per_epoch, images_done=trainer.images_done)
            shown = shown_epochs(trainer.epochs) if processes.is_main else set()

            def epoch_ended(epoch: int) -> None:
                if epoch in shown:
                    pictures = grid(ImageGenerator(trainer.game, generators, shape, classes), picture_seed)
                    write_picture(folder / "samples" / f"epoch-{epoch:05}.png", pictures, is_own_place=True)

            picture_seed = stream_seed(cfg.seed, "pictures")
            trackers = session.start_trackers(bar)
            records = trainer.train(trackers, bar.advance if bar else None, session.saver, epoch_ended)
            final_state = {
                "run_id": cfg.run_id,
                "epoch": cfg.gan.epochs,
                "network": trainer.weights(),
                "shape": vars(shape),
                "classes": list(classes),
            }

            def make_result(segments: list[SegmentRecord], origin: dict[str, Any]) -> GeneratorResult:
                result = generator_result(cfg, trainer, segments, records, origin)
                draw_losses(folder / "losses.png", result.curves, result.run_id)
                return result

            result = session.finish(final_state, make_result)
            session.announce(result)
            return result


def build_gan_trainer(
    cfg: DictConfig, source: Source, compute: Compute, processes: Processes
) -> tuple[GanTrainer, Shape, tuple[int, ...]]:
    """Return the trainer of a frozen configuration, the shape of its images, and the classes it generates.

    Raises:
        UserError: the parts do not fit the data or the device.
    """
    train = source.train
    if not isinstance(train, Split):
        raise ConfigError(f"gan= is for images in memory, and those of dataset={source.name} stay in their files")
    height, width = train.image_size
    if height != width:
        raise ConfigError(f"gan= is for square images, and those of {source.name} have {height} x {width} pixels")
    shape = Shape(source.num_classes, height, train.channels)
    game: Game = build(cfg.gan.game)
    classes = _classes(cfg, source)
    trainer = GanTrainer(
        game=game,
        pairs=_pairs(cfg, game, shape, compute, classes),
        loaders=_loaders(cfg, train, game, classes, compute, processes),
        num_classes=source.num_classes,
        epochs=cfg.gan.epochs,
        compute=compute,
        seed=cfg.seed,
        processes=processes,
    )
    return trainer, shape, classes


def opening(cfg: DictConfig, trainer: GanTrainer, source: Source, shape: Shape, classes: Sequence[int]) -> str:
    """Return the text that a run prints first: run id, networks, data and device."""
    compute, world = trainer.compute, trainer.processes.world_size
    pair, many = trainer.pairs[0], len(trainer.pairs)
    sizes = [sum(one.numel() for one in net.parameters()) for net in (pair.generator, pair.discriminator)]
    of_each = f"{many} pairs, one for each class, of " if many > 1 else ""
    wanted = "" if len(classes) == source.num_classes else f" of classes {list(classes)}"
    resumed = f"goes on after step {trainer.step} of {trainer.epochs * trainer.steps_per_epoch}\n"
    several = f"{world} processes, each on " if world > 1 else ""
    return (
        f"{cfg.run_id}\n{resumed if trainer.step else ''}{cfg.gan.kind}: {of_each}a generator of "
        f"{sizes[0]:,} parameters and a discriminator of {sizes[1]:,} | {source.name}: "
        f"{trainer.images_per_epoch:,} training images{wanted} of {shape.image_size} pixels, "
        f"{shape.num_classes} classes | "
        f"{several}{compute.device.type} ({compute.hardware}), {compute.precision}"
    )


def generator_result(
    cfg: DictConfig,
    trainer: GanTrainer,
    segments: list[SegmentRecord],
    records: list[GeneratorEpoch],
    origin: dict[str, Any],
) -> GeneratorResult:
    """Return the result of a finished run: curves, numbers of steps, timing and provenance."""
    names = [*CURVES, *(name for name in MORE_CURVES if getattr(records[0], name) is not None)]
    choices: dict[str, Any] = OmegaConf.to_container(cfg.choice)  # type: ignore[assignment]
    return GeneratorResult(
        run_id=cfg.run_id,
        request={"numerics_version": cfg.numerics_version, **request(cfg)},
        choices=choices,
        epochs=len(records),
        steps=trainer.step,
        generator_steps=trainer.generator_steps,
        generators=len(trainer.pairs),
        parameters=sum(one.numel() for pair in trainer.pairs for one in pair.generator.parameters()),
        train_images=trainer.images_per_epoch,
        curves={name: [getattr(record, name) for record in records] for name in names},
        timing=total_timing(records, trainer.images_per_epoch),
        segments=[as_json(segment) for segment in segments],
        environment=origin,
    )


def summary(result: GeneratorResult) -> str:
    """Return a result as one line of text: number of generators, parameters, steps and epochs."""
    many = f"{result.generators} generators" if result.generators > 1 else "a generator"
    return f"{many} of {result.parameters:,} parameters, {result.generator_steps:,} steps, {result.epochs} epochs"


GENERATOR = RunKind(
    epoch_record=GeneratorEpoch,
    state_keys=frozenset({"step", "epoch", "network", "pairs", "totals", "timing"}),
    read_result=read_generator_result,
    summary=summary,
)


def _classes(cfg: DictConfig, source: Source) -> tuple[int, ...]:
    """Return the classes to generate: those of ``gan.classes``, or all.

    Raises:
        ConfigError: the data has no such class.
    """
    wanted = cfg.gan.get("classes")
    if wanted is None:
        return tuple(range(source.num_classes))
    if max(wanted) >= source.num_classes:
        names = ", ".join(f"{index} {name}" for index, name in enumerate(source.class_names[:10]))
        raise ConfigError(f"gan.classes={list(wanted)}: the classes of {source.name} are {names}")
    return tuple(wanted)


def _pairs(cfg: DictConfig, game: Game, shape: Shape, compute: Compute, classes: Sequence[int]) -> list[Pair]:
    """Return a generator and discriminator for each class, or one pair; each is initialised from its own stream."""
    return [_pair(cfg, game, shape, compute, index) for index in (classes if game.one_for_each_class else [0])]


def _pair(cfg: DictConfig, game: Game, shape: Shape, compute: Compute, index: int) -> Pair:
    torch.manual_seed(stream_seed(cfg.seed, "initialisation", index))
    place: dict[str, Any] = {"device": compute.device, "memory_format": compute.memory_format}
    generator, discriminator = game.generator(shape).to(**place), game.discriminator(shape).to(**place)
    optimizer: Callable[[Any], torch.optim.Optimizer] = build(cfg.gan.optimizer)
    try:
        of_generator, of_discriminator = (optimizer(one.parameters()) for one in (generator, discriminator))
    except (TypeError, ValueError, LookupError) as error:
        raise ConfigError(f"gan.optimizer cannot be made as it is set: {error}") from error
    return Pair(generator, discriminator, of_generator, of_discriminator)


def _loaders(
    cfg: DictConfig, train: Split, game: Game, classes: Sequence[int], compute: Compute, processes: Processes
) -> list[Loader]:
    """Return loaders of the training images in [-1, 1], one for each pair."""
    splits = {0: train}
    if game.one_for_each_class:
        splits = {one: train.select((train.targets == one).nonzero()[:, 0]) for one in classes}
    middle = [0.5] * train.channels
    augmentation = PadCropFlip(padding=0, flip=cfg.gan.flip)
    return [
        InMemoryLoader(
            part,  # each class is shuffled by a seed of its own
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
        for index, part in splits.items()
    ]
