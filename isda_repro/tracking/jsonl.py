"""``metrics.jsonl``: the authority on what happened in a run, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from isda_repro.tracking.tracker import Record


class JsonLines:
    """Appends the records of training to a file, each line on the disk before the next step is taken.

    The result is not one of them: it has a file of its own, written last.

    Args:
        path: the file; made if it is not there.
        keep: bytes of it to keep: the lines of the steps that a resumed run does not take again.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._file = path.open("ab")
        self._file.truncate(keep)

    @property
    def bytes_written(self) -> int:
        """The length of the file."""
        return self._file.seek(0, os.SEEK_END)

    def log(self, record: Record) -> None:
        """Append one line. NaN and infinity are no JSON and raise ValueError."""
        if record["kind"] == "result":
            return
        self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
