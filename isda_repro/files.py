"""Atomic writing of files, and other helpers for files."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends; after an error ``path`` is unchanged.

    The content and the name are on the disk (fsync) when the block has been left.

    Raises:
        OSError: names ``path``, also if the block's own error was only a consequence of it.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # unique: two processes may write `path`
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (cause := _os_error(error)) is not None:
            if cause.filename == str(temporary):  # a name that means nothing to the user
                cause.filename = None
            raise named(cause, path) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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


def cache_folder() -> Path:
    """Return the cache folder of this package below the user's; its files can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isda_repro"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rename_aside(path: Path, why: str) -> Path:
    """Rename a file or folder to the first free name ``<name>.<why>-<n>``, and return the new path."""
    names = (path.with_name(f"{path.name}.{why}-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return aside


def named(error: OSError, path: Path) -> OSError:
    """Return the error with a file name; errors of writing to an open file have none."""
    return OSError(error.errno, error.strerror or str(error), str(path)) if error.filename is None else error


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the OSError that ``error`` is or was caused by, or None."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
