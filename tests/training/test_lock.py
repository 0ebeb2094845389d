"""One process at a time writes in a run's folder, on this host and on a shared file system."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from isda_repro.training.lock import STALE_SECONDS, FolderLock, LockedError

HOLD = "import sys, time; from pathlib import Path; from isda_repro.training.lock import FolderLock\n"


def owned_by(folder, host, seconds_ago):
    owner = folder / "owner.json"
    owner.write_text(json.dumps({"host": host, "pid": 7, "started": "2026-11-01 12:00:00 +0000"}))
    then = time.time() - seconds_ago
    os.utime(owner, (then, then))


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


def test_a_process_on_another_host_is_believed_while_its_heart_beats(tmp_path):
    owned_by(tmp_path, "elsewhere", seconds_ago=STALE_SECONDS / 2)
    with pytest.raises(LockedError, match=r"pid 7 on elsewhere, .* is gone for certain, delete .*owner.json"):
        FolderLock(tmp_path).__enter__()
    owned_by(tmp_path, "elsewhere", seconds_ago=STALE_SECONDS + 1)
    with FolderLock(tmp_path):
        pass


def test_an_owner_of_this_host_without_its_lock_is_dead(tmp_path):
    owned_by(tmp_path, socket.gethostname(), seconds_ago=0)
    with FolderLock(tmp_path):
        pass


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
    """Each waits for the same moment; the one that gets it holds it longer than the others try."""
    code = HOLD + (
        "while time.time() < float(sys.argv[2]): pass\n"
        "try:\n"
        "    with FolderLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(1)\n"
        "except ValueError: print('refused')"
    )
    at = str(time.time() + 1.5)
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), at], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in several]
    assert sorted(said) == ["held", *["refused"] * 5]
