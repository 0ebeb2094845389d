"""The offline W&B runs on this disk: what `wandb sync` will send, read before it does.

W&B's own `wandb leet inspect` reads the files, which are in a format of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isda_repro.runs.records import RecordError

READ_SECONDS = 60


@dataclass
class OfflineRun:
    """What one file holds; ``about`` has the run's id, group, tags and config."""

    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    system: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None  # None: the file ends in the middle of the run


def offline_files(runs_dir: Path) -> list[Path]:
    """The offline W&B runs of a folder of runs."""
    return sorted(runs_dir.glob("*/wandb/offline-run-*/run-*.wandb"))


def read_offline(path: Path) -> OfflineRun:
    """One ``run-<id>.wandb``.

    Raises:
        RecordError: W&B's program is missing, or cannot read the file.
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
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=READ_SECONDS, check=True
        )
        yield from (json.loads(line) for line in answer.stdout.splitlines())
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RecordError(f"`wandb leet inspect` cannot read it: {reason}") from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise RecordError(f"`wandb leet inspect` has failed: {error}") from error
