"""When a run's state is saved: at intervals, at the end of each epoch, and when a signal asks the run to stop.

Knows nothing of what is saved.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from isda_repro.errors import EXIT_USER_ERROR, StoppedError
from isda_repro.stopping import exit_code, heeding
from isda_repro.training.checkpoint import Checkpoints


class Saver:
    """Saves the state of a run when it is time to.

    Args:
        checkpoints: where to.
        state: gives the state as it is now, with its ``step``.
        minutes: between two saves within an epoch; None: by the clock, none.
        steps: likewise, counted in optimizer steps.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: Callable[[], Mapping[str, Any]],
        minutes: float | None = None,
        steps: int | None = None,
    ) -> None:
        self._checkpoints, self._state = checkpoints, state
        self._seconds = None if minutes is None else 60 * minutes
        self._steps = steps
        self._signal: signal.Signals | None = None

    def step_taken(self, step: int) -> None:
        """``step`` optimizer steps have been taken.

        Raises:
            StoppedError: a signal has come; the state has been saved.
        """
        self.stop_if_asked()
        by_clock = self._seconds is not None and time.monotonic() - self._checkpoints.written_at >= self._seconds
        if by_clock or (self._steps is not None and step % self._steps == 0):
            self._checkpoints.write(self._state())

    def epoch_ended(self) -> None:
        """Its record has been written. Raises ``StoppedError`` likewise."""
        self.stop_if_asked()
        self._checkpoints.write(self._state())

    def stop_if_asked(self) -> None:
        """To be called wherever the state can be saved. Raises ``StoppedError`` likewise."""
        if self._signal is None:
            return
        state = self._state()
        self._checkpoints.write(state)
        if not self._checkpoints.wait():
            raise StoppedError(
                f"error: {self._signal.name}: stopped after step {state['step']}, which could not be saved; the same "
                "command goes on from the checkpoint before it",
                EXIT_USER_ERROR,
            )
        raise StoppedError(
            f"{self._signal.name}: stopped and saved after step {state['step']}; the same command goes on from there",
            exit_code(self._signal),
        )

    def listening(self) -> AbstractContextManager[None]:
        """Signals make the run stop at its next step; a second one ends the process at once."""
        return heeding(self._take)

    def _take(self, asked: signal.Signals) -> None:
        if self._signal is not None:
            os._exit(128 + asked)
        self._signal = asked
