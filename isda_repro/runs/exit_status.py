"""Exit status of a run's last process, kept in the run's ``ended.json`` if the process left without a result."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED

NAME = "ended.json"
LOG = "log.txt"
STOPPED = (EXIT_STOPPED, EXIT_INTERRUPTED)  # exit codes after saving: the same command continues the run


class ExitStatus(NamedTuple):
    """Exit code of a process (negative for a signal), and its last message."""

    exit_code: int
    said: str

    @property
    def is_stop(self) -> bool:
        """True if the process was asked to stop, and saved before it did."""
        return self.exit_code in STOPPED


def write_exit_status(folder: Path, ending: ExitStatus, keep: bool = False) -> None:
    """Write an exit status into a run's folder; do nothing if there is no such folder, or if writing fails.

    Args:
        folder: the run's folder.
        ending: the status.
        keep: leave a file that is already there, since it says more.
    """
    if not folder.is_dir():
        return
    mode = "x" if keep else "w"
    with suppress(OSError), (folder / NAME).open(mode, encoding="utf-8") as file:  # a full disk is reported elsewhere
        file.write(json.dumps({"exit_code": ending.exit_code, "said": ending.said}) + "\n")


def read_exit_status(folder: Path) -> ExitStatus | None:
    """Return the recorded exit status, or None if there is none or it cannot be read."""
    try:
        noted = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return ExitStatus(int(noted["exit_code"]), str(noted["said"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_exit_status(folder: Path) -> None:
    """Delete the recorded exit status, because a process works on the run again."""
    (folder / NAME).unlink(missing_ok=True)


def exit_status_of(folder: Path, exit_code: int) -> ExitStatus:
    """Return how a run's process ended that has left with ``exit_code``.

    A status that the process recorded itself comes first. Otherwise the message is the signal's name, or the last error
    of the run's log, or the log's last line, or the exit code.
    """
    noted = read_exit_status(folder)
    if noted is not None:
        return noted
    if exit_code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return ExitStatus(exit_code, f"ended by {names.get(-exit_code, f'signal {-exit_code}')}")
    said = last_error(folder / LOG) or next(reversed(_lines(folder / LOG)), f"exit code {exit_code}")
    return ExitStatus(exit_code, said)


def last_error(log: Path) -> str | None:
    """Return the last line of a log that contains an error, or None if there is none."""
    errors = [line for line in _lines(log) if "error: " in line or "Error: " in line]
    return errors[-1] if errors else None


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return []
