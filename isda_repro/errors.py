"""Errors and exit codes: an error that the user can fix prints one sentence instead of a traceback."""

from __future__ import annotations

import io
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from isda_repro.console import one_line, say

EXIT_USER_ERROR = 2
"""Exit code if a setting, a file or the data is wrong. Bugs exit with 1 and a traceback."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, by the shell's convention."""


EXIT_STOPPED = 75
"""Exit code after SIGTERM, SIGUSR1, SIGUSR2 or SIGHUP with the state saved: the same command resumes the run."""

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a process to save and exit; SIGHUP is sent when its terminal is closed. Windows has only two."""


INTERRUPTED = "\ninterrupted; the same command starts it again"
"""Message of a process that Ctrl-C ends when there is nothing to save."""


EXTRAS = {"submitit": "slurm", "wandb_workspaces": "report", "jinja2": "report", "plotly": "report"}
"""The extra that installs a package, if it is not ``train``."""


class StoppedError(Exception):
    """A run was asked to stop by a signal, and has saved its state. The message says how to resume it.

    Args:
        message: one sentence; empty if another process of the run prints it.
        exit_code: exit code of the process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(ValueError):
    """Error that the user can fix. The message is one sentence: what is wrong, where, and what to do.

    It is printed as one line, whatever the names in it are.
    """

    def __str__(self) -> str:
        """Return the message with newlines and other control characters written as escapes."""
        return one_line(super().__str__())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is Python's MemoryError or one of PyTorch's errors for exhausted memory.

    On a CPU PyTorch raises a plain RuntimeError, which only its message identifies.
    """
    words = (
        "allocate memory",
        "out of memory",
        "could not create a primitive",
        "could not create a memory",
        "bad_alloc",
        "ALLOC_FAILED",  # cuBLAS's and cuDNN's workspaces
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(known in str(error) for known in words)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print a ``UserError`` in the block as ``error: <sentence>`` on standard error, and exit with ``EXIT_USER_ERROR``.

    An OSError, exhausted memory and a killed worker are reported in the same way. ``StoppedError`` exits with its own
    code, and Ctrl-C with ``EXIT_INTERRUPTED``. Any other exception passes.
    """
    try:
        yield
    except StoppedError as stop:
        for number in STOP_SIGNALS:  # a repeated signal must not change how the process exits
            signal.signal(number, signal.SIG_IGN)
        if str(stop):
            say(str(stop), sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say(INTERRUPTED, sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        _leave(sentence)


def sentence_of(error: Exception) -> str | None:
    """Return the sentence about an error that the user can fix, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror is None:  # made from a message; a worker's ends a traceback
        return one_line(str(error).rstrip().rpartition("\n")[2] or type(error).__name__)
    if isinstance(error, OSError):
        return one_line(f"{error.strerror}: {error.filename or 'no file named'}")
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        fewer = "often the memory is short: try fewer workers (dataset.workers=, or workers= of scripts/data.py)"
        return f"{first_line(error).rstrip(' .')}; {fewer}"
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}): end other processes, or run this where there is more"
    return None


def check_installation() -> None:
    """Exit with one sentence if a command cannot run here or, from now on, if an import finds no package.

    Commands call this before their other imports, because ``pip install isda_repro`` only installs torch. It also makes
    names that the terminal cannot show printable.
    """
    if sys.version_info < (3, 11):
        _leave(f"this command needs Python 3.11 or later, and runs on {platform.python_version()}")
    if missing := [name for name in ("SIGUSR1", "SIGUSR2", "SIGHUP") if not hasattr(signal, name)]:
        _leave(
            f"this command runs on Linux and macOS: Python on this {platform.system()} has no {missing[0]}, with which "
            "a run is asked to save; isda_repro.losses and isda_repro.models can be used everywhere"
        )
    package = Path(__file__).parent
    if not (package.parent / "conf" / "train.yaml").is_file():
        _leave(
            f"isda_repro is installed in {package} without conf/, which this command needs: "
            "install the checkout itself, pip install -e ."
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    from isda_repro.files import home  # which itself imports this module

    with one_sentence_errors():
        home()
    others = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in ("", "isda_repro"):
            others(kind, error, traceback)
        else:
            extra = EXTRAS.get(package, "train")
            _leave(f'the package {package} is not installed, which this command needs: pip install -e ".[{extra}]"')

    sys.excepthook = explain


def _leave(sentence: str) -> NoReturn:
    say(f"error: {sentence}", sys.stderr)
    sys.exit(EXIT_USER_ERROR)
