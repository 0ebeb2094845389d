"""What the user can mend is one sentence, not a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
"""Exit code when a setting, a file or the data is wrong; a defect of the program ends with 1 and its traceback."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, the shell's own."""


EXIT_STOPPED = 75
"""Exit code after SIGTERM, SIGUSR1 or SIGUSR2, when the state has been saved: the same command goes on from there."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Those that ask a process to save and leave."""


class StoppedError(Exception):
    """A signal has asked a run to stop, and it has saved its state. The message says how to go on.

    Args:
        message: one sentence.
        exit_code: what the process leaves with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(ValueError):
    """Something that the user can mend. The message is one sentence: what was wrong, where, and what to do."""


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print a ``UserError`` as ``error: <sentence>`` on standard error and leave with ``EXIT_USER_ERROR``.

    So are a file that cannot be read or written, and Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except StoppedError as stop:
        for number in STOP_SIGNALS:  # an echo of the one that was heeded must not change how the process leaves
            signal.signal(number, signal.SIG_IGN)
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command starts it again", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
