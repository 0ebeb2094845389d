"""W&B runs recorded offline on this disk, read before ``wandb sync`` sends them.

The files are in W&B's own format, so W&B's ``wandb leet inspect`` reads them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isda_repro.files import home, open_regular
from isda_repro.runs.records import RecordError
from isda_repro.runs.run_directory import is_set_aside
from isda_repro.runs.strict_json import parsed, reason

READ_SECONDS = 60
MOST_OFFLINE_BYTES = 2**30  # of a W&B file; one has about 2 kB for each epoch, and its console output


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
    """Return the paths of all offline W&B files in a folder of runs, sorted; not of runs that were set aside."""
    files = runs_dir.glob("*/wandb/offline-run-*/run-*.wandb")
    return sorted(path for path in files if not is_set_aside(path.parents[2]))


def read_offline(path: Path) -> OfflineRun:
    """Read one ``run-<id>.wandb``.

    Raises:
        RecordError: W&B's program is missing, fails, takes longer than ``READ_SECONDS``, or cannot read the file.
    """
    run = OfflineRun()
    for record in _records(path):
        try:
            _add(run, record)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise RecordError(f"one of its records is not as W&B writes them ({type(error).__name__})") from error
    return run


def _add(run: OfflineRun, record: dict[str, Any]) -> None:
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
        run.rows.append({**body["item"]})
    elif kind == "stats":
        run.system.append({**body["item"]})
    elif kind == "exit":
        run.exit_code = body.get("exit_code", 0)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a W&B file, as ``wandb leet inspect --json`` prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    home()  # without which it does not start
    try:
        open_regular(path, MOST_OFFLINE_BYTES).close()
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READ_SECONDS,
            check=True,
        )
        yield from (parsed(line.encode()) for line in answer.stdout.split("\n") if line)
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RecordError(f"`wandb leet inspect` cannot read it: {said}") from error
    except OSError as error:
        raise RecordError(reason(error)) from error
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise RecordError(f"`wandb leet inspect` has failed: {error}") from error
