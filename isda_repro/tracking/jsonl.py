"""``metrics.jsonl``: the authoritative record of a run, one JSON object per line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from isda_repro.files import append_to, named
from isda_repro.tracking.tracker import Record


class JsonLines:
    """Tracker that appends records to a file and flushes each line to the disk before training goes on.

    The result is not written here: it has its own file, which is written last.

    Args:
        path: the file; created if it does not exist.
        keep: number of bytes to keep, which hold the steps that a resumed run does not repeat; the rest is moved to the
            end of ``<name>.dropped``.
        before_write: called before each line is written or the end is cut off; an exception from it prevents that.
    """

    def __init__(self, path: Path, keep: int = 0, before_write: Callable[[], None] = lambda: None) -> None:
        self._path, self._before_write = path, before_write
        self._file = append_to(path, buffering=0)  # unbuffered: closing must not retry a line that did not fit
        if self.bytes_written > keep:
            self._drop_after(keep)

    def _drop_after(self, keep: int) -> None:
        """Move the end of the file to ``<name>.dropped``: after a kill at any moment it is in one of them, or in both.

        The run takes these steps again, and on other hardware with other numbers.
        """
        dropped = self._path.with_name(f"{self._path.name}.dropped")
        try:
            with self._path.open("rb") as lines, append_to(dropped) as end:
                lines.seek(keep)
                shutil.copyfileobj(lines, end)
                end.flush()
                os.fsync(end.fileno())
        except OSError as error:
            raise named(error, dropped) from error
        self._before_write()
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
