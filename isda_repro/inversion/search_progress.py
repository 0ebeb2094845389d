"""Progress display of an inversion."""

from __future__ import annotations

import sys
import time
from typing import Self, TextIO

from torch import Tensor
from tqdm import tqdm

from isda_repro.console import ignore_broken_pipe, say
from isda_repro.tracking.progress_bar import LINE_SECONDS, duration

BAR = "{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"


class InversionProgress:
    """Context manager with a progress bar over all iterations of all images, and the mean objective.

    If the stream is not a terminal, it prints lines at intervals instead.

    Args:
        iterations: number of iterations of all images together.
        stream: where to write; None: standard error.
    """

    def __init__(self, iterations: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._bar = tqdm(
            total=iterations, bar_format=BAR, dynamic_ncols=True, file=self._stream, disable=not self._terminal
        )
        self._all, self._done = iterations, 0
        self._begun_at = self._said_at = time.perf_counter()

    def __call__(self, iterations: int, objective: Tensor) -> None:
        """Advance by ``iterations`` of as many images as ``objective`` [N] has values."""
        made, now = iterations * len(objective), time.perf_counter()
        self._done += made
        words = f"objective {objective.mean():.4g}"
        if self._terminal:
            with ignore_broken_pipe(self._stream):
                self._bar.set_postfix_str(words, refresh=False)
                self._bar.update(made)
        elif now - self._said_at >= LINE_SECONDS:
            self._said_at = now
            left = (now - self._begun_at) / self._done * (self._all - self._done)
            say(f"{self._done / self._all:4.0%}: {words}, {duration(left)} left", self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        with ignore_broken_pipe(self._stream):
            self._bar.close()
