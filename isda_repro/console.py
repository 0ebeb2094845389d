"""What people are told on the standard streams. Nobody has to listen: a reader that is gone does not end a run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

GONE = (errno.EPIPE, errno.EIO)  # a closed pipe, a closed terminal


@contextmanager
def ignore_broken_pipe(stream: TextIO) -> Iterator[None]:
    """Within the block, a stream that cannot be written raises nothing; one whose reader is gone leads nowhere then."""
    try:
        yield
    except OSError as error:
        if error.errno in GONE:
            _silence(stream)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print at once, on standard output if nothing else is said."""
    stream = stream or sys.stdout
    with ignore_broken_pipe(stream):
        print(text, file=stream, flush=True)


def warn(sentence: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {sentence}", sys.stderr)


def _silence(stream: TextIO) -> None:
    """What is in its buffer would fail again, at the latest when Python ends, and change the exit code."""
    with suppress(OSError):  # there is no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
