"""One process at a time writes in a run's folder.

Two locks, because neither is enough. The operating system's file lock (``lock``) is given up when its owner dies,
however it dies, but some shared file systems keep it within one host. ``owner.json``, which one process alone can
create, holds across hosts, but outlives its owner: it is touched as long as the owner lives, and one that is no longer
touched is stale.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout

from isda_repro.errors import UserError
from isda_repro.files import named

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0  # several heartbeats, and what a shared file system may take to show one
LOOK_SECONDS = 1.0  # between two looks at another host's heartbeat


class LockedError(UserError):
    """Another process writes in the folder."""


class _Owner(NamedTuple):
    """What ``owner.json`` says, and when it was last touched, by the file system's clock."""

    about: dict[str, Any]
    touched: float


class FolderLock:
    """Held in a ``with`` block.

    An owner on this host is refused or succeeded at once. One on another host is watched until its heart has beaten or
    it is stale, two minutes at most: a run that was moved to another host goes on by itself.

    Args:
        folder: what is locked; must exist.

    Raises:
        LockedError: on entering, when another process holds it; names host, pid and start, and says how to break it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "owner.json"
        self._lock = FileLock(folder / "lock", timeout=0)
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LockedError(self._sentence(self._owner(), "wait for it, or stop it")) from error
        try:
            owner = self._owner()
            if owner is None:
                self._create(self._path)
            else:
                self._succeed(owner)
        except BaseException:
            self._lock.release()
            raise
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        try:
            if self._is_ours():
                self._path.unlink(missing_ok=True)
                (self._folder / "lock").unlink(missing_ok=True)
        finally:
            self._lock.release()

    def follow(self, folder: Path) -> None:
        """The folder that is locked has been renamed."""
        self._folder, self._path = folder, folder / "owner.json"

    def ensure_held(self) -> None:
        """To be called before each write.

        Raises:
            LockedError: another process took this one for dead (it slept, or the file system did) and goes on with the
                run; nothing more may be written.
        """
        if not self._is_ours():
            raise LockedError(self._sentence(self._owner(), "this one stood still for too long and has lost the run"))

    # ------------------------------------------------------------------------------------------------ taking it over

    def _succeed(self, owner: _Owner) -> None:
        """Take the place of an owner that is dead; of several that find it so, one."""
        if owner.about.get("host") != socket.gethostname():  # this host's file lock has just said that ours is dead
            self._watch(owner)
        claim = self._path.with_name(f"owner.json.after-{owner.about.get('token', 'unknown')}")
        self._create(claim)
        now = self._owner()
        if now is not None and now.about.get("token") != owner.about.get("token"):  # another was faster, and is done
            claim.unlink()
            raise LockedError(self._sentence(now, "wait for it"))
        if now is None:  # released while it was watched: whoever comes first has it
            claim.unlink()
            self._create(self._path)
        else:
            claim.rename(self._path)

    def _watch(self, owner: _Owner) -> None:
        """Return when the owner, on another host, is stale. Trusts no two clocks to agree."""
        left = min(STALE_SECONDS, STALE_SECONDS - self._age(owner))
        deadline = time.monotonic() + left
        if left > 0:
            what = f"{self._who(owner)} wrote in {self._folder} last: watching for up to {left:.0f} s whether it lives"
            print(what, flush=True)
        while time.monotonic() < deadline:
            time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            now = self._owner()
            if now is None:
                return
            if now != owner:
                raise LockedError(
                    self._sentence(now, f"wait for it; if that process is gone for certain, delete {self._path}")
                )

    def _age(self, owner: _Owner) -> float:
        """Seconds since it was touched, by the file system's own clock."""
        probe = self._path.with_name(f"clock.{self._token}")
        probe.touch()
        age = probe.stat().st_mtime - owner.touched
        probe.unlink()
        return age

    def _create(self, path: Path) -> None:
        """Write who we are into a file that must not be there: the act that one process alone can do, on any host."""
        about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        content = (json.dumps({**about, "token": self._token}) + "\n").encode()
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError as error:
            advice = f"wait for it; if that process is gone for certain, delete {path}"
            raise LockedError(self._sentence(_read(path), advice)) from error
        try:
            os.write(file, content)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise named(error, path) from error
        finally:
            os.close(file)

    # -------------------------------------------------------------------------------------------------------- holding

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                if self._is_ours():
                    os.utime(self._path)
            except OSError:  # the folder is gone or cannot be reached: others will see no heartbeat
                continue

    def _is_ours(self) -> bool:
        owner = self._owner()
        return owner is not None and owner.about.get("token") == self._token

    def _owner(self) -> _Owner | None:
        return _read(self._path)

    def _sentence(self, owner: _Owner | None, advice: str) -> str:
        return f"{self._folder} is being written by another process ({self._who(owner)}): {advice}"

    @staticmethod
    def _who(owner: _Owner | None) -> str:
        about = {} if owner is None else owner.about
        return f"pid {about.get('pid', '?')} on {about.get('host', '?')}, started {about.get('started', '?')}"


def _read(path: Path) -> _Owner | None:
    """None where there is none. A torn one tells nothing but its age."""
    try:
        with path.open("rb") as file:  # opening asks a shared file system for news, a bare stat does not
            touched = os.fstat(file.fileno()).st_mtime
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        about = json.loads(content)
    except ValueError:
        about = {}
    return _Owner(about if isinstance(about, dict) else {}, touched)
