"""The loop: epochs of steps, an evaluation after each, a record of both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isda_repro.data import Loader
from isda_repro.errors import UserError, is_out_of_memory
from isda_repro.losses import Criterion
from isda_repro.models import Network
from isda_repro.randomness import stream_seed
from isda_repro.tables.records import EpochRecord, as_json
from isda_repro.tracking import Progress, Tracker
from isda_repro.training.compute import Compute
from isda_repro.training.evaluate import evaluate
from isda_repro.training.saving import Saver
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

    def state_dict(self) -> dict[str, Any]:
        """What has been added up, if all of it was finite."""
        return {"sums": self._sums.tolist(), "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._samples = state["samples"]

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
    """Everything one run trains with, and where it is. ``train`` is the loop.

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
    train_batches: Loader
    test_batches: Loader
    compute: Compute
    seed: int

    def __post_init__(self) -> None:
        self._draws = torch.Generator(self.compute.device)
        self._stopwatch = Stopwatch(self.compute.device)
        self._totals = RunningTotals(self.compute.device)
        self._records: list[EpochRecord] = []
        self.step = 0
        """Optimizer steps taken."""

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.train_batches.steps_per_epoch

    @property
    def images_done(self) -> int:
        """Trained on so far, over all epochs."""
        epochs, steps = divmod(self.step, self.train_batches.steps_per_epoch)
        return epochs * self.train_batches.num_samples + steps * self.train_batches.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had not stopped, but the records of its epochs.

        Every draw has its seed from (seed, stream, step), so that no generator's state is among it.

        Raises:
            DivergedError: a weight is not a finite number.
        """
        self._stop_if_diverged()
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise self._diverged("a weight is no longer finite")
        return {
            "step": self.step,
            "epoch": len(self._records),
            "network": self.network.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "totals": self._totals.state_dict(),
            "timing": self._stopwatch.so_far(),
        }

    def load_state_dict(self, state: dict[str, Any], records: Sequence[EpochRecord]) -> None:
        """Go on from what ``state_dict`` gave; ``records`` are those of the epochs that were over."""
        self.network.load_state_dict(state["network"])
        self.criterion.load_state_dict(state["criterion"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._totals.load_state_dict(state["totals"])
        self._stopwatch.go_on_from(state["timing"])
        self.step = state["step"]
        self._records = list(records)

    def train(self, trackers: Sequence[Tracker], bar: Progress, saver: Saver) -> list[EpochRecord]:
        """Train from where it is to the last epoch.

        Args:
            trackers: take a record of each epoch.
            bar: shows every step.
            saver: is told of every step, and may save the state or stop the run there.

        Returns:
            The records of all epochs, those before a resumption included.

        Raises:
            DivergedError: a loss is NaN or infinite; nothing of that epoch has been written.
            StoppedError: a signal asked to stop.
        """
        if self.compute.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.compute.device)
        while len(self._records) < self.epochs:
            record = self._epoch(len(self._records) + 1, bar, saver)
            for tracker in trackers:
                tracker.log(as_json(record))
            self._records.append(record)
            self._totals = RunningTotals(self.compute.device)
            with self._stopwatch.host("saving"):
                saver.epoch_ended()
        return self._records

    def _epoch(self, epoch: int, bar: Progress, saver: Saver) -> EpochRecord:
        """What is left of an epoch: its steps, if any, and its evaluation."""
        rate = self._set_rates(epoch)
        end = epoch * self.train_batches.steps_per_epoch
        self.network.train()
        self.criterion.train()
        batches = iter(self.train_batches.epoch(epoch, self.step - end + self.train_batches.steps_per_epoch))
        while self.step < end:
            with self._stopwatch.host("train"):
                with self._stopwatch.host("data_wait"):
                    images, targets = next(batches)
                self._step(images, targets)
                bar.advance(len(images), epoch, self._totals.means)
            with self._stopwatch.host("saving"):
                saver.step_taken(self.step)
        with self._stopwatch.host("train"):  # on a GPU the last steps end here
            self._stop_if_diverged()
            train_loss, train_error = self._totals.means()
        with self._stopwatch.host("evaluation"):
            test = evaluate(self.compiled, _heeding(saver, self.test_batches.epoch(0)), self.compute)
        if not math.isfinite(test.loss):
            raise self._diverged(f"the test loss is {test.loss}")
        return EpochRecord(
            epoch=epoch,
            step=self.step,
            lr=rate,
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test.loss,
            test_error=test.error,
            timing=self._timing(),
        )

    def _step(self, images: Tensor, targets: Tensor) -> None:
        step = self.step
        self.optimizer.zero_grad()
        self._draws.manual_seed(stream_seed(self.seed, "criterion", step))
        self.criterion.begin_step(step, self.total_steps, self._draws)
        with _explained_memory(len(images), self.compute):
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
            self._totals.add(result, targets, step)
            if self.compute.device.type == "cpu" or step % GPU_CHECK_STEPS == 0:
                self._stop_if_diverged()
            self.optimizer.step()
        self.step += 1

    def _progress_at(self, step: int) -> float:
        """The share of training that is over: the paper's t/T by iteration, the authors' code's by epoch."""
        per_epoch = self.train_batches.steps_per_epoch
        return step / (self.epochs * per_epoch) if self.progress == "iteration" else step // per_epoch / self.epochs

    def _set_rates(self, epoch: int) -> float:
        factor = self.schedule.factor(epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _stop_if_diverged(self) -> None:
        step = self._totals.first_bad_step()
        if step is not None:
            raise self._diverged("the loss is no longer finite", step)

    def _diverged(self, what: str, step: int | None = None) -> DivergedError:
        step = self.step - 1 if step is None else step
        rate = self.optimizer.param_groups[0]["lr"]
        return DivergedError(
            f"{what} at step {step} (epoch {step // self.train_batches.steps_per_epoch + 1}), with learning rate "
            f"{rate:g}: training stopped and wrote no such weights; lower recipe.lr, or try compute.precision=fp32"
        )

    def _timing(self) -> dict[str, float]:
        seconds = self._stopwatch.seconds()
        return {
            "train": seconds["train"],
            "data_wait": seconds["data_wait"],
            "criterion": seconds["criterion"],
            "evaluation": seconds["evaluation"],
            "saving": seconds.get("saving", 0.0),  # the end of this epoch's own save counts for the next
            "images_per_s": self.train_batches.num_samples / seconds["train"],
            "peak_memory_mib": peak_memory_mib(self.compute.device),
        }


@contextmanager
def _explained_memory(images: int, compute: Compute) -> Iterator[None]:
    """Out of memory is something that the user can mend."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        at_once = compute.micro_batch or images
        raise UserError(
            f"out of memory with {at_once} images at once on {compute.device.type}: set compute.micro_batch="
            f"{max(1, at_once // 2)} or less; the loss is still that of the whole batch"
        ) from error


def _heeding(saver: Saver, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an evaluation, which a signal may end between two."""
    for batch in batches:
        saver.stop_if_asked()
        yield batch


def _seed(seed: int) -> None:
    """Seed the generators that a network's random layers draw from."""
    torch.manual_seed(seed)
