"""One process at a time writes in a run's folder, on this host and on a shared file system."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from isda_repro.tables import owner as owner_module
from isda_repro.training import lock as lock_module
from isda_repro.training.lock import FolderLock, LockedError

HOLD = "import sys, time; from pathlib import Path; from isda_repro.training.lock import FolderLock\n"


def owned_by(folder, host, seconds_ago, name="owner.json", **more):
    owner = folder / name
    owner.write_text(json.dumps({"host": host, "pid": 7, "started": "2026-11-01 12:00:00 +0000", **more}))
    then = time.time() - seconds_ago
    os.utime(owner, (then, then))
    return owner


def a_dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_second_process_is_told_who_holds_it(tmp_path):
    code = HOLD + "with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"pid {holder.pid} on {socket.gethostname()}, started 20.*: wait for it"):
        FolderLock(tmp_path).__enter__()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with FolderLock(tmp_path):  # its owner is dead
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_on_another_host_is_believed_as_soon_as_its_heart_beats(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.02)
    owned_by(tmp_path, "elsewhere", seconds_ago=15)
    beat = threading.Timer(0.3, os.utime, [tmp_path / "owner.json"])
    beat.start()
    begin = time.monotonic()
    with pytest.raises(LockedError, match=r"pid 7 on elsewhere, .* is gone for certain, delete .*owner.json"):
        FolderLock(tmp_path).__enter__()
    assert time.monotonic() - begin < 10
    assert "pid 7 on elsewhere, started 2026" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == ["owner.json"]


@pytest.mark.parametrize("seconds_ago", [0, 1, 1e4, -1e6], ids=["now", "a second ago", "long ago", "in the future"])
def test_a_process_on_another_host_without_a_heartbeat_is_succeeded(tmp_path, monkeypatch, seconds_ago):
    """Whatever the clocks of the two hosts say."""
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("isda_repro.training.lock.STALE_SECONDS", 0.4)
    owned_by(tmp_path, "elsewhere", seconds_ago)
    begin = time.monotonic()
    with FolderLock(tmp_path):
        waited = time.monotonic() - begin
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    assert (waited >= 0.35) == (seconds_ago in (0, -1e6))
    assert list(tmp_path.iterdir()) == []


def test_an_owner_released_while_it_is_watched_is_succeeded(tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.02)
    owned_by(tmp_path, "elsewhere", seconds_ago=0)
    threading.Timer(0.2, (tmp_path / "owner.json").unlink).start()
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("stale", [False, True])
def test_hosts_that_do_not_see_each_others_file_locks_exclude_each_other(tmp_path, monkeypatch, stale):
    """Each thread is a host: a name and a file lock of its own, one folder for all."""
    monkeypatch.setattr("socket.gethostname", lambda: threading.current_thread().name)
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("isda_repro.training.lock.HEARTBEAT_SECONDS", 0.02)
    file_lock = lock_module.FileLock
    monkeypatch.setattr(
        lock_module, "FileLock", lambda path, **options: file_lock(f"{path}.{socket.gethostname()}", **options)
    )
    hosts, rounds = 6, 30
    together, held = threading.Barrier(hosts), []

    def come():
        for number in range(rounds):
            folder = tmp_path / str(number)
            together.wait(timeout=30)
            try:
                with FolderLock(folder) as lock:
                    held.append(number)
                    together.wait(timeout=30)
                    lock.ensure_held()
                    held.append(number)
            except LockedError:
                together.wait(timeout=30)

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


def test_a_process_that_has_lost_the_folder_learns_it_and_leaves_the_other_alone(tmp_path):
    """It stood still, another host took it for dead."""
    with FolderLock(tmp_path) as lock:
        lock.ensure_held()
        owned_by(tmp_path, "elsewhere", seconds_ago=0)
        with pytest.raises(LockedError, match=r"pid 7 on elsewhere.*: this one stood still for too long"):
            lock.ensure_held()
    assert json.loads((tmp_path / "owner.json").read_text())["host"] == "elsewhere"


def test_a_torn_owner_file_is_believed_until_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.training.lock.STALE_SECONDS", 0.2)
    (tmp_path / "owner.json").write_text('{"host": "els')
    with FolderLock(tmp_path):
        pass


def test_a_full_disk_leaves_no_half_an_owner(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match=r"No space left on device.*owner\.json"):
        FolderLock(tmp_path).__enter__()
    monkeypatch.undo()
    with FolderLock(tmp_path):
        pass


def test_an_owner_of_this_host_without_its_lock_is_dead(tmp_path):
    owned_by(tmp_path, seconds_ago=0, **{**owner_module.here(), "pid": a_dead_pid()})
    begin = time.monotonic()
    with FolderLock(tmp_path):
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("known", ["its process runs", "another start of the host"])
def test_an_owner_of_this_host_is_watched_where_it_may_live(tmp_path, monkeypatch, known):
    """Somebody has deleted the file ``lock``, or two hosts have one name."""
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.02)
    other = {"pid": os.getppid()} if known == "its process runs" else {"boot": "another", "pid": a_dead_pid()}
    owner = owned_by(tmp_path, seconds_ago=0, **{**owner_module.here(), **other})
    threading.Timer(0.3, os.utime, [owner]).start()
    with pytest.raises(LockedError, match=f"pid {other['pid']} on .*delete .*owner.json"):
        FolderLock(tmp_path).__enter__()


@pytest.mark.parametrize("authors", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("here", [False, True], ids=["elsewhere", "here"])
def test_a_claim_whose_author_died_blocks_nobody(tmp_path, monkeypatch, authors, torn, here):
    """A process was killed in the microseconds in which it succeeded a dead owner, and so was who succeeded it."""
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("isda_repro.training.lock.STALE_SECONDS", 0.3)
    about = {**owner_module.here(), "pid": a_dead_pid()} if here else {"host": "elsewhere"}
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
def test_a_file_system_without_file_locks_has_the_owner_file(tmp_path, monkeypatch, number):
    def missing(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", missing)
    monkeypatch.setattr("isda_repro.training.lock.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("isda_repro.training.lock.STALE_SECONDS", 0.3)
    monkeypatch.setattr("isda_repro.training.lock.HEARTBEAT_SECONDS", 0.05)
    with FolderLock(tmp_path), pytest.raises(LockedError, match=f"pid {os.getpid()} on"):
        FolderLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    about = {**owner_module.here(), "pid": a_dead_pid()}
    owned_by(tmp_path, seconds_ago=0, **about)
    begin = time.monotonic()
    with FolderLock(tmp_path):
        assert time.monotonic() - begin >= 0.25, "nothing says that it is dead but its heart"


def test_a_file_lock_that_fails_otherwise_names_the_file(tmp_path, monkeypatch):
    def failing(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", failing)
    with pytest.raises(OSError, match=r"Input/output error: .*lock'"):
        FolderLock(tmp_path).__enter__()


def test_a_lock_without_an_owner_file_says_so(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / "owner.json").unlink()
        with pytest.raises(
            LockedError, match=r"another process \(owner.json does not say which\): wait for it, or stop"
        ):
            FolderLock(tmp_path).__enter__()


def test_a_locked_folder_can_be_renamed_and_another_made_in_its_place(tmp_path):
    old, new = tmp_path / "run", tmp_path / "aside"
    old.mkdir()
    with FolderLock(old) as lock:
        old.rename(new)
        lock.follow(new)
        old.mkdir()
        with FolderLock(old):
            assert (old / "owner.json").exists()
    assert list(new.iterdir()) == list(old.iterdir()) == []


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.training.lock.HEARTBEAT_SECONDS", 0.02)
    with FolderLock(tmp_path):
        owner = tmp_path / "owner.json"
        os.utime(owner, (0, 0))
        deadline = time.monotonic() + 5
        while owner.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert owner.stat().st_mtime > 0


def test_of_many_that_come_at_once_one_gets_it(tmp_path):
    """Each says that it is ready and waits for the word; the one that gets it holds it until all have tried."""
    code = HOLD + (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    with FolderLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()\n"
        "except ValueError: print('refused', flush=True)"
    )
    several = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    assert [process.stdout.readline() for process in several] == ["ready\n"] * 6
    for process in several:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in several]
    for process in several:
        process.communicate(timeout=60)
    assert sorted(said) == ["held", *["refused"] * 5]
