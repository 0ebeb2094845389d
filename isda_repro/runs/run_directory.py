"""The folder of a run, ``runs/<run_id>/``, and the record of where its numbers come from.

``environment.json`` and a part of ``result.json`` name the revision, the versions and the machine. Any training that
has a run id can live in such a folder.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isda_repro.files import atomic_write
from isda_repro.revision import revision


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


PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "scikit-learn", "wandb", "isda_repro")


def provenance() -> dict[str, Any]:
    """What decides a number besides its request: the code's revision and the versions. No paths, no host.

    To be taken when a run starts: the checkout may have moved on when it ends.
    """
    code = revision()
    return {
        "git_revision": code.git_revision,
        "git_clean": code.git_clean,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
    }


def write_environment(path: Path, origin: dict[str, Any], machine: Mapping[str, Any]) -> None:
    """``environment.json``: the provenance, and what helps to find out why two runs differ.

    That of a resumed run keeps the ones ``before``.
    """
    body = {
        **origin,
        "git_diff": revision().git_diff,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": sys.argv,
        **machine,
        "before": _earlier(path),
    }
    with atomic_write(path) as file:
        file.write((json.dumps(body, indent=1) + "\n").encode())


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Those of the run's earlier processes, oldest first; whatever else the file may hold helps nobody."""
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        return [*last.pop("before", []), last]
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
