"""The contract between the trainer and everything that records a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Record = Mapping[str, Any]
"""A JSON object with its ``kind``: "segment" when training starts or resumes, "epoch" after each, "result" last."""


class Tracker(Protocol):
    """Receives the records of one run, in order."""

    def log(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """The run has ended, finished or not. Called once."""
