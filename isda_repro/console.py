"""Messages on standard output and standard error. A closed pipe or terminal does not end a run."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that end a line or control a terminal."""

GONE = (errno.EPIPE, errno.EIO)  # errors of writing to a closed pipe and to a closed terminal


@contextmanager
def ignore_broken_pipe(stream: TextIO) -> Iterator[None]:
    """Ignore OSErrors within the block; if the reader of ``stream`` is gone, redirect it to the null device."""
    try:
        yield
    except OSError as error:
        if error.errno in GONE:
            _silence(stream)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line and flush it, by default to standard output."""
    stream = stream or sys.stdout
    with ignore_broken_pipe(stream):
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:  # a name that the terminal's encoding lacks
            encoding = stream.encoding or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def one_line(text: str) -> str:
    """Return a text with ``UNPRINTABLE`` characters written as escapes: it may quote what somebody else has named."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def warn(sentence: str) -> None:
    """Print a warning to standard error."""
    say(f"warning: {sentence}", sys.stderr)


def _silence(stream: TextIO) -> None:
    """Redirect a stream to the null device.

    Otherwise its buffered text would fail again, at the latest when Python exits, and change the exit code.
    """
    with suppress(OSError):  # the stream has no file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
