"""The loop: epochs of steps, an evaluation after each, a record of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isda_repro.data import ResidentLoader
from isda_repro.errors import UserError
from isda_repro.losses import Criterion
from isda_repro.models import Network
from isda_repro.randomness import stream_seed
from isda_repro.tables.records import EpochRecord, as_json
from isda_repro.tracking import Progress, Tracker
from isda_repro.training.compute import Compute
from isda_repro.training.evaluate import evaluate
from isda_repro.training.schedule import Schedule
from isda_repro.training.step import StepResult, compute_gradients
from isda_repro.training.timing import Stopwatch, peak_memory_mib

GPU_CHECK_STEPS = (
    50  # a look at the loss makes the host wait for a GPU; on a CPU it costs nothing, each step is checked
)


class DivergedError(UserError):
    """The loss is no longer a finite number."""


class RunningTotals:
    """Sums over an epoch, kept on the device: loss, errors, samples, and the first step whose loss was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._samples = 0

    @torch.no_grad()
    def add(self, result: StepResult, targets: Tensor, step: int) -> None:
        """Take in one batch."""
        wrong = (result.logits.argmax(1) != targets).sum()
        self._sums += torch.stack([result.loss.double() * len(targets), wrong.double()])
        bad = ~result.loss.isfinite() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, step, self._first_bad_step)
        self._samples += len(targets)

    def first_bad_step(self) -> int | None:
        """The step whose loss was the first that is not finite, if any. Waits for the device."""
        step = int(self._first_bad_step)
        return None if step < 0 else step

    def means(self) -> tuple[float, float]:
        """Mean loss, and error in percent. Waits for the device."""
        loss, errors = self._sums.tolist()
        return loss / self._samples, 100 * errors / self._samples


@dataclass
class Trainer:
    """Everything one run trains with. ``train`` is the loop.

    Args:
        network: what is trained; ``compiled`` is the same, compiled or not, and is what is called.
        criterion: see ``isda_repro.losses.Criterion``.
        optimizer: holds the network's and the criterion's parameters; each group has its ``initial_lr``.
        schedule: factor on each group's initial rate, by epoch.
        epochs: of the whole run.
        progress: "iteration" (the paper) or "epoch" (the authors' code): how often the criterion's progress moves.
        train_batches: the training images, in an order of their own each epoch.
        test_batches: the images that are evaluated after each epoch.
        compute: device and precision.
        seed: of the run; each draw has its own stream.
    """

    network: Network
    compiled: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    epochs: int
    progress: str
    train_batches: ResidentLoader
    test_batches: ResidentLoader
    compute: Compute
    seed: int

    def __post_init__(self) -> None:
        self._draws = torch.Generator(self.compute.device)
        self._stopwatch = Stopwatch(self.compute.device)

    def train(self, trackers: Sequence[Tracker], bar: Progress) -> list[EpochRecord]:
        """Train from the first epoch to the last; ``trackers`` take a record of each, ``bar`` shows every step.

        Raises:
            DivergedError: a loss is NaN or infinite; nothing of that epoch has been written.
        """
        if self.compute.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.compute.device)
        records = []
        for epoch in range(1, self.epochs + 1):
            record = self._epoch(epoch, bar)
            for tracker in trackers:
                tracker.log(as_json(record))
            records.append(record)
        return records

    def _epoch(self, epoch: int, bar: Progress) -> EpochRecord:
        rate = self._set_rates(epoch)
        first_step = (epoch - 1) * self.train_batches.steps_per_epoch
        totals = RunningTotals(self.compute.device)
        with self._stopwatch.host("train"):
            self.network.train()
            self.criterion.train()
            batches = iter(self.train_batches.epoch(epoch))
            for step in range(first_step, first_step + self.train_batches.steps_per_epoch):
                with self._stopwatch.host("data_wait"):
                    images, targets = next(batches)
                self._step(step, epoch, images, targets, totals)
                bar.advance(len(images), epoch, totals.means)
            self._stop_if_diverged(totals, epoch)
            train_loss, train_error = totals.means()
        with self._stopwatch.host("evaluation"):
            test = evaluate(self.compiled, self.test_batches.epoch(0), self.compute)
        if not math.isfinite(test.loss):
            last = first_step + self.train_batches.steps_per_epoch - 1
            raise DivergedError(
                f"the test loss is {test.loss} after step {last} (epoch {epoch}), with learning rate {rate:g}: "
                "training stopped and wrote no weights; lower recipe.lr"
            )
        return EpochRecord(
            epoch=epoch,
            step=first_step + self.train_batches.steps_per_epoch,
            lr=rate,
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test.loss,
            test_error=test.error,
            timing=self._timing(),
        )

    def _step(self, step: int, epoch: int, images: Tensor, targets: Tensor, totals: RunningTotals) -> None:
        self.optimizer.zero_grad()
        self._draws.manual_seed(stream_seed(self.seed, "criterion", step))
        self.criterion.begin_step(step, self.epochs * self.train_batches.steps_per_epoch, self._draws)
        result = compute_gradients(
            self.compiled,
            self.criterion,
            images,
            targets,
            head=self.network.head,
            progress=self._progress_at(step),
            compute=self.compute,
            seed_micro_batch=lambda index: _seed(stream_seed(self.seed, "network", step, index)),
            stopwatch=self._stopwatch,
        )
        totals.add(result, targets, step)
        if self.compute.device.type == "cpu" or step % GPU_CHECK_STEPS == 0:
            self._stop_if_diverged(totals, epoch)
        self.optimizer.step()

    def _progress_at(self, step: int) -> float:
        """The share of training that is over: the paper's t/T by iteration, the authors' code's by epoch."""
        per_epoch = self.train_batches.steps_per_epoch
        return step / (self.epochs * per_epoch) if self.progress == "iteration" else step // per_epoch / self.epochs

    def _set_rates(self, epoch: int) -> float:
        factor = self.schedule.factor(epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _stop_if_diverged(self, totals: RunningTotals, epoch: int) -> None:
        step = totals.first_bad_step()
        if step is not None:
            rate = self.optimizer.param_groups[0]["lr"]
            raise DivergedError(
                f"the loss is no longer finite at step {step} (epoch {epoch}), with learning rate {rate:g}: "
                "training stopped and wrote no weights; lower recipe.lr, or try compute.precision=fp32"
            )

    def _timing(self) -> dict[str, float]:
        seconds = self._stopwatch.seconds()
        return {
            "train": seconds["train"],
            "data_wait": seconds["data_wait"],
            "criterion": seconds["criterion"],
            "evaluation": seconds["evaluation"],
            "images_per_s": self.train_batches.num_samples / seconds["train"],
            "peak_memory_mib": peak_memory_mib(self.compute.device),
        }


def _seed(seed: int) -> None:
    """Seed the generators that a network's random layers draw from."""
    torch.manual_seed(seed)
