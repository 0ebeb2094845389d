"""What the user can mend is one sentence, not a traceback."""

from __future__ import annotations

import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from isda_repro.console import say

EXIT_USER_ERROR = 2
"""Exit code when a setting, a file or the data is wrong; a defect of the program ends with 1 and its traceback."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, the shell's own."""


EXIT_STOPPED = 75
"""Exit code after SIGTERM, SIGUSR1, SIGUSR2 or SIGHUP, when the state is saved: the same command goes on from there."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Those that ask a process to save and leave; the last comes when its terminal is closed."""


INTERRUPTED = "\ninterrupted; the same command starts it again"
"""What a process says that Ctrl-C has ended where there was nothing to save."""


class StoppedError(Exception):
    """A signal has asked a run to stop, and it has saved its state. The message says how to go on.

    Args:
        message: one sentence; none where another process of the run says it.
        exit_code: what the process leaves with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(ValueError):
    """Something that the user can mend. The message is one sentence: what was wrong, where, and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's error, or one of PyTorch's, which on a CPU are told by their words alone."""
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


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print a ``UserError`` as ``error: <sentence>`` on standard error and leave with ``EXIT_USER_ERROR``.

    So are a file that cannot be read or written, memory that is exhausted, and Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        _leave(str(error))
    except OSError as error:
        _leave(f"{error.strerror or error}: {error.filename or 'no file named'}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        _leave(f"out of memory ({reason}): end other processes, or run this where there is more")
    except StoppedError as stop:
        for number in STOP_SIGNALS:  # an echo of the one that was heeded must not change how the process leaves
            signal.signal(number, signal.SIG_IGN)
        if str(stop):
            say(str(stop), sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say(INTERRUPTED, sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def check_installation() -> None:
    """Leave with one sentence if Python is too old for training, or, from now on, where an import finds no package.

    Commands call this before their other imports: ``pip install isda_repro`` brings torch alone.
    """
    if sys.version_info < (3, 11):
        _leave(f"this command needs Python 3.11 or later, and runs on {platform.python_version()}")
    others = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in ("", "isda_repro"):
            others(kind, error, traceback)
        else:
            extra = "slurm" if package == "submitit" else "train"
            _leave(
                f'the package {package} is not installed, which this command needs: pip install "isda_repro[{extra}]", '
                f'or in a checkout pip install -e ".[{extra}]"'
            )

    sys.excepthook = explain


def _leave(sentence: str) -> NoReturn:
    say(f"error: {sentence}", sys.stderr)
    sys.exit(EXIT_USER_ERROR)
