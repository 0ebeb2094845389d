"""Opening files of strangers without waiting for ever, and showing their names in one line."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open a file of somebody else for reading, if it is a regular one.

    Reading a named pipe or a device can wait for ever, or never end.

    Args:
        path: the file, or a symbolic link to it.
        most: the largest size in bytes that is accepted; None: any.

    Raises:
        OSError: the file cannot be opened, is not a regular one, or is too large; the error names it.
    """
    _require_regular(path.stat(), path, most)
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:  # once more, because another file may be there by now
        _require_regular(os.fstat(file.fileno()), path, most)
    except OSError:
        file.close()
        raise
    return file


def _require_regular(found: os.stat_result, path: Path, most: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    if most is not None and found.st_size > most:
        size = f"{found.st_size:,} bytes, at most {most:,} are read"
        raise OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)} ({size})", str(path))


CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that no name or setting needs and that would break a line, a terminal or an encoding."""


def displayed(path: Path | str) -> str:
    """Return a path as one line of text that can be encoded: other characters and bytes are escaped."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode-escape").decode(), str(path))
