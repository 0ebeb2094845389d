"""Writing of files: atomic, and never over a file that may be somebody else's."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import tempfile
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from isda_repro.errors import UserError

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
"""Errors with which CIFS, gcsfuse and others answer fsync of a folder; EIO and ENOSPC are no such errors."""

SMALL = 2**20  # bytes; more than any file of the program that is read whole and may come from a stranger


@contextmanager
def atomic_write(path: Path, before_replace: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends; after an error ``path`` is unchanged.

    The content and the name are on the disk (fsync) when the block has been left; on file systems that cannot flush a
    folder, the content is.

    Args:
        path: the file.
        before_replace: called when the content is complete; an exception from it leaves ``path`` unchanged.

    Raises:
        OSError: names ``path``, also if the block's own error was only a consequence of it.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # unique: two processes may write `path`
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before_replace()
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (cause := _os_error(error)) is not None:
            if cause.filename == str(temporary):  # a name that means nothing to the user
                cause.filename = None
            raise named(cause, path) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that the names of its new files are on the disk, if the file system can."""
    try:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise named(error, folder) from error


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
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:  # once more, because another file may be there by now
        _require_regular(os.fstat(number), path, most)
    except OSError:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def append_to(path: Path, buffering: int = -1) -> IO[bytes]:
    """Open a file of a run's folder to append to it; it is created if there is none.

    Args:
        path: the file.
        buffering: as of ``open``.

    Raises:
        UserError: there is something else of this name, such as a symbolic link, which may lead out of the folder.
        OSError: it cannot be opened; the error names it.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UserError(f"{path} is a link, a folder or no regular file: move it away")
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=buffering)


def _require_regular(found: os.stat_result, path: Path, most: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    if most is not None and found.st_size > most:
        size = f"{found.st_size:,} bytes, at most {most:,} are read"
        raise OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)} ({size})", str(path))


def cache_folder() -> Path:
    """Return the cache folder of this package below the user's; its files can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "isda_repro"


def home() -> Path:
    """Return the user's home folder.

    For a user id without a name, as in containers, it is a private folder below the temporary one, and HOME is set to
    it: caches and W&B need a home folder.

    Raises:
        UserError: somebody else has made that folder.
    """
    with suppress(RuntimeError):
        return Path.home()
    folder = Path(tempfile.gettempdir()) / f"isda_repro-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"HOME is not set, and {folder} belongs to others: set HOME to a folder of yours")
    os.environ["HOME"] = str(folder)
    return folder


def expanded(path: str | Path) -> Path:
    """Return a path in which ``~`` or ``~user`` at the beginning is replaced by a home folder.

    Raises:
        UserError: there is no such user here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home folder here; write the path from / on") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rename_aside(path: Path, why: str) -> Path:
    """Rename a file or folder to the first free name ``<name>.<why>-<n>``, and return the new path."""
    names = (path.with_name(f"{path.name}.{why}-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
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


# ------------------------------------------------------------------------------- files that the user names: output=

MADE_BY = b"made by isda_repro"
COMMENT = dict.fromkeys((".md", ".html", ".htm", ".svg"), b"<!-- " + MADE_BY + b" -->\n")
COMMENT[".tex"] = b"% " + MADE_BY + b"\n"
TEXTS = tuple(COMMENT)  # suffixes of texts that can be marked
MARKED = (*TEXTS, ".json", ".csv", ".png")  # of all outputs
JSON_MARK = b'"made_by": "isda_repro"'
CSV_MARKS = (  # CSV has no comments: the first columns of a file mark it
    b"table,reduced,row,column,metric,evaluated_on,",  # tables/render/tidy_csv.py
    *(b"class,class_name,images,error_of_class,", b"true class \\ predicted class,"),  # evaluation/outputs.py
    b"image,true_class,predicted_class,probability,",
)
ENDS = 4096  # bytes at the beginning and at the end of a file in which the mark is looked for
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def write_output(path: Path, content: str | bytes, is_own_place: bool = False) -> None:
    """Write a file that a user has named, atomically and with a mark by which it is recognised the next time.

    Args:
        path: the file; its folder is created.
        content: the content, which the mark is added to: a comment, a field of a JSON object, or a text of a PNG file.
        is_own_place: the file is in the locked folder of a run, where its name is ours: do not look for the mark.

    Raises:
        UserError: there is a file of this name without the mark, or its suffix allows none.
    """
    if not is_own_place:
        check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(_marked(content.encode() if isinstance(content, str) else content, path.suffix.lower()))


def check_output(path: Path, suffixes: Collection[str] = MARKED) -> None:
    """Check that a file can be written without a loss: there is none yet, or one that ``write_output`` has written.

    Commands call it before their work, so that they are not refused after it.

    Args:
        path: the file.
        suffixes: suffixes, in lower case, whose files can carry the mark; of a text, ``TEXTS``.

    Raises:
        UserError: it has another suffix, or there is something else of this name.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)}, or it could not be written a second time")
    if os.path.lexists(path) and not _is_marked(path):
        raise UserError(f"{path} exists and was not written by this program: choose another name, or delete it first")


def folder_for(output: Path, *names: str) -> Path:
    """Create the folder of ``output=`` and check that the files of these names can be written.

    Commands call it before their work, which can take half an hour.

    Raises:
        UserError: a file of one of these names is there and not ours.
        OSError: the folder cannot be made or written to, or is a file; the error names it.
    """
    if output.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "output= must be a folder, and this is a file", str(output))
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        check_output(output / name)
    try:
        with tempfile.TemporaryFile(dir=output):
            return output
    except OSError as error:
        raise named(error, output) from error


def harmless_cell(text: str) -> str:
    """Return a name for a CSV file; one that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _marked(content: bytes, suffix: str) -> bytes:
    """Return the content with a mark; ``suffix`` is in lower case."""
    if _has_mark(content[:ENDS], content[-ENDS:]):  # a copy of a file that has it
        return content
    if suffix == ".json" and content.startswith(b"{"):
        return b"{" + JSON_MARK + b",\n" + content[1:].lstrip(b"\n")
    if suffix == ".png" and content.endswith(PNG_END):
        text = b"tEXtSoftware\0" + MADE_BY
        chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
        return content.removesuffix(PNG_END) + chunk + PNG_END
    return content + COMMENT.get(suffix, b"")


def _has_mark(begin: bytes, end: bytes) -> bool:
    return begin.startswith(CSV_MARKS) or any(mark in part for mark in (MADE_BY, JSON_MARK) for part in (begin, end))


def _is_marked(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            begin = file.read(ENDS)
            file.seek(-min(ENDS, path.stat().st_size), os.SEEK_END)
            return _has_mark(begin, file.read(ENDS))
    except OSError:
        return False
