"""Lock on a run's directory, so that only one process at a time writes in it.

Two mechanisms work together, because neither is enough alone:

- The operating system's file lock (``lock``) is released when its owner dies, however it dies. But some shared file
  systems keep it within one host, and some have none.
- ``owner.json`` can be created by one process only and holds across hosts, but it outlives its owner. A living owner
  touches it regularly; a file that is no longer touched is stale.
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
ALIVE_SECONDS = 60.0  # an owner on another host counts as alive this long after a heartbeat (one every 20 s)


def here() -> dict[str, str]:
    """Return the name of this host and the id of its current boot.

    The boot id tells whether a recorded pid can still be meant: after a restart no earlier process is alive, and its
    pid may belong to another one. It is empty on systems other than Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        boot = ""
    return {"host": socket.gethostname(), "boot": boot}


def lives(folder: Path) -> bool:
    """Return whether a process is working on the run in ``folder``.

    On this host the process table decides. For an owner on another host, the age of the last heartbeat does.
    """
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
    """Return the pid of the process that works on the run, or None if none is alive on this host."""
    about = _owner(folder)
    if not here().items() <= about.items():  # from before a restart: another process may have this pid now
        return None
    pid = about.get("pid")
    return pid if isinstance(pid, int) and process_exists(pid) else None


def _owner(folder: Path) -> dict[str, Any]:
    """Return the content of ``owner.json``, or {} if the file is absent or torn."""
    try:
        about = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def process_exists(pid: int) -> bool:
    """Return whether a process with this pid exists on this host, of whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0  # several heartbeats, plus the delay with which a shared file system may show one
LOOK_SECONDS = 1.0  # interval at which another owner's heartbeat is polled
NO_FILE_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class LockedError(UserError):
    """Another process writes in the directory, or has taken over the lock of this one."""


class _Owner(NamedTuple):
    """Content of ``owner.json``, and the time of its last heartbeat by the file system's clock."""

    about: dict[str, Any]
    touched: float


class FolderLock:
    """Exclusive lock on a run's directory, held for the duration of a ``with`` block.

    If the recorded owner is on this host, entering either fails or takes the lock over at once. If the owner is on
    another host, or the operating system cannot say for certain that it is dead, entering watches ``owner.json`` until
    the owner touches it (then it fails) or it is stale (then it takes over), for two minutes at most. So a run that was
    moved to another host continues without help.

    Args:
        folder: the directory to lock; must exist.

    Raises:
        LockedError: on entering, if another process holds the lock; the message names its host, pid and start time, and
            says how to break the lock.
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
        """Continue to hold the lock after its directory has been renamed to ``folder``."""
        self._folder, self._path = folder, folder / NAME

    def ensure_held(self) -> None:
        """Check that this process still holds the lock; call it before each write.

        Raises:
            LockedError: another process took this one for dead (it slept, or the file system did) and has continued the
                run; this process must write nothing more.
        """
        if not self._is_ours():
            raise self._locked(_read(self._path), "this one stood still for too long and has lost the run")

    # ------------------------------------------------------------------------------------------------ taking it over

    def _take(self, path: Path) -> None:
        """Make this process the owner that ``path`` names.

        Of several processes that find the previous owner dead, one wins: the one that creates the claim file. It may
        die before it has renamed the claim to ``path``. Then the claim is itself an owner file whose owner is dead, and
        the next process takes it over in the same way.
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
            with suppress(FileNotFoundError):  # another process took us for dead and took over the claim
                claim.rename(path)
        else:  # another process was faster and has finished
            claim.unlink(missing_ok=True)
            if now is None:
                self._create(path)
        now = _read(path)
        if now is None or now.about.get("token") != self._token:
            raise self._locked(now, "wait for it")

    def _is_dead(self, owner: _Owner) -> bool:
        """Return whether this host can tell that an owner is dead.

        It can if the owner was started here since the last boot, this process holds the file lock, and no other process
        has the owner's pid.
        """
        about = owner.about
        is_here = here().items() <= about.items()
        return self._lock.is_locked and is_here and not _runs(about.get("pid"))

    def _watch(self, path: Path, owner: _Owner) -> _Owner | None:
        """Watch an owner's heartbeat: return the owner once it is stale, None if its file disappears.

        It compares no clock with another host's: only this process's monotonic clock, and the file system's with
        itself.

        Raises:
            LockedError: the owner is alive, since its file has changed.
        """
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
        """Return the seconds since an owner's last heartbeat, by the file system's own clock."""
        with tempfile.TemporaryFile(dir=self._folder) as probe:
            return os.fstat(probe.fileno()).st_mtime - owner.touched

    def _create(self, path: Path) -> None:
        """Create the owner file with this process's identity.

        The file must not exist yet: exclusive creation is the one step that only a single process can do, on any host.

        Raises:
            LockedError: another process has created it first.
            OSError: it cannot be written; the error names the file.
        """
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
        """Touch the owner file every ``HEARTBEAT_SECONDS`` until the lock is released; runs in a thread of its own."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                if self._is_ours():
                    os.utime(self._path)
            except OSError:  # the directory is gone or out of reach: other processes will see no heartbeat
                continue

    def _is_ours(self) -> bool:
        owner = _read(self._path)
        return owner is not None and owner.about.get("token") == self._token

    def _locked(self, owner: _Owner | None, advice: str) -> LockedError:
        return LockedError(f"{self._folder} is being written by another process ({_who(owner)}): {advice}")


def _runs(pid: Any) -> bool:
    """Return whether a process other than this one has this pid.

    It need not be the owner, since pids are reused. Then watching the lock costs time but does no harm.
    """
    return isinstance(pid, int) and pid != os.getpid() and process_exists(pid)


def _who(owner: _Owner | None) -> str:
    about = {} if owner is None else owner.about
    if "pid" not in about:
        return "owner.json does not say which"
    return f"pid {about['pid']} on {about.get('host', '?')}, started {about.get('started', '?')}"


def _read(path: Path) -> _Owner | None:
    """Return the owner that a file names, or None if there is no file.

    A torn file gives an empty owner with its age.
    """
    try:
        with path.open("rb") as file:  # opening refreshes the attributes on a shared file system, a bare stat does not
            touched = os.fstat(file.fileno()).st_mtime
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        about = json.loads(content)
    except ValueError:
        about = {}
    return _Owner(about if isinstance(about, dict) else {}, touched)
