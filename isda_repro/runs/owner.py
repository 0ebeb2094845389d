"""Who works on a run, as far as the lock in its folder tells from here; see ``isda_repro.runs.lock``."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

NAME = "owner.json"
ALIVE_SECONDS = 60.0  # its file is touched every 20 s


def here() -> dict[str, str]:
    """This host, as long as it runs: after a restart no process of before lives, and names may be given twice."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        boot = ""
    return {"host": socket.gethostname(), "boot": boot}


def lives(folder: Path) -> bool:
    """Whether a process works on it: as far as this host knows, else by the file that it touches."""
    about = _owner(folder)
    if "pid" not in about:
        return False
    if about.get("host") == socket.gethostname():
        return pid_here(folder) is not None
    try:
        return time.time() - (folder / NAME).stat().st_mtime < ALIVE_SECONDS
    except OSError:
        return False


def pid_here(folder: Path) -> int | None:
    """The process that works on it, if it is on this host and lives."""
    about = _owner(folder)
    if not here().items() <= about.items():  # of before a restart: another process may have its number now
        return None
    pid = about.get("pid")
    return pid if isinstance(pid, int) and process_exists(pid) else None


def _owner(folder: Path) -> dict[str, Any]:
    """What its file says; nothing where there is none, or a torn one."""
    try:
        about = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def process_exists(pid: int) -> bool:
    """Return whether this host has a process with this number, anybody's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
