"""``ended.json`` in a run's folder: how the last process that worked on it left, if it left without a result."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED

NAME = "ended.json"
LOG = "log.txt"
STOPPED = (EXIT_STOPPED, EXIT_INTERRUPTED)  # a run's exit codes that mean: saved, the same command goes on


class ExitStatus(NamedTuple):
    """A process's exit code, negative for a signal, and what it said last."""

    exit_code: int
    said: str

    @property
    def is_stop(self) -> bool:
        """Whether it was asked to, and has saved."""
        return self.exit_code in STOPPED


def write_exit_status(folder: Path, ending: ExitStatus, keep: bool = False) -> None:
    """Write it, if the run has a folder; ``keep``: what stands there already says more."""
    if not folder.is_dir():
        return
    mode = "x" if keep else "w"
    with suppress(OSError), (folder / NAME).open(mode, encoding="utf-8") as file:  # a full disk is told otherwise
        file.write(json.dumps({"exit_code": ending.exit_code, "said": ending.said}) + "\n")


def read_exit_status(folder: Path) -> ExitStatus | None:
    """What was noted; None where nothing was, or it cannot be read."""
    try:
        noted = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return ExitStatus(int(noted["exit_code"]), str(noted["said"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_exit_status(folder: Path) -> None:
    """Somebody works on the run again."""
    (folder / NAME).unlink(missing_ok=True)


def exit_status_of(folder: Path, exit_code: int) -> ExitStatus:
    """How a process of the run has left that has ended with ``exit_code``: as it noted, or as far as the code tells."""
    noted = read_exit_status(folder)
    if noted is not None:
        return noted
    if exit_code < 0:
        return ExitStatus(exit_code, f"ended by {signal.Signals(-exit_code).name}")
    said = last_error(folder / LOG) or next(reversed(_lines(folder / LOG)), f"exit code {exit_code}")
    return ExitStatus(exit_code, said)


def last_error(log: Path) -> str | None:
    """The last line of a log that tells of an error; None where there is none."""
    errors = [line for line in _lines(log) if "error: " in line or "Error: " in line]
    return errors[-1] if errors else None


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return []
