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

UNSHOWABLE = re.compile(f"{UNPRINTABLE.pattern[:-1]}\ud800-\udfff]")
"""``UNPRINTABLE`` characters, and bytes that are not UTF-8 as Python reads them from file names."""

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


def one_line(text: object) -> str:
    """Return a text, or the text of a path, as one line in UTF-8: it may be or quote what somebody else has named.

    Bytes that are no UTF-8, and characters that cannot be printed, are escaped.
    """
    shown = str(text)
    return shown if shown.isprintable() else "".join(map(_printable, shown))


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's stand-in for a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else repr(character)[1:-1]


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
