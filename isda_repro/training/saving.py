"""When a run's state is saved: at intervals, at the end of each epoch, and when a signal asks the run to stop.

All processes of a run do so after the same step. Knows nothing of what is saved.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from isda_repro.errors import EXIT_USER_ERROR, StoppedError
from isda_repro.stopping import exit_code, heeding
from isda_repro.training.checkpoint import Checkpoints
from isda_repro.training.processes import ALONE, Processes


class Saver:
    """Saves the state of a run when it is time to.

    Args:
        checkpoints: where to; the first process alone writes.
        state: gives the state as it is now, with its ``step``; all processes call it, and the first one's is written.
        minutes: between two saves within an epoch; None: by the clock, none.
        steps: likewise, counted in optimizer steps.
        processes: of the run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: Callable[[], Mapping[str, Any]],
        minutes: float | None = None,
        steps: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self._checkpoints, self._state, self._processes = checkpoints, state, processes
        self._seconds = None if minutes is None else 60 * minutes
        self._steps = steps
        self._signal: signal.Signals | None = None
        self._has_wished = False

    def step_taken(self, step: int) -> None:
        """``step`` optimizer steps have been taken.

        Raises:
            StoppedError: a signal has come; the state has been saved.
        """
        seconds = time.monotonic() - self._checkpoints.written_at
        late = self._seconds is not None and seconds >= self._seconds
        self._has_wished = late and not self._has_wished  # the others learn of it a step later: once is enough
        if self._heed(wants_to_save=self._has_wished) or (self._steps is not None and step % self._steps == 0):
            self._write(self._state())

    def epoch_ended(self) -> None:
        """Its record has been written. Raises ``StoppedError`` likewise."""
        self._heed()
        self._write(self._state())

    def stop_if_asked(self) -> None:
        """To be called wherever the state can be saved. Raises ``StoppedError`` likewise."""
        self._heed()

    def _heed(self, wants_to_save: bool = False) -> bool:
        """Stop if any process has been asked to; else, whether any wants to save."""
        number, saves = self._processes.agreed(self._signal or 0, int(wants_to_save))
        if number:
            self._stop(signal.Signals(number))
        return bool(saves)

    def _write(self, state: Mapping[str, Any]) -> None:
        if self._processes.is_first:
            self._checkpoints.write(state)
        else:  # so that all begin to count the minutes anew
            self._checkpoints.written_at = time.monotonic()

    def _stop(self, asked: signal.Signals) -> NoReturn:
        state = self._state()
        self._write(state)
        step, failed = state["step"], self._processes.largest(int(not self._checkpoints.wait()))
        message = f"{asked.name}: stopped and saved after step {step}; the same command goes on from there"
        if failed:
            message = (
                f"error: {asked.name}: stopped after step {step}, which could not be saved; the same command goes on "
                "from the checkpoint before it"
            )
        raise StoppedError(message if self._processes.is_first else "", EXIT_USER_ERROR if failed else exit_code(asked))

    def listening(self) -> AbstractContextManager[None]:
        """Signals make the run stop at its next step; a second one ends the process at once."""
        return heeding(self._take)

    def _take(self, asked: signal.Signals) -> None:
        if self._signal is not None and "SLURM_JOB_ID" not in os.environ:  # which repeats itself, and kills in the end
            os._exit(128 + asked)
        self._signal = asked
