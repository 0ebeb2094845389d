"""The lock of a run's folder: one process at a time writes in it, on one host and on a shared file system."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from isda_repro.errors import UserError
from isda_repro.runs import lock as lock_module
from isda_repro.runs import lock as owner_module
from isda_repro.runs.lock import LOOK_SECONDS, STALE_SECONDS, FolderLock, LockedError

NO_PROCESS = 2**22 + 1  # larger than any process id of Linux


class Clock:
    """A stub of the module ``time``: sleeping takes no time, and ``act`` is called in the ``at``-th sleep."""

    def __init__(self, at=0, act=None):
        self.now, self.sleeps, self.at, self.act = 1000.0, 0, at, act
        self.strftime = time.strftime

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert 0 < seconds <= LOOK_SECONDS
        self.now += seconds
        self.sleeps += 1
        if self.sleeps == self.at:
            self.act()

    @property
    def slept(self):
        return self.now - 1000


@pytest.fixture
def clock(monkeypatch):
    """Return ``clock(at, act)``, which replaces the clock by which the lock watches other owners."""

    def put(*arguments):
        clock = Clock(*arguments)
        monkeypatch.setattr(lock_module, "time", clock)
        return clock

    return put


def owned_by(folder, host, seconds_ago, name="owner.json", **more):
    owner = folder / name
    owner.write_text(json.dumps({"host": host, "pid": 7, "started": "2026-11-01 12:00:00 +0000", **more}))
    then = time.time() - seconds_ago
    os.utime(owner, (then, then))
    return owner


def held_by_this_process(folder):
    return json.loads((folder / "owner.json").read_text())["pid"] == os.getpid()


HOLD = """
import sys
from pathlib import Path
from isda_repro.runs.lock import FolderLock

print("ready", flush=True)
sys.stdin.readline()
try:
    with FolderLock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except ValueError as error:
    print("refused", error, flush=True)
"""


def test_one_of_several_processes_gets_the_folder_and_is_succeeded_when_it_is_killed(tmp_path):
    """All processes start at the same time; the one that gets the lock holds it until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    several = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    assert [process.stdout.readline() for process in several] == ["ready\n"] * 4
    for process in several:
        process.stdin.write("go\n")
    said = [process.stdout.readline().split(maxsplit=1) for process in several]
    (holder,) = (process for process, words in zip(several, said, strict=True) if words == ["held"])
    assert sorted(words[0] for words in said) == ["held", *["refused"] * 3]
    with pytest.raises(LockedError, match=f"pid {holder.pid} on {socket.gethostname()}"):
        FolderLock(tmp_path).__enter__()
    holder.kill()
    for process in several:
        process.communicate(timeout=60)
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("about", ["elsewhere", "its process runs", "another start of the host"])
def test_owner_that_may_live_is_believed_when_its_heart_beats(tmp_path, clock, about):
    """On one host this happens if the file ``lock`` was deleted, or if two hosts have the same name."""
    here = owner_module.here()
    owner = {
        "elsewhere": {"host": "elsewhere"},
        "its process runs": {**here, "pid": os.getppid()},
        "another start of the host": {**here, "boot": "another", "pid": NO_PROCESS},
    }[about]
    path = owned_by(tmp_path, seconds_ago=15, **owner)
    watching = clock(3, lambda: os.utime(path))
    with pytest.raises(LockedError, match=rf"pid {owner.get('pid', 7)} on {owner['host']}.*owner\.json"):
        FolderLock(tmp_path).__enter__()
    assert watching.sleeps == 3
    assert not held_by_this_process(tmp_path)
    watching = clock(1, lambda: os.utime(path, (0, 0)))
    with pytest.raises(LockedError):  # the file lock was released, so the owner is watched again
        FolderLock(tmp_path).__enter__()
    assert watching.sleeps == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == ["owner.json"]


@pytest.mark.parametrize(
    ("seconds_ago", "watched"), [(0, STALE_SECONDS), (60, STALE_SECONDS - 60), (1e4, 0), (-1e6, STALE_SECONDS)]
)
def test_owner_on_another_host_without_a_heartbeat_is_succeeded(tmp_path, clock, seconds_ago, watched):
    """The hosts' clocks may differ by any amount; real time between two readings of the clock shortens the watch."""
    watching = clock()
    owned_by(tmp_path, "elsewhere", seconds_ago)
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert max(0, watched - 30) <= watching.slept <= watched + 0.1
    assert list(tmp_path.iterdir()) == []


def test_owner_released_while_it_is_watched_is_succeeded(tmp_path, clock):
    watching = clock(2, (tmp_path / "owner.json").unlink)
    owned_by(tmp_path, "elsewhere", seconds_ago=0)
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert watching.sleeps == 2


def test_torn_owner_file_is_believed_until_it_is_old(tmp_path, clock):
    watching = clock()
    (tmp_path / "owner.json").write_text('{"host": "els')
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert watching.slept > STALE_SECONDS - 30


def test_owner_of_this_host_that_is_dead_is_succeeded_at_once(tmp_path, clock):
    watching = clock()
    owned_by(tmp_path, seconds_ago=0, **{**owner_module.here(), "pid": NO_PROCESS})
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert watching.sleeps == 0


@pytest.mark.parametrize("stale", [False, True])
def test_hosts_that_do_not_see_each_others_file_locks_exclude_each_other(tmp_path, monkeypatch, stale):
    """Each thread stands for a host with its own name and file lock; they share one folder."""
    monkeypatch.setattr(socket, "gethostname", lambda: threading.current_thread().name)
    monkeypatch.setattr(lock_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)
    file_lock = lock_module.FileLock
    monkeypatch.setattr(
        lock_module, "FileLock", lambda path, **options: file_lock(f"{path}.{socket.gethostname()}", **options)
    )
    hosts, rounds = 6, 20
    together, held = threading.Barrier(hosts), []

    def come():
        for number in range(rounds):
            folder = tmp_path / str(number)
            together.wait(timeout=60)
            try:
                with FolderLock(folder) as lock:
                    held.append(number)
                    together.wait(timeout=60)
                    lock.ensure_held()
                    held.append(number)
            except LockedError:
                together.wait(timeout=60)

    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
        if stale:
            owned_by(tmp_path / str(number), "a dead host", seconds_ago=1e4)
    threads = [threading.Thread(target=come, name=f"host-{number}", daemon=True) for number in range(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == sorted([*range(rounds)] * 2)


def test_process_that_has_lost_the_folder_learns_it_and_leaves_the_other_alone(tmp_path, monkeypatch):
    """The process was suspended until another host took its lock; its heartbeat must not renew the new owner's."""
    looks, loads = [], json.loads
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.01)
    with FolderLock(tmp_path) as lock:
        lock.ensure_held()
        owner = owned_by(tmp_path, "elsewhere", seconds_ago=1000)
        with pytest.raises(LockedError, match="pid 7 on elsewhere"):
            lock.ensure_held()
        os.utime(owner, (1000, 1000))
        monkeypatch.setattr(json, "loads", lambda text, **_: looks.append(threading.current_thread()) or loads(text))
        wait_until(lambda: sum(thread is not threading.main_thread() for thread in looks) >= 3)
        assert owner.stat().st_mtime == 1000
    assert loads(owner.read_text())["host"] == "elsewhere"


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_heart_beats_while_the_folder_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.01)
    with FolderLock(tmp_path):
        for _ in range(2):
            os.utime(tmp_path / "owner.json", (0, 0))
            wait_until(lambda: (tmp_path / "owner.json").stat().st_mtime > 0)


def test_heart_beats_several_times_before_an_owner_is_taken_for_dead():
    assert STALE_SECONDS >= 3 * lock_module.HEARTBEAT_SECONDS
    assert owner_module.ALIVE_SECONDS >= 2 * lock_module.HEARTBEAT_SECONDS


@pytest.mark.parametrize("authors", [1, 2])
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("here", [False, True], ids=["elsewhere", "here"])
def test_claim_whose_author_died_blocks_nobody(tmp_path, clock, authors, torn, here):
    """A process was killed while it succeeded a dead owner, and so was its own successor."""
    clock()
    about = {**owner_module.here(), "pid": NO_PROCESS} if here else {"host": "elsewhere"}
    name, token = "owner.json", "first"
    owned_by(tmp_path, seconds_ago=0, token=token, **about)
    for number in range(authors):
        name, token = f"{name}.after-{token}", f"successor-{number}"
        claim = owned_by(tmp_path, seconds_ago=0, name=name, token=token, **about)
    if torn:
        claim.write_text("")
    with FolderLock(tmp_path) as lock:
        lock.ensure_held()
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "owner.json"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_file_locks_has_the_owner_file(tmp_path, monkeypatch, clock, number):
    def missing(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", missing)
    clock(1, lambda: os.utime(tmp_path / "owner.json", (0, 0)))
    with FolderLock(tmp_path), pytest.raises(LockedError, match=f"pid {os.getpid()} on"):
        FolderLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    watching = clock()
    owned_by(tmp_path, seconds_ago=0, **{**owner_module.here(), "pid": NO_PROCESS})
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert watching.slept > STALE_SECONDS - 30, "nothing tells that it is dead but its heart"


@pytest.mark.parametrize(("broken", "name"), [("fcntl.flock", "lock"), ("os.write", "owner.json")])
def test_disk_error_names_the_file_and_leaves_the_folder_free(tmp_path, monkeypatch, broken, name):
    def failing(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(broken, failing)
        with pytest.raises(OSError, match="Input/output error") as caught:
            FolderLock(tmp_path).__enter__()
    assert caught.value.filename == str(tmp_path / name)
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)


def test_folder_locked_without_an_owner_file_is_refused(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / "owner.json").unlink()
        with pytest.raises(LockedError, match=r"owner\.json"):
            FolderLock(tmp_path).__enter__()


def test_locked_folder_can_be_renamed_and_another_made_in_its_place(tmp_path):
    old, new = tmp_path / "run", tmp_path / "aside"
    old.mkdir()
    with FolderLock(old) as lock:
        old.rename(new)
        lock.follow(new)
        old.mkdir()
        with FolderLock(old):
            assert (old / "owner.json").exists()
    assert list(new.iterdir()) == list(old.iterdir()) == []


@pytest.mark.parametrize("pid", [0, -1, 10**30, True, "7", None, [], NO_PROCESS])
@pytest.mark.parametrize("token", ["../../escaped", 7, "\n", "x" * 300])
def test_owner_that_can_be_no_process_is_succeeded_at_once(tmp_path, clock, pid, token):
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    watching = clock()
    owned_by(folder, seconds_ago=0, token=token, **{**owner_module.here(), "pid": pid})
    with FolderLock(folder):
        assert held_by_this_process(folder)
    assert watching.sleeps == 0
    assert list(tmp_path.rglob("*")) == [folder.parent, folder]


def test_owner_whose_pid_was_given_again_is_succeeded_at_once(tmp_path, clock):
    """The pid is of a living process, which started at another time."""
    owned_by(tmp_path, seconds_ago=0, **{**owner_module.here(), "pid": os.getppid(), "start": 1})
    assert not owner_module.lives(tmp_path)
    watching = clock()
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    assert watching.sleeps == 0


def test_start_time_is_a_process_s_own(tmp_path):
    assert owner_module.process_start(os.getpid()) > 0
    assert owner_module.process_start(NO_PROCESS) is None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        start = owner_module.process_start(process.pid)
        assert start > owner_module.process_start(os.getpid())
        process.kill()
        wait_until(lambda: owner_module.process_start(process.pid) is None)


@pytest.mark.parametrize(
    "content", [b'{"name": "Bob"}', b"[1]", b"my notes", b'{"host": "h", "pid": 1, "notes": "mine"}\n']
)
def test_owner_file_of_somebody_else_is_kept_beside(tmp_path, clock, content):
    clock()
    (tmp_path / "owner.json").write_bytes(content)
    os.utime(tmp_path / "owner.json", (0, 0))
    with FolderLock(tmp_path):
        assert held_by_this_process(tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == content


@pytest.mark.parametrize("name", ["lock", "owner.json"])
@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(bytes(10**5))], ids=["folder", "pipe", "long"]
)
def test_what_is_no_lock_of_ours_is_named_and_left(tmp_path, name, make):
    make(tmp_path / name)
    before = (tmp_path / name).lstat()
    with pytest.raises((UserError, OSError), match=name):
        FolderLock(tmp_path).__enter__()
    assert (tmp_path / name).lstat() == before
    assert not owner_module.lives(tmp_path)
