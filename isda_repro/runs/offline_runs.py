"""W&B runs recorded offline on this disk, read before ``wandb sync`` sends them.

The files are in W&B's own format, so W&B's ``wandb leet inspect`` reads them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isda_repro.files import home
from isda_repro.runs.records import RecordError

READ_SECONDS = 60


@dataclass
class OfflineRun:
    """Content of one offline W&B file."""

    about: dict[str, Any] = field(default_factory=dict)  # the run's id, group, tags and config
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # the history, as it was logged
    system: list[dict[str, Any]] = field(default_factory=list)  # system metrics
    exit_code: int | None = None  # None: the file ends before the run did


def offline_files(runs_dir: Path) -> list[Path]:
    """Return the paths of all offline W&B files in a folder of runs, sorted."""
    return sorted(runs_dir.glob("*/wandb/offline-run-*/run-*.wandb"))


def read_offline(path: Path) -> OfflineRun:
    """Read one ``run-<id>.wandb``.

    Raises:
        RecordError: W&B's program is missing, fails, takes longer than ``READ_SECONDS``, or cannot read the file.
    """
    run = OfflineRun()
    for record in _records(path):
        kind = str(record.get("type"))
        body = record.get(kind) or {}
        if kind == "run":
            run.about |= body
            run.config |= body.get("config", {}).get("update", {})
        elif kind == "config":
            run.config |= body.get("update", {})
        elif kind == "summary":
            run.summary |= body.get("update", {})
        elif kind == "history":
            run.rows.append(body["item"])
        elif kind == "stats":
            run.system.append(body["item"])
        elif kind == "exit":
            run.exit_code = body.get("exit_code", 0)
    return run


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a W&B file, as ``wandb leet inspect --json`` prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    environment = {**os.environ, "HOME": str(home())}  # without which it does not start
    try:
        answer = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READ_SECONDS,
            check=True,
        )
        yield from (json.loads(line) for line in answer.stdout.splitlines())
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RecordError(f"`wandb leet inspect` cannot read it: {reason}") from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise RecordError(f"`wandb leet inspect` has failed: {error}") from error
