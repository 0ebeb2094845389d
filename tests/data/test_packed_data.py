"""Archives of smaller images: what is in them, what is read from them, interruptions and damage."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from pictures import content, make_folder, picture

from isda_repro.data import Crop, DataError, Packing, load_folder, load_packed, pack, packing, verify
from isda_repro.data.decode import decoded, scaled, shorter_side
from isda_repro.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def source(tmp_path):
    return load_folder("pets", make_folder(tmp_path / "pets"), image_size=16)


def write(source, folder, *, skip_unreadable=False, workers=1, **options):
    said = []
    packed = Packing(**{"size": 32, "images_per_archive": 10, **options})
    pack(source, folder, packed, workers=workers, skip_unreadable=skip_unreadable, report=said.append)
    return said


def test_archives_hold_each_image_smaller_and_any_tool_opens_them(source, tmp_path):
    write(source, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    archives = [*(f"train-{i:05}.zip" for i in range(3)), "val-00000.zip", "val-00001.zip"]
    assert names == sorted(["SHA256SUMS", "packed.json", *archives])
    with zipfile.ZipFile(tmp_path / "out/train-00000.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:2] == ["ant/0.jpg.ppm", "ant/1.jpg.ppm"]
        pixels = decoded(archive.read("ant/1.jpg.ppm"))
    original = decoded(source.train.read(1))
    height, width = original.shape[:2]
    expected = original
    if min(height, width) > 32:
        expected = scaled(original, (0, 0, height, width), shorter_side(height, width, 32))
    assert torch.equal(pixels, expected)
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, check=False)
    assert sums.returncode == 0


def test_the_packed_source_is_the_source(source, tmp_path):
    write(source, tmp_path / "out", workers=2)
    packed = load_packed("pets", tmp_path / "out", image_size=16)
    assert packed.class_names == source.class_names
    for one, other in ((packed.train, source.train), (packed.test, source.test)):
        assert torch.equal(one.targets, other.targets)
        for index in range(len(one)):
            assert one.where(index).endswith(f"entry {'/'.join(other.where(index).split('/')[-2:])}.ppm")
    part = packed.train.select(torch.tensor([17, 2]))
    assert part.read(1) == packed.train.read(17)
    assert part.targets.tolist() == [0, 2]
    by_folder = load_folder("pets", tmp_path / "out", image_size=16)  # dataset=folder finds archives too
    assert by_folder.train.read(5) == packed.train.read(5)
    held = load_packed("pets", tmp_path / "out", image_size=16, holdout=6, train_limit=3)
    assert (len(held.train), len(held.test), held.evaluated_on) == (3, 6, "holdout")


def test_evaluation_sees_the_very_same_pixels(source, tmp_path):
    """At 28 pixels, for which the shorter side is scaled to 32."""
    write(source, tmp_path / "out")
    packed = load_packed("pets", tmp_path / "out", image_size=28)
    crop, generator = Crop(28, "center"), torch.Generator()
    for index in range(len(source.test)):
        one, other = (crop(decoded(split.read(index)), generator) for split in (source.test, packed.test))
        assert torch.equal(one, other)


def test_jpegs_are_much_smaller(source, tmp_path):
    write(source, tmp_path / "raw")
    write(source, tmp_path / "jpeg", format="jpeg", quality=80)
    sizes = {kind: sum(path.stat().st_size for path in (tmp_path / kind).glob("*.zip")) for kind in ("raw", "jpeg")}
    assert sizes["jpeg"] < sizes["raw"] / 2
    raw, jpeg = (load_packed("pets", tmp_path / kind, image_size=16).train for kind in ("raw", "jpeg"))
    difference = decoded(raw.read(3)).int() - decoded(jpeg.read(3)).int()
    assert 0 < difference.abs().float().mean() < 8


def test_the_same_bytes_each_time_whatever_the_workers(source, tmp_path):
    write(source, tmp_path / "one", workers=1)
    write(source, tmp_path / "two", workers=3)
    assert (tmp_path / "one/SHA256SUMS").read_text() == (tmp_path / "two/SHA256SUMS").read_text()


def test_interrupted_it_goes_on(source, tmp_path, monkeypatch):
    written = []
    original = packing._write_archive

    def interrupted(path, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        original(path, *arguments)
        written.append(path.name)

    monkeypatch.setattr(packing, "_write_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "out")
    with pytest.raises(
        DataError, match="is not whole: 3 of 5 archives are not there or not finished, the first is train-"
    ):
        load_packed("pets", tmp_path / "out", image_size=16)
    monkeypatch.setattr(
        packing, "_write_archive", lambda path, *rest: (original(path, *rest), written.append(path.name))
    )
    write(source, tmp_path / "out")
    assert sorted(written) == [*(f"train-{i:05}.zip" for i in range(3)), "val-00000.zip", "val-00001.zip"]
    write(source, tmp_path / "out")  # finished: nothing is written again
    assert len(written) == 5
    assert len(load_packed("pets", tmp_path / "out", image_size=16).train) == 24


def test_killed_it_goes_on(root, tmp_path, source):
    program = f"""
import time
from isda_repro.data import packing, Packing, pack, load_folder
original = packing._encoded
def slow(*arguments):
    time.sleep(0.05)
    return original(*arguments)
packing._encoded = slow
source = load_folder("pets", {str(tmp_path / "pets")!r}, image_size=16)
pack(source, {str(tmp_path / "out")!r} and __import__("pathlib").Path({str(tmp_path / "out")!r}),
     Packing(size=32, images_per_archive=10), workers=1, skip_unreadable=False, report=print)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, env=dict(os.environ), cwd=root
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/train-00000.zip").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    write(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    write(source, tmp_path / "undisturbed")
    for path in sorted((tmp_path / "undisturbed").glob("*.zip")):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_other_settings_or_images_are_not_mixed(source, tmp_path):
    write(source, tmp_path / "out")
    with pytest.raises(DataError, match="packed otherwise, or of other images"):
        write(source, tmp_path / "out", size=24)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(DataError, match="mine is not empty"):
        write(source, tmp_path / "mine")
    packed = load_packed("pets", tmp_path / "out", image_size=16)
    with pytest.raises(DataError, match="is not a folder of image files"):
        write(packed, tmp_path / "again")


def test_unreadable_images_stop_it_or_are_left_out(tmp_path):
    root = make_folder(tmp_path / "pets")
    (root / "train/bee/2.jpg").write_bytes(content(picture(1))[:-200])
    source = load_folder("pets", root, image_size=16)
    with pytest.raises(DataError, match=r"bee/2\.jpg cannot be read as an image .* unreadable=skip"):
        write(source, tmp_path / "out")
    said = write(source, tmp_path / "out", skip_unreadable=True)
    assert any("left out" in line and "bee/2.jpg" in line for line in said)
    packed = load_packed("pets", tmp_path / "out", image_size=16)
    assert torch.bincount(packed.train.targets).tolist() == [8, 7, 8]


def test_no_room_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"has room for 0.0 GB, and about .* are needed: give output= on another disk"):
        write(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_damage_is_found(source, tmp_path):
    write(source, tmp_path / "out")
    assert verify("folder", tmp_path / "out").ok
    archive = tmp_path / "out/train-00001.zip"
    whole = archive.read_bytes()
    harmed = bytearray(whole)
    harmed[len(harmed) // 3] ^= 255
    archive.write_bytes(harmed)
    found = verify("folder", tmp_path / "out")
    assert [file.path for file in found.files if file.state != "ok"] == ["train-00001.zip"]
    archive.write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"train-00001\.zip cannot be read \(.*\): delete it and pack again"):
        load_packed("pets", tmp_path / "out", image_size=16)
    archive.unlink()
    with pytest.raises(DataError, match="not whole: 1 of 5"):
        load_packed("pets", tmp_path / "out", image_size=16)
    write(source, tmp_path / "out")
    assert archive.read_bytes() == whole


def test_an_archive_that_changes_while_it_is_read_is_an_error(source, tmp_path):
    write(source, tmp_path / "out")
    packed = load_packed("pets", tmp_path / "out", image_size=16).train
    path = tmp_path / "out/train-00002.zip"
    with path.open("r+b") as file:  # in place: the file stays open
        file.truncate(100)
    with pytest.raises(OSError, match="damaged, or another one"):
        packed.read(23)


@pytest.mark.parametrize("options", [{"format": "png"}, {"quality": 0}, {"size": 0}, {"images_per_archive": 0}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Packing(**options)


def test_nothing_packed_is_one_sentence(tmp_path):
    with pytest.raises(
        DataError, match=r"nothing is packed in .*imagenet_packed or .*: write it with python scripts/data"
    ):
        load_packed("imagenet_packed", tmp_path, image_size=16)
    (tmp_path / "packed.json").write_text("{}")
    with pytest.raises(DataError, match=r"packed\.json cannot be read .*pack the data anew"):
        load_packed("imagenet_packed", tmp_path, image_size=16)
