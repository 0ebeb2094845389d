"""One process at a time writes in a run's folder.

Two locks, because neither is enough. The operating system's file lock (``lock``) is given up when its owner dies,
however it dies, but some shared file systems keep it within one host, and some have none. ``owner.json``, which one
process alone can create, holds across hosts, but outlives its owner: it is touched as long as the owner lives, and one
that is no longer touched is stale.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout

from isda_repro.console import say
from isda_repro.errors import UserError
from isda_repro.files import named

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


HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0  # several heartbeats, and what a shared file system may take to show one
LOOK_SECONDS = 1.0  # between two looks at another's heartbeat
NO_FILE_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class LockedError(UserError):
    """Another process writes in the folder."""


class _Owner(NamedTuple):
    """What ``owner.json`` says, and when it was last touched, by the file system's clock."""

    about: dict[str, Any]
    touched: float


class FolderLock:
    """Held in a ``with`` block.

    An owner on this host is refused or succeeded at once. One on another host, and one that the operating system knows
    nothing certain about, is watched until its heart has beaten or it is stale, two minutes at most: a run that was
    moved to another host goes on by itself.

    Args:
        folder: what is locked; must exist.

    Raises:
        LockedError: on entering, when another process holds it; names host, pid and start, and says how to break it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._lock = FileLock(folder / "lock", timeout=0, fallback_to_soft=False)
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise self._locked(_read(self._path), "wait for it, or stop it") from error
        except OSError as error:
            if error.errno not in NO_FILE_LOCKS:
                raise named(error, self._folder / "lock") from error
        try:
            self._take(self._path)
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
        self._folder, self._path = folder, folder / NAME

    def ensure_held(self) -> None:
        """To be called before each write.

        Raises:
            LockedError: another process took this one for dead (it slept, or the file system did) and goes on with the
                run; nothing more may be written.
        """
        if not self._is_ours():
            raise self._locked(_read(self._path), "this one stood still for too long and has lost the run")

    # ------------------------------------------------------------------------------------------------ taking it over

    def _take(self, path: Path) -> None:
        """Become the one whom the file names; of several that find its owner dead, one does.

        That one is who can create the claim. It may die before the claim has become the file: then the claim is a file
        whose owner is dead, and is taken likewise.
        """
        previous = _read(path)
        if previous is not None and not self._is_dead(previous):
            previous = self._watch(path, previous)
        if previous is None:
            self._create(path)
            return
        claim = path.with_name(f"{path.name}.after-{previous.about.get('token', 'unknown')}")
        self._take(claim)
        now = _read(path)
        if now == previous:
            with suppress(FileNotFoundError):  # somebody took us for dead, and the claim
                claim.rename(path)
        else:  # another was faster, and is done
            claim.unlink(missing_ok=True)
            if now is None:
                self._create(path)
        now = _read(path)
        if now is None or now.about.get("token") != self._token:
            raise self._locked(now, "wait for it")

    def _is_dead(self, owner: _Owner) -> bool:
        """Whether this host can tell: it has just said that nobody holds the file lock, and knows no such process."""
        about = owner.about
        is_here = here().items() <= about.items()
        return self._lock.is_locked and is_here and not _runs(about.get("pid"))

    def _watch(self, path: Path, owner: _Owner) -> _Owner | None:
        """Return it when it is stale, None when it has gone. Trusts no two clocks to agree."""
        left = min(STALE_SECONDS, STALE_SECONDS - self._age(owner))
        deadline = time.monotonic() + left
        if left > 0:
            what = f"{_who(owner)} wrote in {self._folder} last: watching for up to {left:.0f} s whether it lives"
            say(what)
        while time.monotonic() < deadline:
            time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            now = _read(path)
            if now is None:
                return None
            if now != owner:
                raise self._locked(now, f"wait for it; if that process is gone for certain, delete {path}")
        return owner

    def _age(self, owner: _Owner) -> float:
        """Seconds since it was touched, by the file system's own clock."""
        with tempfile.TemporaryFile(dir=self._folder) as probe:
            return os.fstat(probe.fileno()).st_mtime - owner.touched

    def _create(self, path: Path) -> None:
        """Write who we are into a file that must not be there: the act that one process alone can do, on any host."""
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        about = {**here(), "pid": os.getpid(), "started": started, "token": self._token}
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError as error:
            raise self._locked(_read(path), "wait for it") from error
        try:
            os.write(file, (json.dumps(about) + "\n").encode())
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
        owner = _read(self._path)
        return owner is not None and owner.about.get("token") == self._token

    def _locked(self, owner: _Owner | None, advice: str) -> LockedError:
        return LockedError(f"{self._folder} is being written by another process ({_who(owner)}): {advice}")


def _runs(pid: Any) -> bool:
    """Return whether another process has this number; if it is not the owner, the lock is watched in vain."""
    return isinstance(pid, int) and pid != os.getpid() and process_exists(pid)


def _who(owner: _Owner | None) -> str:
    about = {} if owner is None else owner.about
    if "pid" not in about:
        return "owner.json does not say which"
    return f"pid {about['pid']} on {about.get('host', '?')}, started {about.get('started', '?')}"


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
