"""``metrics.jsonl``: the authority on what happened in a run, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from isda_repro.files import named
from isda_repro.tracking.tracker import Record


class JsonLines:
    """Appends the records of training to a file, each line on the disk before the next step is taken.

    The result is not one of them: it has a file of its own, written last.

    Args:
        path: the file; made if it is not there.
        keep: bytes of it to keep: the lines of the steps that a resumed run does not take again.
        before_write: called before each line; what it raises keeps the line from being written.
    """

    def __init__(self, path: Path, keep: int = 0, before_write: Callable[[], None] = lambda: None) -> None:
        self._path, self._before_write = path, before_write
        self._file = path.open("ab", buffering=0)  # a line that did not fit is not tried again when the file is closed
        self._file.truncate(keep)

    @property
    def bytes_written(self) -> int:
        """The length of the file."""
        return self._file.seek(0, os.SEEK_END)

    def log(self, record: Record) -> None:
        """Append one line. NaN and infinity are no JSON and raise ValueError; OSError names the file."""
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
