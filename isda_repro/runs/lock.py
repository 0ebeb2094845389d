"""Lock on a run's directory, so that only one process at a time writes in it.

Two mechanisms work together, because neither is enough alone:

- The operating system's file lock (``lock``) is released when its owner dies, however it dies. But some shared file
  systems keep it within one host, and some have none.
- ``owner.json`` can be created by one process only and holds across hosts, but it outlives its owner. A living owner
  touches it regularly; a file that is no longer touched is stale.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import stat
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
from isda_repro.files import named, open_regular, sha256

NAME, LOCK = "owner.json", "lock"
ALIVE_SECONDS = 60.0  # an owner counts as alive this long after a heartbeat (one every 20 s)
CLOCK_SKEW_SECONDS = 600.0  # by which the clock of a file server may be ahead; a later heartbeat was made up
MOST_PID = 2**31 - 1
MOST_BYTES = 65536  # of an owner.json
BEGINS = b'{"host": '
KEYS = {"host", "boot", "pid", "start", "started", "token"}  # of an owner.json; older ones have no start


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


def process_start(pid: int) -> int | None:
    """Return when a process of this host started, in clock ticks after the boot.

    With the pid and the boot id it identifies a process, also after its pid has been given again. It is None if there
    is no such process, if it has ended and its parent has not noticed, and on systems other than Linux.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the name may have blanks
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def lives(folder: Path) -> bool:
    """Return whether a process is working on the run in ``folder``.

    On this host it must exist, and hold the file lock or have a heartbeat (a suspended process has none). On another
    host the heartbeat decides.
    """
    owner = _of_folder(folder)
    if owner is None or "pid" not in owner.about:
        return False
    beats = -CLOCK_SKEW_SECONDS < time.time() - owner.touched < ALIVE_SECONDS
    if owner.about.get("host") != socket.gethostname():
        return beats
    return _is_here(owner.about) and _exists(owner.about) and (beats or _is_locked(folder))


def pid_here(folder: Path) -> int | None:
    """Return the pid of the process that works on the run, or None unless it certainly is a process of this host.

    That is certain if ``owner.json`` has the host, its boot, and the pid and start time of a living process, and if the
    file lock is held. So neither a file that was copied or made up, nor a pid that was given again, names a process.
    """
    owner = _of_folder(folder)
    if owner is None or not _is_here(owner.about) or owner.about.get("start") is None:
        return None
    return int(owner.about["pid"]) if _exists(owner.about) and _is_locked(folder) else None


def is_left_over(folder: Path) -> bool:
    """Return whether a process of this host has died without removing the lock, and this one may remove it."""
    owner = _of_folder(folder)
    if owner is None or not _is_here(owner.about) or _exists(owner.about):
        return False
    return os.access(folder, os.W_OK)


def _of_folder(folder: Path) -> _Owner | None:
    try:
        return _read(folder / NAME)
    except OSError:
        return None


def _is_here(about: dict[str, Any]) -> bool:
    """Return whether an owner was started on this host since its last boot."""
    return here().items() <= about.items()


def _exists(about: dict[str, Any]) -> bool:
    """Return whether the process that an owner file of this host names exists.

    Files of older versions have no start time. Then a process with the same pid is taken for it.
    """
    pid = about.get("pid")
    if type(pid) is not int or not 0 < pid <= MOST_PID:
        return False
    if (start := about.get("start")) is not None:
        return bool(process_start(pid) == start)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_locked(folder: Path) -> bool:
    """Return whether a process holds the file lock; False if there is none, or the file system has no locks.

    A lock that is free is held for a moment. Call this only if ``owner.json`` names a living process, which has taken
    the lock before it wrote the file.
    """
    try:
        number = os.open(folder / LOCK, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(number)
    return False


HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0  # several heartbeats, plus the delay with which a shared file system may show one
LOOK_SECONDS = 1.0  # interval at which another owner's heartbeat is polled
NO_FILE_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class LockedError(UserError):
    """Another process writes in the directory, or has taken over the lock of this one."""


class _Owner(NamedTuple):
    """Content of ``owner.json``, the time of its last heartbeat by the file system's clock, and whether it is ours."""

    about: dict[str, Any]
    touched: float
    is_ours: bool


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
        self._lock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> Self:
        self._refuse_foreign_lock()
        try:
            self._lock.acquire()
        except Timeout as error:
            raise self._locked(_read(self._path), "wait for it, or stop it") from error
        except OSError as error:
            if error.errno not in NO_FILE_LOCKS:
                raise named(error, self._folder / LOCK) from error
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
                (self._folder / LOCK).unlink(missing_ok=True)
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

    def _refuse_foreign_lock(self) -> None:
        """Raise a UserError if ``lock`` is not the empty file that this class makes, and would delete."""
        path = self._folder / LOCK
        with suppress(FileNotFoundError):
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode) or about.st_size > 0:
                raise UserError(f"{path} is not the lock of this program: give it another name, and run this again")

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
        claim = path.with_name(f"{path.name}.after-{_token(previous)}")
        self._take(claim)
        now = _read(path)
        if now == previous:
            if not previous.is_ours:
                _copy_aside(path)
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

        It can if the owner was started here since the last boot, this process holds the file lock, and the owner's
        process is this one or does not exist.
        """
        about = owner.about
        return self._lock.is_locked and _is_here(about) and (about.get("pid") == os.getpid() or not _exists(about))

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
        pid = os.getpid()
        about = {**here(), "pid": pid, "start": process_start(pid), "started": started, "token": self._token}
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


def _token(owner: _Owner) -> str:
    """Return an owner's token, which becomes a part of a file name, or a word for one that is no token."""
    token = str(owner.about.get("token"))
    return token if re.fullmatch(r"[0-9a-z-]{1,64}", token) else "unknown"


def _who(owner: _Owner | None) -> str:
    about = {} if owner is None else owner.about
    if "pid" not in about:
        return "owner.json does not say which"
    pid, host, started = (re.sub(r"[^ -~]", "?", str(about.get(key, "?")))[:64] for key in ("pid", "host", "started"))
    return f"pid {pid} on {host}, started {started}"


def _read(path: Path) -> _Owner | None:
    """Return the owner that a file names, or None if there is no file.

    A torn file gives an empty owner with its age.

    Raises:
        OSError: the file cannot be read, or is none that this program writes.
    """
    try:
        with open_regular(path, MOST_BYTES) as file:  # opening refreshes the attributes on a shared file system
            touched = os.fstat(file.fileno()).st_mtime
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        about = json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError):  # torn, or not ours
        return _Owner({}, touched, content.strip(b"\0\n") == b"" or content.startswith(BEGINS))
    if not isinstance(about, dict):
        return _Owner({}, touched, False)
    return _Owner(about, touched, {"host", "pid"} <= about.keys() <= KEYS)


def _copy_aside(path: Path) -> None:
    """Keep a copy of an ``owner.json`` that this program has not written; the name is needed for the owner."""
    copy = path.with_name(f"{path.name}.foreign-{sha256(path)[:8]}")
    with suppress(FileExistsError), open_regular(path, MOST_BYTES) as file, copy.open("xb") as kept:
        kept.write(file.read())
