"""Who works on a run, as far as the lock in its folder tells from here; see ``isda_repro.training.lock``."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

NAME = "owner.json"
ALIVE_SECONDS = 60.0  # its file is touched every 20 s


def lives(folder: Path) -> bool:
    """Whether a process works on it: as far as this host knows, else by the file that it touches."""
    host, pid = _owner(folder)
    if host is None or pid is None:
        return False
    if host == socket.gethostname():
        return _is_there(pid)
    try:
        return time.time() - (folder / NAME).stat().st_mtime < ALIVE_SECONDS
    except OSError:
        return False


def pid_here(folder: Path) -> int | None:
    """The process that works on it, if it is on this host and lives."""
    host, pid = _owner(folder)
    return pid if pid is not None and host == socket.gethostname() and _is_there(pid) else None


def _owner(folder: Path) -> tuple[str | None, int | None]:
    try:
        about = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return str(about["host"]), int(about["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
