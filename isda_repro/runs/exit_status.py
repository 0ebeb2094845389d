"""Exit status of a run's last process, kept in the run's ``ended.json`` if the process left without a result."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from isda_repro.console import one_line
from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from isda_repro.files import SMALL, atomic_write, open_regular, rename_aside

NAME = "ended.json"
LOG = "log.txt"
CODES = 1024  # more than the number of any exit code or signal
MOST_SAID = 1000  # characters of a message
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
    path = folder / NAME
    if keep and os.path.lexists(path):
        return
    with suppress(OSError):  # a full disk is reported elsewhere
        _set_foreign_aside(path)
        with atomic_write(path) as file:
            file.write((json.dumps({"exit_code": ending.exit_code, "said": ending.said}) + "\n").encode())


def read_exit_status(folder: Path) -> ExitStatus | None:
    """Return the recorded exit status, or None if there is none or it cannot be read."""
    try:
        with open_regular(folder / NAME, SMALL) as file:
            noted = json.loads(file.read())
        code, said = noted["exit_code"], noted["said"]
        is_status = type(code) is int and -CODES < code < CODES and isinstance(said, str)
        return ExitStatus(code, _first_line(said)) if is_status else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _first_line(text: str) -> str:
    """Return the first line of a message, without what a terminal would obey."""
    return one_line(text.partition("\n")[0])[:MOST_SAID]


def _set_foreign_aside(path: Path) -> None:
    """Rename a file in place of ``ended.json`` that this program has not written."""
    if os.path.lexists(path) and read_exit_status(path.parent) is None:
        rename_aside(path, "foreign")


def clear_exit_status(folder: Path) -> None:
    """Delete the recorded exit status, because a process works on the run again."""
    _set_foreign_aside(folder / NAME)
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
    lines = _lines(folder / LOG)
    return ExitStatus(exit_code, _last_error(lines) or next(reversed(lines), f"exit code {exit_code}"))


def last_error(log: Path) -> str | None:
    """Return the last line of a log that contains an error, or None if there is none."""
    return _last_error(_lines(log))


def _last_error(lines: list[str]) -> str | None:
    return next((line for line in reversed(lines) if "error: " in line or "Error: " in line), None)


def _lines(log: Path) -> list[str]:
    """Return the lines at the end of a log, at most ``SMALL`` bytes."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - SMALL))
            return [_first_line(line) for line in file.read(SMALL).decode(errors="replace").strip().splitlines()]
    except OSError:
        return []
