"""Where the time of an epoch goes, on a CPU and on a GPU that runs behind the host."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
