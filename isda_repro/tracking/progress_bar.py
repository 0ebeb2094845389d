"""Progress of a run: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from isda_repro.console import ignore_broken_pipe
from isda_repro.tracking.tracker import Record

BAR_SECONDS = 0.5  # time between updates of the loss in the bar, because on a GPU reading it waits for the device
LINE_SECONDS = 60.0  # time between lines if there is no terminal


class Progress:
    """Tracker that shows a bar over all epochs with loss, error, images/s and remaining time, and one line per epoch.

    Args:
        epochs: number of epochs of the whole run.
        images_per_epoch: number of training images in an epoch.
        images_done: number of images trained on before a resumed run continues.
        stream: output stream, by default standard error; the bar is drawn only on a terminal.
    """

    def __init__(self, epochs: int, images_per_epoch: int, images_done: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._epochs = epochs
        self._images_per_epoch = images_per_epoch
        self._terminal = self._stream.isatty()
        self._bar = tqdm(
            total=epochs * images_per_epoch,
            initial=images_done,
            unit=" images",
            unit_scale=True,
            smoothing=0.1,
            dynamic_ncols=True,
            file=self._stream,
            disable=not self._terminal,
        )
        self._seen = images_done
        self._begun_at = self._looked_at = time.perf_counter()
        self._seen_at_begin = self._seen

    def advance(self, images: int, epoch: int, running: Callable[[], Any]) -> None:
        """Advance the bar.

        Args:
            images: number of images trained on since the last call.
            epoch: number of the epoch, counted from 1.
            running: returns the argument of ``running_words``; called only when the text is updated.
        """
        self._seen += images
        with ignore_broken_pipe(self._stream):
            self._bar.update(images)
        now = time.perf_counter()
        if now - self._looked_at < (BAR_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._looked_at = now
        words = self.running_words(running())
        if self._terminal:
            self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(words)
            return
        speed = (self._seen - self._seen_at_begin) / (now - self._begun_at)
        left = (self._epochs * self._images_per_epoch - self._seen) / speed
        part = self._seen / self._images_per_epoch - (epoch - 1)
        self._say(f"epoch {epoch}/{self._epochs} at {part:4.0%}: {words}, {speed:,.0f} images/s, {duration(left)} left")

    def log(self, record: Record) -> None:
        """Print one line about a finished epoch; other records are ignored."""
        if record["kind"] != "epoch":
            return
        timing = record["timing"]
        self._looked_at = time.perf_counter()
        left = (self._epochs - record["epoch"]) * (timing["train"] + timing["evaluation"])
        self._say(
            f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}  {self.epoch_words(record)}  "
            f"{timing['images_per_s']:,.0f} images/s  {duration(left)} left"
        )

    def running_words(self, running: Any) -> str:
        """Format the running loss and error of the current epoch."""
        loss, error = running
        return f"loss {loss:.3f}, error {error:.2f}%"

    def epoch_words(self, record: Record) -> str:
        """Format the learning rate, losses and errors of a finished epoch."""
        top5 = f" top-5 {record['test_top5_error']:6.2f}%" if "test_top5_error" in record else ""
        return (
            f"lr {record['lr']:<7.4g} train loss {record['train_loss']:.4f} error {record['train_error']:6.2f}%  "
            f"test error {record['test_error']:6.2f}%{top5}"
        )

    def close(self) -> None:
        """Close the bar."""
        with ignore_broken_pipe(self._stream):
            self._bar.close()

    def _say(self, line: str) -> None:
        with ignore_broken_pipe(self._stream):
            self._bar.write(line, file=self._stream) if self._terminal else print(line, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Format a duration as ``h:mm:ss``, or ``m:ss`` below one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
