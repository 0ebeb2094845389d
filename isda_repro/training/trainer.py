"""The loop: epochs of steps, an evaluation after each, a record of both."""

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
from isda_repro.runs.records import EpochRecord, as_json
from isda_repro.tracking import Progress, Tracker
from isda_repro.training.checkpoint import Saver
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes
from isda_repro.training.evaluate import evaluate
from isda_repro.training.running_metrics import RunningMetrics, Stopwatch, peak_memory_mib, sum_states
from isda_repro.training.schedule import Schedule
from isda_repro.training.static_step import StaticStep, reason_for_eager
from isda_repro.training.step import WHOLE_BATCH, Weighted, compute_gradients, weighted

GPU_CHECK_STEPS = 50  # to look at the loss makes the host wait for a GPU; on a CPU each step is checked
OF_THIS_DEVICE = ("lr", "fused", "foreach")  # options of an optimizer's groups that a checkpoint does not decide


class DivergedError(UserError):
    """The loss is no longer a finite number."""


@dataclass
class Trainer:
    """The parts that one run trains with, and its progress. ``train`` is the loop.

    Args:
        network: the network itself, whose weights are trained.
        eval_model: the network, compiled or not, as it is called in evaluation.
        train_model: ``eval_model``, or with several processes its DDP wrapper, as it is called in training.
        criterion: see ``isda_repro.losses.Criterion``.
        optimizer: holds the network's and the criterion's parameters; each group has its ``initial_lr``.
        schedule: factor on each group's initial rate, by epoch.
        epochs: of the whole run.
        progress: "iteration" (the paper) or "epoch" (the authors' code): how often the criterion's progress moves.
        train_batches: the training images, in an order of their own each epoch.
        test_batches: the images that are evaluated after each epoch.
        compute: device and precision.
        seed: of the run; each draw has its own stream.
        processes: that train together, each with its share of each batch.
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

    def __post_init__(self) -> None:
        self._draws = torch.Generator(self.compute.device)
        self._stopwatch = Stopwatch(self.compute.device)
        self._totals = RunningMetrics(self.compute.device)
        self._records: list[EpochRecord] = []
        self.step = 0
        """Optimizer steps taken."""
        self.eager_because = reason_for_eager(self.train_batches, self.criterion, self.compute, self.processes)
        """Why steps are not captured as a CUDA graph; None: they are."""
        self._static: StaticStep | None = None
        if self.eager_because is None:
            loader = cast(InMemoryLoader, self.train_batches)
            self._static = StaticStep(loader, self._learn_unseeded, [self._draws], self.compute.device)

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

        Every draw has its seed from (seed, stream, step), so that no generator's state is among it. All processes call
        it; that of the first is the one to keep, and has under "ranks" what differs between them.

        Raises:
            DivergedError: a weight is not a finite number.
        """
        self._stop_if_diverged()
        if not nn.utils.get_total_norm(self.network.parameters()).isfinite():  # one look for all weights
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
        """What the criterion has gathered from this process's samples alone, if it does."""
        if not self.processes.is_distributed or self.criterion.is_collective:
            return None
        return {name: tensor.cpu() for name, tensor in self.criterion.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any], records: Sequence[EpochRecord]) -> None:
        """Go on from what ``state_dict`` gave; ``records`` are those of the epochs that were over.

        There may have been another number of processes. Then the sums of all go to the first, and each takes what the
        criterion had gathered on one of those before.
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
        """Mean loss, and error in percent, of this process's samples of the epoch so far. Waits for the device."""
        return self._totals.means()

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Take momentum from the checkpoint; each group keeps its rate's storage and its form on this device."""
        own = [{name: group[name] for name in OF_THIS_DEVICE} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            group.update(kept)
        for weight, of_weight in self.optimizer.state.items():  # in the weight's layout, which fused kernels insist on
            for name, value in of_weight.items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    of_weight[name] = torch.empty_like(weight, requires_grad=False).copy_(value)

    def train(self, trackers: Sequence[Tracker], bar: Progress | None, saver: Saver) -> list[EpochRecord]:
        """Train from where it is to the last epoch.

        Args:
            trackers: take a record of each epoch.
            bar: shows every step, with loss and error of this process's samples; None: nobody looks.
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
            self._totals.reset()
            with self._stopwatch.host("saving"):
                saver.epoch_ended()
        return self._records

    def _epoch(self, epoch: int, bar: Progress | None, saver: Saver) -> EpochRecord:
        """What is left of an epoch: its steps, if any, and its evaluation."""
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
        with self._stopwatch.host("train"):  # on a GPU the last steps end here
            self._stop_if_diverged()
            train_loss, train_error = self._totals.means(self.processes)
        with self._stopwatch.host("evaluation"):
            self.processes.broadcast_tensors(self.network.buffers())  # the others' are of their own last batch
            test = evaluate(self.eval_model, _heeding(saver, self.test_batches.epoch(0)), self.compute, self.processes)
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
            test_top5_error=test.top5_error,
            timing=self._timing(),
        )

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        """Yield what ``take_step`` takes: images and targets, or the numbers that a static step makes them from."""
        if self._static is None:
            return iter(self.train_batches.epoch(epoch, first_step))
        return cast(InMemoryLoader, self.train_batches).numbers_of_batches(epoch, first_step)

    def take_step(self, batch: tuple[Tensor, Tensor] | Tensor) -> None:
        """Take one optimizer step, in training mode, on what ``batches`` has given."""
        step, progress = self.step, self._progress_at(self.step)
        self._draws.manual_seed(stream_seed(self.seed, "criterion", step))
        part = self.train_batches.part_of(self._step_in_epoch(step)) if self.processes.is_distributed else None
        self.criterion.begin_step(step, self.total_steps, self._draws, part)
        samples = batch.shape[1] if isinstance(batch, Tensor) else len(batch[1])
        with _explained_memory(samples, self.compute):
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
        """Move the weights by the gradients of one batch: all that the device does in a step."""
        self.optimizer.zero_grad()
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
            share=WHOLE_BATCH if part is None else self._share(len(images), part[1]),
            eval_model=self.eval_model,
        )
        self._totals.add(result.loss, result.logits, targets, step)
        self.optimizer.step()

    def _learn_unseeded(self, images: Tensor, targets: Tensor, progress: Tensor, step: Tensor) -> None:
        """As ``_learn``, of a step whose generators have been seeded before."""
        self._learn(images, targets, progress, step, lambda index: None, None)

    def _share(self, samples: int, total: int) -> Weighted:
        missing = self.train_batches.may_fall_short
        device = self.compute.device
        return weighted(samples, total, self.criterion, self.processes, device, may_fall_short=missing)

    def _seed_network(self, step: int, micro_batch: int) -> None:
        """Dropout and the like draw anew in each process; those of a single one do not change for that."""
        others = (self.processes.rank,) if self.processes.rank else ()
        torch.manual_seed(stream_seed(self.seed, "network", step, micro_batch, *others))

    def _step_in_epoch(self, step: int) -> int:
        return step % self.train_batches.steps_per_epoch

    def _progress_at(self, step: int) -> float:
        """The share of training that is over: the paper's t/T by iteration, the authors' code's by epoch."""
        per_epoch = self.train_batches.steps_per_epoch
        return step / (self.epochs * per_epoch) if self.progress == "iteration" else step // per_epoch / self.epochs

    def _set_rates(self, epoch: int) -> float:
        factor = self.schedule.factor(epoch, self.epochs)
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):  # where a captured step reads it
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
        return DivergedError(
            f"{what} at step {step} (epoch {step // self.train_batches.steps_per_epoch + 1}), with learning rate "
            f"{rate:g}: training stopped and wrote no such weights; lower recipe.lr, or try compute.precision=fp32"
        )

    def _timing(self) -> dict[str, float]:
        seconds = self._stopwatch.seconds()
        return {
            "train": seconds["train"],
            "data_wait": seconds["data_wait"],
            **({"criterion": seconds["criterion"]} if "criterion" in seconds else {}),
            "evaluation": seconds["evaluation"],
            "saving": seconds.get("saving", 0.0),  # the end of this epoch's own save counts for the next
            "images_per_s": self.train_batches.num_samples / seconds["train"],
            "peak_memory_mib": peak_memory_mib(self.compute.device),
        }


def _portable(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with learning rates that are numbers, whatever the device."""
    groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


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
