"""Directory of a run, ``runs/<run_id>/``, and the record of the code and machine that produced its numbers.

``environment.json`` and a part of ``result.json`` name the revision, the package versions and the machine. Any training
with a run id, of a classifier or a generator, uses such a directory.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isda_repro.files import atomic_write, open_regular
from isda_repro.revision import revision

RESULT, DIVERGED = "result.json", "diverged.json"
SET_ASIDE = "before"  # in the name of the folder of a finished run that was trained again


class RunDirectory:
    """Paths of one run's files. The run is finished if ``result.json``, which is written last, is there."""

    def __init__(self, runs_dir: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = runs_dir / run_id
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.result = self.path / RESULT
        self.diverged = self.path / DIVERGED

    @property
    def finished(self) -> bool:
        """True if the run has a result."""
        return self.result.exists()


CHECKPOINT = re.compile(r"checkpoint-[0-9]{9,}\.pt")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of an unfinished run, newest first: ``checkpoint-<step>.pt`` and no other names."""
    found = [path for path in folder.glob("checkpoint-*.pt") if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem.partition("-")[2]), reverse=True)


def is_set_aside(folder: Path) -> bool:
    """Return True for the folder of a finished run that ``force=true`` has renamed (``rename_aside``)."""
    return re.search(rf"\.{SET_ASIDE}-[0-9]+$", folder.name) is not None


MOST_BYTES = 2**28  # of an environment.json, which keeps a record of each process

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "scikit-learn", "wandb", "isda_repro")


def provenance() -> dict[str, Any]:
    """Return what can change a number besides the request: the code's revision, the platform and the package versions.

    It contains no paths and no host name. Call it when a run starts: by its end the checkout may be at another
    revision.
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
    """Write ``environment.json``: the provenance, and details that help to find out why two runs differ.

    A resumed run keeps the records of its earlier processes under ``before``.

    Args:
        path: the file.
        origin: what ``provenance`` returned when this process started.
        machine: further entries about the machine.
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


def read_environment(path: Path) -> dict[str, Any]:
    """Return the content of ``environment.json``, or {} if the file is absent or malformed.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large.
    """
    try:
        with open_regular(path, MOST_BYTES) as file:
            content = json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Return the records of the run's earlier processes, oldest first; none if the file is absent or malformed."""
    last = read_environment(path)
    before = last.pop("before", [])
    return [*before, last] if last and isinstance(before, list) else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
