"""Training loop: epochs of optimizer steps, each followed by an evaluation and a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from isda_repro.data import InMemoryLoader, Loader
from isda_repro.errors import UserError, is_out_of_memory
from isda_repro.losses import Criterion
from isda_repro.models import Network
from isda_repro.randomness import stream_seed
from isda_repro.runs.records import CLASS_ERRORS, EpochRecord, as_json
from isda_repro.tracking import Progress, Tracker
from isda_repro.training.checkpoint import Saver
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes
from isda_repro.training.evaluate import evaluate
from isda_repro.training.running_metrics import (
    RunningMetrics,
    Stopwatch,
    covariance_summary,
    epoch_timing,
    sum_states,
)
from isda_repro.training.schedule import Schedule
from isda_repro.training.static_step import StaticStep, reason_for_eager
from isda_repro.training.step import WHOLE_BATCH, Weighted, compute_gradients, explained_single_image, weighted

GPU_CHECK_STEPS = 50  # reading the loss makes the host wait for the GPU; a CPU checks every step
OF_THIS_DEVICE = ("lr", "fused", "foreach")  # options of the optimizer's groups that are not restored from a checkpoint


class DivergedError(UserError):
    """Raised when the loss or a weight is no longer a finite number.

    Args:
        reason: what is no longer finite.
        step: the step, counted from 0, of which it was found.
        epoch: the epoch, counted from 1, of that step.
        rate: the learning rate.
    """

    def __init__(self, reason: str, step: int, epoch: int, rate: float) -> None:
        super().__init__(
            f"{reason} at step {step} (epoch {epoch}), with learning rate {rate:g}: training stopped and wrote no such "
            "weights; lower recipe.lr, or try compute.precision=fp32"
        )
        self.reason, self.step, self.epoch = reason, step, epoch


@dataclass
class Trainer:
    """Everything that one run trains with, and its progress; ``train`` is the loop.

    Args:
        network: the network itself, whose weights are trained.
        eval_model: the module to call in evaluation: the network, compiled or not.
        train_model: the module to call in training: ``eval_model``, or the network's DDP wrapper with several
            processes.
        criterion: see ``isda_repro.losses.Criterion``.
        optimizer: holds the network's and the criterion's parameters; each group has its ``initial_lr``.
        schedule: factor on each group's initial rate, by epoch.
        epochs: number of epochs of the whole run.
        progress: "iteration" (the paper) or "epoch" (the authors' code): how often the criterion's progress advances.
        train_batches: the training images, in another order in each epoch.
        test_batches: the images that are evaluated after each epoch.
        compute: device and precision.
        seed: seed of the run, from which every random stream derives its own.
        processes: the processes that train together, each on its share of every batch.
        train_counts: number of training images of each class, for the errors of groups of classes; None: without.
    """

    network: Network
    eval_model: nn.Module
    train_model: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    epochs: int
    progress: str
    train_batches: Loader
    test_batches: Loader
    compute: Compute
    seed: int
    processes: Processes = SINGLE_PROCESS
    train_counts: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._draws = torch.Generator(self.compute.device)
        self._stopwatch = Stopwatch(self.compute.device)
        self._totals = RunningMetrics(self.compute.device)
        self._records: list[EpochRecord] = []
        self.step = 0
        """Number of optimizer steps taken."""
        self.eager_because = reason_for_eager(self.train_batches, self.criterion, self.compute, self.processes)
        """Reason why steps are not captured as a CUDA graph; None if they are."""
        self._static: StaticStep | None = None
        if self.eager_because is None:
            loader = cast(InMemoryLoader, self.train_batches)
            self._static = StaticStep(loader, self._learn_unseeded, [self._draws], self.compute.device)

    def close(self) -> None:
        """End the processes of the loaders."""
        self.train_batches.close()
        self.test_batches.close()

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps in the whole run."""
        return self.epochs * self.train_batches.steps_per_epoch

    @property
    def images_done(self) -> int:
        """Number of images trained on so far, over all epochs."""
        epochs, steps = divmod(self.step, self.train_batches.steps_per_epoch)
        return epochs * self.train_batches.num_samples + steps * self.train_batches.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to continue as if it had not stopped, except its epochs' records.

        Every random draw is seeded from (seed, stream, step), so no generator state is saved. All processes call this;
        the main process's state is the one to keep. Under "ranks" it has what differs between processes.

        Raises:
            DivergedError: a loss or a weight is not a finite number.
        """
        self._stop_if_diverged()
        if not nn.utils.get_total_norm(self.network.parameters()).isfinite():  # reads one number for all weights
            raise self._diverged("a weight is no longer finite")
        own = {"totals": self._totals.state_dict(), "criterion": self._own_criterion_state()}
        return {
            "step": self.step,
            "epoch": len(self._records),
            "network": self.network.state_dict(),
            "criterion": self.criterion.whole_state_dict(),
            "optimizer": _portable(self.optimizer.state_dict()),
            "ranks": self.processes.gather_to_main(own),
            "timing": self._stopwatch.so_far(),
        }

    def _own_criterion_state(self) -> dict[str, Tensor] | None:
        """Return the criterion's state if it comes from this process's samples alone, otherwise None."""
        if not self.processes.is_distributed or self.criterion.is_collective:
            return None
        return {name: tensor.cpu() for name, tensor in self.criterion.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any], records: Sequence[EpochRecord]) -> None:
        """Continue from a state that ``state_dict`` returned.

        The number of processes may have changed. Then the main process takes the summed metrics of all former
        processes, and each process takes the criterion's state of one of them.

        Args:
            state: the state of the main process.
            records: the records of the epochs that were over.
        """
        ranks, processes = state["ranks"], self.processes
        own = ranks[processes.rank % len(ranks)]
        self.network.load_state_dict(state["network"])
        self.criterion.load_state_dict(own["criterion"] or state["criterion"])
        self._load_optimizer(state["optimizer"])
        if len(ranks) == processes.world_size:
            self._totals.load_state_dict(own["totals"])
        elif processes.is_main:
            self._totals.load_state_dict(sum_states([rank["totals"] for rank in ranks]))
        self._stopwatch.go_on_from(state["timing"])
        self.step = state["step"]
        self._records = list(records)

    def running_means(self) -> tuple[float, float]:
        """Return mean loss and error in percent of this process's samples in the epoch so far. Waits for the device."""
        return self._totals.means()

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Restore the momentum from a checkpoint.

        Each group keeps its own storage of the learning rate and its own kernel choice on this device.
        """
        own = [{name: group[name] for name in OF_THIS_DEVICE} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            group.update(kept)
        for weight, of_weight in self.optimizer.state.items():  # fused kernels need the strides of the weight
            for name, value in of_weight.items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    of_weight[name] = torch.empty_like(weight, requires_grad=False).copy_(value)

    def train(self, trackers: Sequence[Tracker], bar: Progress | None, saver: Saver) -> list[EpochRecord]:
        """Train from the current step to the end of the last epoch.

        Args:
            trackers: each logs a record of every epoch.
            bar: progress bar, with loss and error of this process's samples; None: no bar.
            saver: called after every step; it may save the state, or stop the run there.

        Returns:
            The records of all epochs, including those before the run was resumed.

        Raises:
            DivergedError: a loss is NaN or infinite; nothing of that epoch has been written.
            StoppedError: a signal asked the run to stop.
        """
        if self.compute.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.compute.device)
        while len(self._records) < self.epochs:
            record = self._epoch(len(self._records) + 1, bar, saver)
            for tracker in trackers:
                tracker.log(as_json(record))
            self._records.append(record)
            self._totals.reset()
            with self._stopwatch.host("saving"):
                saver.epoch_ended()
        return self._records

    def _epoch(self, epoch: int, bar: Progress | None, saver: Saver) -> EpochRecord:
        """Do the remaining steps of an epoch and its evaluation, and return its record."""
        rate = self._set_rates(epoch)
        end = epoch * self.train_batches.steps_per_epoch
        self.network.train()
        self.criterion.train()
        batches = self.batches(epoch, self.step - end + self.train_batches.steps_per_epoch)
        while self.step < end:
            with self._stopwatch.host("train"):
                with self._stopwatch.host("data_wait"):
                    batch = next(batches)
                self.take_step(batch)
                if bar is not None:
                    _, samples = self.train_batches.part_of(self._step_in_epoch(self.step - 1))
                    bar.advance(samples, epoch, self.running_means)
            with self._stopwatch.host("saving"):
                saver.step_taken(self.step)
        with self._stopwatch.host("train"):  # waits for the GPU, so that its last steps are timed
            self._stop_if_diverged()
            train_loss, train_error = self._totals.means(self.processes)
        with self._stopwatch.host("evaluation"):
            self.processes.broadcast_tensors(self.network.buffers())  # each process has its own
            batches_of_test = _stopping_if_asked(saver, self.test_batches.epoch(0))
            test = evaluate(self.eval_model, batches_of_test, self.compute, self.processes, self.train_counts)
        if not math.isfinite(test.loss):
            raise self._diverged(f"the test loss is {test.loss}")
        with self._stopwatch.host("evaluation"):
            covariances = covariance_summary(self.criterion, self.network.head, self._progress_at(self.step - 1))
        return EpochRecord(
            epoch=epoch,
            step=self.step,
            lr=rate,
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test.loss,
            test_error=test.error,
            test_top5_error=test.top5_error,
            **{} if test.of_classes is None else dict(zip(CLASS_ERRORS, test.of_classes, strict=True)),
            covariances=covariances,
            timing=epoch_timing(self._stopwatch, self.train_batches.num_samples),
        )

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Yield the input of ``take_step``: images and targets, or the sample numbers that a static step reads."""
        if self._static is None:
            return iter(self.train_batches.epoch(epoch, first_step))
        return cast(InMemoryLoader, self.train_batches).numbers_of_batches(epoch, first_step)

    def take_step(self, batch: tuple[Tensor, Tensor] | Tensor) -> None:
        """Take one optimizer step, in training mode, on a batch that ``batches`` yielded."""
        step, progress = self.step, self._progress_at(self.step)
        self._draws.manual_seed(stream_seed(self.seed, "criterion", step))
        part = self.train_batches.part_of(self._step_in_epoch(step)) if self.processes.is_distributed else None
        self.criterion.begin_step(self._draws, part)
        samples = batch.shape[1] if isinstance(batch, Tensor) else len(batch[1])
        with explained_single_image(f"step {step}"), _explained_memory(samples, self.compute):
            if isinstance(batch, Tensor) and self._static is not None and samples == self.train_batches.batch_size:
                self._seed_network(step, 0)
                self._static.take(batch, progress, step)
            else:
                if isinstance(batch, Tensor):  # an epoch's last batch is shorter
                    batch = cast(InMemoryLoader, self.train_batches).batch_from(batch)
                self._learn(*batch, progress, step, lambda index: self._seed_network(step, index), part)
            self._totals.count(samples)
            if self.compute.device.type == "cpu" or step % GPU_CHECK_STEPS == 0:
                self._stop_if_diverged()
        self.step += 1

    def _learn(
        self,
        images: Tensor,
        targets: Tensor,
        progress: float | Tensor,
        step: int | Tensor,
        seed_micro_batch: Callable[[int], None],
        part: tuple[int, int] | None,
    ) -> None:
        """Compute the gradients of one batch and update the weights: everything that a step does on the device."""
        self.optimizer.zero_grad()
        share = WHOLE_BATCH if part is None else self._share(targets, part[1])
        result = compute_gradients(
            self.train_model,
            self.criterion,
            images,
            targets,
            head=self.network.head,
            progress=progress,
            compute=self.compute,
            seed_micro_batch=seed_micro_batch,
            stopwatch=self._stopwatch if self.compute.device.type == "cpu" and self._static is None else None,
            share=share,
            eval_model=self.eval_model,
        )
        self._totals.add(result.loss, result.logits, targets, step, share.counts_as)
        self.optimizer.step()

    def _learn_unseeded(self, images: Tensor, targets: Tensor, progress: Tensor, step: Tensor) -> None:
        """Run ``_learn`` in a static step, which seeds its generators beforehand."""
        self._learn(images, targets, progress, step, lambda index: None, None)

    def _share(self, targets: Tensor, total: int) -> Weighted:
        missing = self.train_batches.may_fall_short
        device = self.compute.device
        return weighted(targets, total, self.criterion, self.processes, device, may_fall_short=missing)

    def _seed_network(self, step: int, micro_batch: int) -> None:
        """Seed the network's random draws (dropout) of a step and micro-batch.

        Every process draws differently. Rank 0 has the seed of a single process.
        """
        others = (self.processes.rank,) if self.processes.rank else ()
        torch.manual_seed(stream_seed(self.seed, "network", step, micro_batch, *others))

    def _step_in_epoch(self, step: int) -> int:
        return step % self.train_batches.steps_per_epoch

    def _progress_at(self, step: int) -> float:
        """Return the share of training that is over: t/T by iteration (the paper) or by epoch (the authors' code)."""
        per_epoch = self.train_batches.steps_per_epoch
        return step / (self.epochs * per_epoch) if self.progress == "iteration" else step // per_epoch / self.epochs

    def _set_rates(self, epoch: int) -> float:
        factor = self.schedule.factor(epoch, self.epochs)
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):  # a captured step reads this tensor
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return float(self.optimizer.param_groups[0]["initial_lr"] * factor)

    def _stop_if_diverged(self) -> None:
        step = self._totals.bad_step(self.processes)
        if step is not None:
            raise self._diverged("the loss is no longer finite", step)

    def _diverged(self, what: str, step: int | None = None) -> DivergedError:
        step = self.step - 1 if step is None else step
        rate = float(self.optimizer.param_groups[0]["lr"])
        return DivergedError(what, step, step // self.train_batches.steps_per_epoch + 1, rate)


def _portable(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer state whose learning rates are numbers instead of tensors on a device."""
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


@contextmanager
def _explained_memory(images: int, compute: Compute) -> Iterator[None]:
    """Turn an out-of-memory error into a ``UserError`` that says which micro-batch to try."""
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


def _stopping_if_asked(saver: Saver, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an evaluation, and stop between two of them if a signal has come."""
    for batch in batches:
        saver.stop_if_asked()
        yield batch
