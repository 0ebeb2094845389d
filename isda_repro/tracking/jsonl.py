"""``metrics.jsonl``: the authoritative record of a run, one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from isda_repro.files import named
from isda_repro.tracking.tracker import Record


class JsonLines:
    """Tracker that appends records to a file and flushes each line to the disk before training goes on.

    The result is not written here: it has its own file, which is written last.

    Args:
        path: the file; created if it does not exist.
        keep: number of bytes to keep, which hold the steps that a resumed run does not repeat; the rest is cut off.
        before_write: called before each line; an exception from it prevents the line from being written.
    """

    def __init__(self, path: Path, keep: int = 0, before_write: Callable[[], None] = lambda: None) -> None:
        self._path, self._before_write = path, before_write
        self._file = path.open("ab", buffering=0)  # unbuffered: closing must not retry a line that did not fit
        self._file.truncate(keep)

    @property
    def bytes_written(self) -> int:
        """Length of the file in bytes."""
        return self._file.seek(0, os.SEEK_END)

    def log(self, record: Record) -> None:
        """Append one record; records of kind "result" are ignored.

        Raises:
            ValueError: the record has NaN or infinity, which JSON cannot represent.
            OSError: the file cannot be written; the error names it.
        """
        if record["kind"] == "result":
            return
        self._before_write()
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise named(error, self._path) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
