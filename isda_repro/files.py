"""Atomic writing of files, and other helpers for files."""

from __future__ import annotations

import hashlib
import itertools
import os
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
