"""Where a number comes from: revision, versions, machine. ``environment.json`` and a part of ``result.json``."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from isda_repro.files import written_whole
from isda_repro.training.compute import Compute, processor

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "scikit-learn", "wandb", "isda_repro")
ROOT = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, Any]:
    """What decides a number besides its request: the code's revision and the versions. No paths, no host.

    To be taken when a run starts: the checkout may have moved on when it ends.
    """
    ours = _git("rev-parse", "--show-toplevel") == str(ROOT)  # not some repository that the package was copied into
    status = _git("status", "--porcelain", "--", "isda_repro", "conf", "train.py") if ours else None
    return {
        "git_revision": _git("rev-parse", "HEAD") if ours else None,
        "git_clean": None if status is None else status == "",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
    }


def write_environment(path: Path, origin: dict[str, Any], compute: Compute) -> None:
    """``environment.json``: the provenance, and what helps to find out why two runs differ.

    That of a resumed run keeps the ones ``before``.
    """
    body = {
        **origin,
        "git_diff": _git("diff", "HEAD"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": sys.argv,
        "cpu": processor()[0],
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(compute.device),
        "hardware": compute.hardware,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "before": _earlier(path),
    }
    with written_whole(path) as file:
        file.write((json.dumps(body, indent=1) + "\n").encode())


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Those of the run's earlier processes, oldest first; whatever else the file may hold helps nobody."""
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        return [*last.pop("before", []), last]
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return []


def _git(*arguments: str) -> str | None:
    """Git's answer about the checkout that this code runs from; None where there is none."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
