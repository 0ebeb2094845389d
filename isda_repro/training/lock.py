"""One process at a time writes in a run's folder.

The operating system's file lock (``lock``) is given up when its owner dies, however it dies. Some shared file systems
keep such locks within one host: for those ``owner.json`` names the owner and is touched as long as it lives.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from isda_repro.errors import UserError

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0  # several heartbeats, and what a shared file system may take to show one


class LockedError(UserError):
    """Another process writes in the folder."""


class FolderLock:
    """Held in a ``with`` block.

    Args:
        folder: what is locked; must exist.

    Raises:
        LockedError: on entering, when another process holds it; names host, pid and start, and says how to break it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._owner = folder, folder / "owner.json"
        self._lock = FileLock(folder / "lock", timeout=0)
        self._released = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LockedError(self._sentence("wait for it, or stop it")) from error
        if self._lives_elsewhere():
            sentence = self._sentence(f"wait for it; if that process is gone for certain, delete {self._owner}")
            self._lock.release()
            raise LockedError(sentence)
        about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        self._owner.write_text(json.dumps(about) + "\n", encoding="utf-8")
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def follow(self, folder: Path) -> None:
        """The folder that is locked has been renamed."""
        self._folder, self._owner = folder, folder / "owner.json"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._owner.unlink(missing_ok=True)
        (self._folder / "lock").unlink(missing_ok=True)
        self._lock.release()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._owner)
            except OSError:  # the folder is gone or cannot be reached: others will see no heartbeat
                continue

    def _about(self) -> dict[str, Any]:
        try:
            about = json.loads(self._owner.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    def _lives_elsewhere(self) -> bool:
        """Whether a process of another host owns the folder and has touched ``owner.json`` lately."""
        about = self._about()
        if not about or about.get("host") == socket.gethostname():
            return False  # this host's file lock has just said that it is dead
        probe = self._folder / f"clock.{os.getpid()}"
        probe.touch()  # the file system's clock, which may not be ours
        age = probe.stat().st_mtime - self._owner.stat().st_mtime
        probe.unlink()
        return age < STALE_SECONDS

    def _sentence(self, advice: str) -> str:
        about = self._about()
        who = f"pid {about.get('pid', '?')} on {about.get('host', '?')}, started {about.get('started', '?')}"
        return f"{self._folder} is being written by another process ({who}): {advice}"
