"""Training loop of generators: epochs of steps, each on a batch of real images, and a record of each epoch.

A step is a step of a discriminator. After as many of them as the game asks for, the generator takes one too. If each
class has its own pair, an epoch goes through the classes one after another. Every random draw is a function of (seed,
stream, step), so that a run can continue in the middle of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from isda_repro.data import Loader
from isda_repro.errors import UserError
from isda_repro.gan.objectives import Game
from isda_repro.gan.steps import Pair, Steps, Totals
from isda_repro.runs.generator_records import GeneratorEpoch
from isda_repro.runs.records import as_json
from isda_repro.tracking import Tracker
from isda_repro.training.checkpoint import Saver
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes
from isda_repro.training.running_metrics import Stopwatch, epoch_timing

Advance = Callable[[int, int, Callable[[], Mapping[str, float]]], None]
"""Called after each step with its number of images, its epoch, and a function that returns the means so far."""

LOOK_STEPS = 50  # steps between two checks of the losses, which make the host wait for a GPU


@dataclass
class GanTrainer:
    """Everything that generators are trained with, and their progress; ``train`` is the loop.

    Args:
        game: computes the losses.
        pairs: one pair of networks, or one for each class.
        loaders: for each pair, the real images in [-1, 1] that it learns from.
        num_classes: number of classes of the data set.
        epochs: number of epochs of the whole run.
        compute: device and precision.
        seed: seed of the run.
        processes: the processes that train together.
    """

    game: Game
    pairs: Sequence[Pair]
    loaders: Sequence[Loader]
    num_classes: int
    epochs: int
    compute: Compute
    seed: int
    processes: Processes = SINGLE_PROCESS

    def __post_init__(self) -> None:
        self.step = 0
        """Number of discriminator steps taken, over all pairs."""
        self.eager_because: str | None = "generators train in eager steps"
        self._steps = Steps(self.game, self.num_classes, self.compute, self.seed, self.processes)
        self._stopwatch = Stopwatch(self.compute.device)
        self._totals = Totals(self.compute.device)
        self._records: list[GeneratorEpoch] = []
        self._ends = list(accumulate(loader.steps_per_epoch for loader in self.loaders))

    @property
    def steps_per_epoch(self) -> int:
        """Number of discriminator steps in an epoch, over all pairs."""
        return self._ends[-1]

    @property
    def images_per_epoch(self) -> int:
        """Number of real images in an epoch, over all pairs."""
        return sum(loader.num_samples for loader in self.loaders)

    @property
    def images_done(self) -> int:
        """Number of real images trained on so far, over all epochs."""
        epochs, step = divmod(self.step, self.steps_per_epoch)
        done, begin = epochs * self.images_per_epoch, 0
        for end, loader in zip(self._ends, self.loaders, strict=True):
            done += min(max(0, step - begin) * loader.batch_size, loader.num_samples)
            begin = end
        return done

    @property
    def generator_steps(self) -> int:
        """Number of generator steps taken so far, over all pairs."""
        return sum(pair.generator_steps for pair in self.pairs)

    # ----------------------------------------------------------------------------------------------------------- state

    def weights(self) -> dict[str, Any]:
        """Return the state dicts of all networks."""
        return {
            "generators": [pair.generator.state_dict() for pair in self.pairs],
            "discriminators": [pair.discriminator.state_dict() for pair in self.pairs],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to continue as if it had not stopped, except its epochs' records.

        All processes call this.

        Raises:
            UserError: a loss or a weight is not a finite number.
        """
        self._stop_if_diverged()
        networks = [net for pair in self.pairs for net in (pair.generator, pair.discriminator)]
        if not all(bool(weight.isfinite().all()) for net in networks for weight in net.parameters()):
            raise self._diverged("a weight is no longer finite")
        return {
            "step": self.step,
            "epoch": len(self._records),
            "network": self.weights(),
            "pairs": [pair.state_dict() for pair in self.pairs],
            "totals": self._totals.of_all(self.processes),
            "timing": self._stopwatch.so_far(),
        }

    def load_state_dict(self, state: Mapping[str, Any], records: Sequence[GeneratorEpoch]) -> None:
        """Continue from a state that ``state_dict`` returned, with any number of processes.

        Args:
            state: the state.
            records: the records of the epochs that were over.
        """
        network = state["network"]
        for pair, generator, discriminator, rest in zip(
            self.pairs, network["generators"], network["discriminators"], state["pairs"], strict=True
        ):
            pair.generator.load_state_dict(generator)
            pair.discriminator.load_state_dict(discriminator)
            pair.load_state_dict(rest)
        if self.processes.is_main:
            self._totals.load_state_dict(state["totals"])
        self._stopwatch.go_on_from(state["timing"])
        self.step = state["step"]
        self._records = list(records)

    # ------------------------------------------------------------------------------------------------------------ loop

    def train(
        self, trackers: Sequence[Tracker], advance: Advance | None, saver: Saver, epoch_ended: Callable[[int], None]
    ) -> list[GeneratorEpoch]:
        """Train from the current step to the end of the last epoch.

        Args:
            trackers: each logs a record of every epoch.
            advance: called after every step, see ``Advance``; None: not called.
            saver: called after every step; it may save the state, or stop the run there.
            epoch_ended: called with the number of each finished epoch, before its record is written.

        Returns:
            The records of all epochs, including those before the run was resumed.

        Raises:
            UserError: a loss is NaN or infinite.
            StoppedError: a signal asked the run to stop.
        """
        while len(self._records) < self.epochs:
            epoch = len(self._records) + 1
            self._play(epoch, advance, saver)
            with self._stopwatch.host("evaluation"):
                epoch_ended(epoch)
            record = self._record(epoch)
            for tracker in trackers:
                tracker.log(as_json(record))
            self._records.append(record)
            self._totals = Totals(self.compute.device)
            with self._stopwatch.host("saving"):
                saver.epoch_ended()
        return self._records

    def _play(self, epoch: int, advance: Advance | None, saver: Saver) -> None:
        """Take the remaining steps of an epoch."""
        first = self.step - (epoch - 1) * self.steps_per_epoch
        for index, (end, loader) in enumerate(zip(self._ends, self.loaders, strict=True)):
            begin = end - loader.steps_per_epoch
            if first >= end:
                continue
            batches = iter(loader.epoch(epoch, max(0, first - begin)))
            for step in range(max(first, begin) - begin, loader.steps_per_epoch):
                with self._stopwatch.host("train"):
                    with self._stopwatch.host("data_wait"):
                        images, targets = next(batches)
                    part = loader.part_of(step)
                    self._step(self.pairs[index], images, targets, part)
                    if advance is not None:
                        advance(part[1], epoch, self._totals.means)
                with self._stopwatch.host("saving"):
                    saver.step_taken(self.step)
        with self._stopwatch.host("train"):  # waits for the GPU, so that its last steps are timed
            self._stop_if_diverged()
            for pair in self.pairs:
                for network in (pair.generator, pair.discriminator):
                    self.processes.broadcast_tensors(network.buffers())

    def _step(self, pair: Pair, images: Tensor, targets: Tensor, part: tuple[int, int]) -> None:
        self._steps.take(pair, images, targets, part, self.step, self._totals)
        self.step += 1
        if self.compute.device.type == "cpu" or self.step % LOOK_STEPS == 0:
            self._stop_if_diverged()

    # ---------------------------------------------------------------------------------------------------------- records

    def _record(self, epoch: int) -> GeneratorEpoch:
        means = self._totals.means(self.processes)
        if not all(math.isfinite(value) for value in means.values()):
            raise self._diverged("a loss is no longer finite")
        names = ("real_score", "fake_score", "real_class_loss", "fake_class_loss", "code_loss")
        shown = {name: means[f"discriminator/{name}"] for name in names if f"discriminator/{name}" in means}
        return GeneratorEpoch(
            epoch=epoch,
            step=self.step,
            generator_steps=self.generator_steps,
            discriminator_loss=means["discriminator/loss"],
            generator_loss=means.get("generator/loss"),
            timing=epoch_timing(self._stopwatch, self.images_per_epoch),
            **shown,
        )

    def _stop_if_diverged(self) -> None:
        if self._totals.is_bad(self.processes):
            raise self._diverged("a loss is no longer finite")

    def _diverged(self, what: str) -> UserError:
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        return UserError(
            f"{what} at step {self.step} (epoch {epoch}): training stopped and wrote no such weights; lower "
            "gan.optimizer.lr, or try compute.precision=fp32"
        )
