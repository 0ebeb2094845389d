"""Atomic writes: a file is whole or absent, and is flushed to the disk."""

import errno
import hashlib
import io
import json
import os
import stat
import xml.dom.minidom
from pathlib import Path

import pytest
from PIL import Image

from isda_repro.errors import UserError
from isda_repro.files import (
    append_to,
    atomic_write,
    cache_folder,
    check_output,
    harmless_cell,
    named,
    open_regular,
    rename_aside,
    sha256,
    write_output,
)
from isda_repro.tables.render.tidy_csv import csv_file


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


def test_a_user_without_a_home_directory_has_a_private_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def unknown(*_):
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert cache_folder().parent.parent.parent == tmp_path
    assert Path(os.environ["HOME"]).stat().st_mode & 0o777 == 0o700
    Path(os.environ["HOME"]).chmod(0o777)
    monkeypatch.delenv("HOME")
    with pytest.raises(UserError, match="HOME"):
        cache_folder()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"long")])
@pytest.mark.parametrize("swapped", [False, True])
def test_file_that_is_not_regular_or_too_long_is_not_opened(tmp_path, monkeypatch, make, swapped):
    """Another file may come to be there after the first look."""
    path, other, opened = tmp_path / "file", tmp_path / "other", os.open
    make(other)
    if swapped:
        path.write_bytes(b"x")
        monkeypatch.setattr(os, "open", lambda _, *flags: opened(other, *flags))
    else:
        other.rename(path)
    with pytest.raises(OSError, match="file"):
        open_regular(path, most=3)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent / "theirs")])
def test_nothing_is_appended_to_what_is_no_file_of_the_folder(tmp_path, make):
    (tmp_path / "theirs").write_bytes(b"theirs")
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        append_to(tmp_path / "metrics.jsonl")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    for _ in range(2):
        with append_to(tmp_path / "theirs") as file:
            file.write(b"!")
    assert (tmp_path / "theirs").read_bytes() == b"theirs!!"


@pytest.mark.parametrize(
    ("call", "number", "is_error"),
    [(call, number, False) for call in ("fsync", "open") for number in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)]
    + [("open", errno.EACCES, False), ("fsync", errno.EIO, True), ("fsync", errno.ENOSPC, True)],
)
def test_folder_that_cannot_be_flushed_is_an_error_only_if_the_disk_fails(
    tmp_path, monkeypatch, call, number, is_error
):
    """CIFS and gcsfuse refuse to flush a folder."""
    original = getattr(os, call)

    def refusing(what, *more):
        if stat.S_ISDIR(os.fstat(what).st_mode) if call == "fsync" else Path(what).is_dir():
            raise OSError(number, os.strerror(number))
        return original(what, *more)

    def write():
        with atomic_write(tmp_path / "file") as file:
            file.write(b"new")

    monkeypatch.setattr(os, call, refusing)
    if is_error:
        with pytest.raises(OSError, match=str(tmp_path)) as caught:
            write()
        assert caught.value.errno == number
    else:
        write()
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOSPC])
def test_file_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch, number):
    def refusing(_number):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(OSError, match="file"), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == []


def test_file_is_not_replaced_if_it_has_become_anothers(tmp_path):
    def lost():
        raise RuntimeError("another process has this run")

    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "file", before_replace=lost) as file:
        file.write(b"ours")
    assert (tmp_path / "file").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------ files that the user names

PNG = io.BytesIO()
Image.new("RGB", (5, 3), (1, 2, 3)).save(PNG, "PNG")
CONTENTS = {
    "a.md": b"# a\n" + 9999 * b"long ",
    "a.html": b"<!DOCTYPE html>\n",
    "a.tex": b"\\begin{tabular}\n",
    "a.svg": b"<svg/>\n",
    "a.json": b'{"a": 1}\n',
    "a.csv": csv_file([]).encode(),
    "a.png": PNG.getvalue(),
}


READERS = {
    ".json": json.loads,
    ".svg": xml.dom.minidom.parseString,
    ".png": lambda content: Image.open(io.BytesIO(content)).load(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_output_replaces_itself_and_nothing_else(tmp_path, name):
    path = tmp_path / "new" / name
    write_output(path, CONTENTS[name])
    once = path.read_bytes()
    check_output(path)
    write_output(path, CONTENTS[name])
    write_output(path.with_stem("copy"), once)
    assert path.read_bytes() == path.with_stem("copy").read_bytes() == once
    READERS.get(path.suffix, bytes)(once)
    path.write_bytes(CONTENTS["a.md" if name == "a.csv" else name])
    for refused in (check_output, lambda it: write_output(it, CONTENTS[name])):
        with pytest.raises(UserError, match=name) as caught:
            refused(path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == CONTENTS["a.md" if name == "a.csv" else name]
    write_output(path, CONTENTS[name], is_own_place=True)
    assert path.read_bytes() == once


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere"), Path.touch])
def test_output_that_is_no_file_of_ours_is_refused(tmp_path, make):
    make(tmp_path / "a.md")
    with pytest.raises(UserError, match=r"a\.md"):
        write_output(tmp_path / "a.md", "# a")


@pytest.mark.parametrize("text", ["=1+1", " =1+1", "\t@x", "+1", "-1"])
def test_formula_of_a_spreadsheet_gets_an_apostrophe(text):
    assert harmless_cell(text) == f"'{text}"
    assert harmless_cell(f"a{text}") == f"a{text}"


def test_committed_outputs_can_be_written_again(root):
    """Results of runs, ``<seed>.json``, which only ``overwrite=true`` replaces, and trained weights are left out."""
    kept = [path for path in (root / "results").rglob("*") if path.is_file() and path.suffix != ".pt"]
    found = [path for path in kept if not path.stem.isdigit()]
    assert len(found) > 40
    for path in [*found, root / "isda_repro/tables/costs.json"]:
        check_output(path)
