"""Packed folders of strangers: crafted manifests, archives and checksums are refused."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
from pictures import content, picture

from isda_repro.data import DataError, Packing, load_packed, pack, verify
from isda_repro.data.decode import UnreadableError, decoded

ARCHIVES = [*(f"train-{i:05}.zip" for i in range(3)), "val-00000.zip", "val-00001.zip"]


def write(source, folder):
    said = []
    pack(source, folder, Packing(size=32, images_per_archive=10), workers=1, skip_unreadable=False, report=said.append)
    return said


def load(folder):
    return load_packed("pets", folder, image_size=16)


CRAFTED = {
    "images": [
        *({}, [], None, {"train": 24}, {"train": 24, "val": 0}),
        *({"train": train, "val": 12} for train in (-1, "24", 24.0, True, 2**40, 10**30)),
    ],
    "images_per_archive": [0, -10, "10", None, 1.5, True, [10]],
    "size": [0, "32", None],
    "classes": [{}, "ant", [1, 2], ["ant", "ant"], ["ant", ""], ["a/b", "c"], [None], ["\ud800", "b"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CRAFTED.items() for value in values])
def test_crafted_manifests_are_refused(source, tmp_path, key, value):
    write(source, tmp_path / "out")
    path = tmp_path / "out/packed.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    for attempt in (load, lambda folder: write(source, folder)):
        with pytest.raises(DataError, match=r"packed\.json"):
            attempt(tmp_path / "out")


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000, '{"a":' * 100_000, "\xff", "1" * 5000, ""])
def test_manifests_that_are_no_object_are_refused(tmp_path, text):
    (tmp_path / "packed.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"packed\.json"):
        load(tmp_path)


def crafted_zip(path, size=None, offset=None, name="cat/3.ppm", flags=None):
    """Write an archive of one image, whose directory states another size, offset or flags."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content(picture(1), "PPM"))
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    if size is not None:
        data[directory + 20 : directory + 28] = struct.pack("<II", size, size)
    if offset is not None:
        data[directory + 42 : directory + 46] = struct.pack("<I", offset)
    if flags is not None:
        data[directory + 8 : directory + 10] = struct.pack("<H", flags)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "options",
    [
        *({key: value} for key in ("size", "offset") for value in (10**6, 2**32 - 2)),
        *({"name": name} for name in ("/etc/passwd", "../../x.ppm", "cat/" + "x" * 5000)),
        {"flags": 1},
        {"name": "cat/\u00e9.ppm", "flags": 0},
    ],
)
def test_crafted_archives_are_refused(source, tmp_path, options):
    write(source, tmp_path / "out")
    crafted_zip(tmp_path / "out/val-00001.zip", **options)
    if options.get("flags") == 0:  # a name that is no ASCII without the flag of UTF-8: read as such
        assert len(load(tmp_path / "out").test) == 11
        return
    with pytest.raises(DataError, match="out"):
        load(tmp_path / "out")


@pytest.mark.parametrize("size", ["0 0", "0 5", "5 0"])
def test_images_without_pixels_are_unreadable(size):
    with pytest.raises(UnreadableError):
        decoded(bytearray(f"P6\n{size}\n255\n".encode()))


def test_checksums_name_no_other_files(source, tmp_path):
    write(source, tmp_path / "out")
    with (tmp_path / "out/SHA256SUMS").open("ab") as file:
        file.write(b"0" * 64 + b"  ../../secret\n" + b"1" * 64 + b"  /etc/passwd\n\xff\n")
    found = verify("folder", tmp_path / "out")
    assert [file.path for file in found.files] == ARCHIVES
    assert found.ok


@pytest.mark.parametrize("name", ["packed.json", "SHA256SUMS"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_read(source, tmp_path, name, make):
    """Reading a pipe would wait for ever."""
    write(source, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    make(tmp_path / "out" / name)
    with pytest.raises(DataError, match="out"):
        load(tmp_path / "out")
