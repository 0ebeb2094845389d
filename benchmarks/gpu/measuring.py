"""Helpers of the sections of ``benchmarks/gpu/gpu.py``: findings in a file, timing on a device, random images."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from isda_repro.data import Source, Split
from isda_repro.files import atomic_write


@dataclass
class Findings:
    """Findings of a section; every change is written to ``path`` atomically."""

    path: Path
    rehearse: bool
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Device of the benchmark: the GPU, or the CPU in a rehearsal."""
        return torch.device("cpu" if self.rehearse else "cuda")

    def add(self, kind: str, name: str, value: Any) -> None:
        """Record the figure ``name`` among those of ``kind``."""
        self.body.setdefault(kind, {})[name] = value
        self._write()

    def wrong(self, what: str) -> None:
        """Record an error without stopping the section."""
        self.body.setdefault("wrong", []).append(what)
        self._write()

    def _write(self) -> None:
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.body).encode())


def wait(device: torch.device) -> None:
    """Wait until the device has finished all work in its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device, at_least: float = 0.3) -> float:
    """Return the median seconds of a call, replayed from a CUDA graph if the device is a GPU."""
    if device.type == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        call = graph.replay
    call()
    times: list[float] = []
    begin, calls = time.perf_counter(), 1
    while len(times) < 3 or time.perf_counter() - begin < at_least:
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        times.append((time.perf_counter() - start) / calls)
        calls = max(1, int(0.02 / max(times[-1], 1e-7)))  # 20 ms, long enough for the clock's resolution
    return statistics.median(times)


def random_source(classes: int, pixels: int, images: int) -> Source:
    """Return a data set of random images in memory: ``images`` for training and 500 for evaluation."""
    draws = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        shape = (count, 3, pixels, pixels)
        return Split(
            torch.randint(256, shape, dtype=torch.uint8, generator=draws),
            torch.randint(classes, (count,), generator=draws),
        )

    return Source("random", split(images), split(500), classes, tuple(map(str, range(classes))))
