"""Running sums of an epoch: loss, error, samples, and the seconds of each section, on a CPU or on a GPU."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from isda_repro.training.distributed import SINGLE_PROCESS, Processes


class Stopwatch:
    """Adds up the seconds spent under each name.

    On a GPU a section's time is taken by events in the stream and read only when ``seconds`` is called, so that timing
    never makes the host wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def host(self, name: str) -> Iterator[None]:
        """Time what the host does, whatever the device."""
        begin = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begin

    @contextmanager
    def device(self, name: str) -> Iterator[None]:
        """Time what the device does."""
        if self._device.type != "cuda":
            with self.host(name):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    def so_far(self) -> dict[str, float]:
        """The sums up to now; waits for the device."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return dict(self._seconds)

    def seconds(self) -> dict[str, float]:
        """The sums since the last call, which begin anew; waits for the device."""
        sums = self.so_far()
        self._seconds.clear()
        return sums

    def go_on_from(self, sums: dict[str, float]) -> None:
        """Continue from what ``so_far`` gave."""
        self._seconds = defaultdict(float, sums)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory held so far: tensors on a GPU; the whole process on a CPU, which cannot be told apart."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


class RunningMetrics:
    """Sums over an epoch, kept on the device: loss, errors, samples, and the first step whose loss was not finite.

    They are of this process's samples, until someone asks for those of all.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._samples = 0

    def reset(self) -> None:
        """Begin anew, in the same storage: a captured step goes on adding to it."""
        self._sums.zero_()
        self._first_bad_step.fill_(-1)
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """What has been added up, if all of it was finite."""
        return {"sums": self._sums.tolist(), "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._samples = state["samples"]

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, step: int | Tensor) -> None:
        """Add one batch on the device; ``count`` adds its samples on the host, which a captured step cannot do."""
        wrong = (logits.argmax(1) != targets).sum()
        self._sums += torch.stack([loss.double() * len(targets), wrong.double()])
        bad = ~loss.isfinite() & (self._first_bad_step < 0)
        self._first_bad_step.copy_(torch.where(bad, step, self._first_bad_step))

    def count(self, samples: int) -> None:
        """Count the samples of the batch that ``add`` has added."""
        self._samples += samples

    def bad_step(self, processes: Processes) -> int | None:
        """A step of any process whose loss was not finite, its first one. Waits for the device, and for all of them."""
        step = processes.all_reduce_max(1 + int(self._first_bad_step))
        return step - 1 if step else None

    def means(self, processes: Processes = SINGLE_PROCESS) -> tuple[float, float]:
        """Mean loss, and error in percent, of these processes. Waits for the device, and for all of them."""
        sums = torch.cat([self._sums, self._sums.new_tensor([self._samples])])
        loss, errors, samples = processes.all_reduce_sum(sums).tolist()
        return loss / max(1, samples), 100 * errors / max(1, samples)


def sum_states(totals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of ``RunningMetrics`` over all processes."""
    columns = zip(*(one["sums"] for one in totals), strict=True)
    return {"sums": [sum(column) for column in columns], "samples": sum(one["samples"] for one in totals)}
