"""Files that are whole or not there, whatever happens while they are written."""

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
    """A file to write into, which takes the place of ``path`` when the block ends; on an error nothing is changed.

    It and its name have reached the disk when the block has been left.

    Raises:
        OSError: with the file's name, also where the block's own error was but a consequence of it.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # its own: two may write one file
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (cause := _os_error(error)) is not None:
            if cause.filename == str(temporary):  # which nobody knows
                cause.filename = None
            raise named(cause, path) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_folder() -> Path:
    """The user's cache: its files can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isda_repro"


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rename_aside(path: Path, why: str) -> Path:
    """Give a file or folder the first free name ``<name>.<why>-<n>``, and return it."""
    names = (path.with_name(f"{path.name}.{why}-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return aside


def named(error: OSError, path: Path) -> OSError:
    """The error with a file's name: those of writing into an open file have none."""
    return OSError(error.errno, error.strerror or str(error), str(path)) if error.filename is None else error


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that an error is or came of."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
