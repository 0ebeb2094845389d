"""Atomic writes: a file is whole or absent, and is flushed to the disk."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from isda_repro.files import atomic_write, cache_folder, named, rename_aside, sha256


def test_written_file_replaces_the_old_one_and_leaves_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(number):
        info = os.fstat(number)
        done.append("folder" if stat.S_ISDIR(info.st_mode) else f"{info.st_size} bytes")
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: done.append("name") or replace(*names))
    with atomic_write(tmp_path / "file") as file:
        file.write(b"12345")
    assert done == ["5 bytes", "name", "folder"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("defect"), KeyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), OSError),
    ],
)
def test_error_while_writing_changes_nothing(tmp_path, error, expected):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(expected) as caught:
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    if expected is OSError:
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


def test_error_that_came_of_a_full_disk_is_reported_as_one(tmp_path):
    """torch.save raises a RuntimeError of its own after a write has failed; the OSError must be reported."""

    def write():
        with atomic_write(tmp_path / "file"):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            finally:
                raise RuntimeError("unexpected pos")

    with pytest.raises(OSError, match="file") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC


def test_folder_that_is_missing_is_named_by_the_file_and_not_by_the_temporary_one(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)


def test_move_aside_takes_the_first_free_name(tmp_path):
    names = []
    for content in ("a", "b"):
        (tmp_path / "file").write_text(content)
        names.append(rename_aside(tmp_path / "file", "before"))
    assert names == [tmp_path / "file.before-1", tmp_path / "file.before-2"]
    assert [name.read_text() for name in names] == ["a", "b"]
    assert not (tmp_path / "file").exists()


def test_error_keeps_the_name_that_it_has(tmp_path):
    assert named(OSError(5, "x", "one"), Path("other")).filename == "one"
    assert named(OSError(5, "x"), Path("other")).filename == "other"


def test_sha256_is_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "isda_repro"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "isda_repro"


def test_a_user_without_a_home_directory_has_a_cache_too(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def unknown(*_):
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert cache_folder().is_absolute()
    assert not any(cache_folder().parent.parent.iterdir()), "nobody else's files"
