"""Running sums over an epoch: loss, errors and samples, and the seconds of each section."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isda_repro.losses import Criterion
from isda_repro.losses.covariances.summary import Summary
from isda_repro.training.distributed import SINGLE_PROCESS, Processes


class Stopwatch:
    """Accumulates the seconds spent under each name.

    On a GPU a section is timed by events in the stream, which are read only when ``seconds`` or ``so_far`` is called,
    so that timing never makes the host wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.on = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Time a block on the host's clock, whatever the device."""
        begin = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begin

    @contextmanager
    def device(self, name: str) -> Iterator[None]:
        """Time the device's work in a block; on a CPU this equals ``host``."""
        if self.on.type != "cuda":
            with self.host(name):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    def so_far(self) -> dict[str, float]:
        """Return the seconds so far without resetting them. Waits for the device."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return dict(self._seconds)

    def seconds(self) -> dict[str, float]:
        """Return the seconds since the last call and reset them. Waits for the device."""
        sums = self.so_far()
        self._seconds.clear()
        return sums

    def go_on_from(self, sums: dict[str, float]) -> None:
        """Continue from sums that ``so_far`` returned."""
        self._seconds = defaultdict(float, sums)


def epoch_timing(stopwatch: Stopwatch, images: int) -> dict[str, float]:
    """Return the ``timing`` of an epoch's record, and reset the stopwatch; ``images`` were trained on."""
    seconds = stopwatch.seconds()
    return {
        **{name: seconds[name] for name in ("train", "data_wait", "evaluation")},
        **({"criterion": seconds["criterion"]} if "criterion" in seconds else {}),
        "saving": seconds.get("saving", 0.0),  # this epoch's own final save counts for the next
        "images_per_s": images / seconds["train"],
        "peak_memory_mib": peak_memory_mib(stopwatch.on),
    }


class Timed(Protocol):
    """Interface of an epoch's record with timing, of either kind of run."""

    @property
    def timing(self) -> dict[str, float]:
        """Seconds by section, images/s and peak memory, as in ``EpochRecord``."""


def total_timing(records: Sequence[Timed], images: int) -> dict[str, float]:
    """Return the timing of a whole run: seconds by section, images/s, and peak memory in MiB.

    Args:
        records: the records of all epochs.
        images: training images in an epoch.
    """
    measured = set.intersection(*(set(record.timing) for record in records))  # a GPU does not time the criterion
    sections = [name for name in records[-1].timing if name in measured - {"images_per_s", "peak_memory_mib"}]
    total = {name: sum(record.timing[name] for record in records) for name in sections}
    return {
        **total,
        "images_per_s": images * len(records) / total["train"],
        "peak_memory_mib": max(record.timing["peak_memory_mib"] for record in records),
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory in MiB: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


class RunningMetrics:
    """Sums over an epoch: loss, errors, samples, and the first step with a non-finite loss.

    The sums are kept on the device and cover this process's samples, except in ``means`` and ``bad_step``, which take
    ``processes``.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._samples = 0

    def reset(self) -> None:
        """Set all sums to zero in place: a captured step keeps adding to the same storage."""
        self._sums.zero_()
        self._first_bad_step.fill_(-1)
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain numbers. Assumes that ``bad_step`` has found every loss finite."""
        return {"sums": self._sums.tolist(), "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that ``state_dict`` returned."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._samples = state["samples"]

    @torch.no_grad()
    def add(
        self, loss: Tensor, logits: Tensor, targets: Tensor, step: int | Tensor, counts_as: int | Tensor | None = None
    ) -> None:
        """Add the loss and the errors of one batch, on the device.

        The samples are counted on the host by ``count``, which the replay of a captured step would not do.

        Args:
            loss: mean loss of the batch [].
            logits: [N, C].
            targets: int64 [N], or probabilities [N, C], of which the largest names the label that errors are counted
                against.
            step: number of the step, an int or a tensor [] on the device.
            counts_as: number of samples that the loss stands for, an int or []; None: N.
        """
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        wrong = (logits.argmax(1) != labels).sum()
        self._sums += torch.stack([loss.double() * (len(targets) if counts_as is None else counts_as), wrong.double()])
        bad = ~loss.isfinite() & (self._first_bad_step < 0)
        self._first_bad_step.copy_(torch.where(bad, step, self._first_bad_step))

    def count(self, samples: int) -> None:
        """Count the samples of the batch that ``add`` was called with."""
        self._samples += samples

    def bad_step(self, processes: Processes) -> int | None:
        """Return the first step with a non-finite loss on some process, or None.

        If several processes have such a step, the latest of these is returned. Waits for the device and for all
        processes.
        """
        step = processes.all_reduce_max(1 + int(self._first_bad_step))
        return step - 1 if step else None

    def means(self, processes: Processes = SINGLE_PROCESS) -> tuple[float, float]:
        """Return the mean loss and the error in percent over these processes.

        Waits for the device and, with several processes, for all of them.
        """
        sums = torch.cat([self._sums, self._sums.new_tensor([self._samples])])
        loss, errors, samples = processes.all_reduce_sum(sums).tolist()
        return loss / max(1, samples), 100 * errors / max(1, samples)


DIGITS = 6  # significant digits of a summary in metrics.jsonl
MOST_CLASSES = 4096  # of the lists in a summary: a line of metrics.jsonl has a largest length


def covariance_summary(criterion: Criterion, head: nn.Linear, progress: float) -> Summary | None:
    """Return ``criterion.summary`` as an epoch's record has it; None for losses without covariances.

    All processes call it. Lists are left out where there are more than ``MOST_CLASSES`` classes.
    """
    summary = criterion.summary(head=head, progress=progress)
    if summary is None:
        return None
    rounded: Summary = {}
    for name, value in summary.items():
        if not isinstance(value, list):
            rounded[name] = _rounded(value)
        elif len(value) <= MOST_CLASSES:
            rounded[name] = [_rounded(one) for one in value]
    return rounded


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def sum_states(totals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of the states of all processes' ``RunningMetrics``."""
    columns = zip(*(one["sums"] for one in totals), strict=True)
    return {"sums": [sum(column) for column in columns], "samples": sum(one["samples"] for one in totals)}
