"""``runs/<run_id>/``: everything one run leaves behind, and whether it has finished.

Knows nothing of classification: any training that has a run id can live in one.
"""

from __future__ import annotations

from pathlib import Path


class RunDirectory:
    """The files of one run. The presence of ``result.json``, written last, is what "finished" means."""

    def __init__(self, runs_dir: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = runs_dir / run_id
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.result = self.path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return self.result.exists()
