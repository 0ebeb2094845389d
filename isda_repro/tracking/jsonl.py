"""``metrics.jsonl``: the authority on what happened in a run, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from isda_repro.tracking.tracker import Record


class JsonLines:
    """Appends the records of training to a file, each line handed to the system before the next step is taken.

    The result is not one of them: it has a file of its own, written last.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append one line. NaN and infinity are no JSON and raise ValueError."""
        if record["kind"] == "result":
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
