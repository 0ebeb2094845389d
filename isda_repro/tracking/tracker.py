"""Interface between the trainer and everything that records a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Record = Mapping[str, Any]
"""JSON object with a ``kind``: "segment" when training starts or resumes, "epoch" after each epoch, "result" last."""


class Tracker(Protocol):
    """Receiver of the records of one run, in order."""

    def log(self, record: Record) -> None:
        """Process one record."""

    def close(self) -> None:
        """End tracking, whether or not the run has finished. Called once."""
