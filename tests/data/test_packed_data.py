"""Archives of smaller images: contents, reading, interruptions and damage."""

import errno
import json
import multiprocessing
import resource
import signal
import zipfile
from itertools import product

import pytest
import torch
from pictures import content, make_folder, picture

from isda_repro.data import Crop, DataError, Packing, load_folder, load_packed, pack, packing, verify
from isda_repro.data.decode import decoded, scaled, shorter_side
from isda_repro.errors import UserError
from isda_repro.files import sha256

ARCHIVES = [*(f"train-{i:05}.zip" for i in range(3)), "val-00000.zip", "val-00001.zip"]


def write(source, folder, *, skip_unreadable=False, workers=1, **options):
    said = []
    packed = Packing(**{"size": 32, "images_per_archive": 10, **options})
    pack(source, folder, packed, workers=workers, skip_unreadable=skip_unreadable, report=said.append)
    return said


def load(folder, image_size=16, **options):
    return load_packed("pets", folder, image_size=image_size, **options)


def test_archives_hold_each_image_smaller_and_any_tool_opens_them(source, tmp_path):
    write(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["SHA256SUMS", "packed.json", *ARCHIVES]
    )
    with zipfile.ZipFile(tmp_path / "out/train-00000.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:2] == ["ant/0.jpg.ppm", "ant/1.jpg.ppm"]
        found = [decoded(archive.read(name)) for name in archive.namelist()]
    originals = [decoded(source.train.read(index)) for index in range(10)]
    small = [min(image.shape[:2]) <= 32 for image in originals]
    assert set(small) == {True, False}
    for image, pixels, stays in zip(originals, found, small, strict=True):
        height, width = image.shape[:2]
        expected = image if stays else scaled(image, (0, 0, height, width), shorter_side(height, width, 32))
        assert torch.equal(pixels, expected)
    lines = (tmp_path / "out/SHA256SUMS").read_text().splitlines()  # the format of sha256sum -c
    assert lines == [f"{sha256(tmp_path / 'out' / name)}  {name}" for name in ARCHIVES]


def test_packed_source_is_the_source(source, tmp_path):
    write(source, tmp_path / "out")
    packed = load(tmp_path / "out")
    assert packed.class_names == source.class_names
    for one, other in ((packed.train, source.train), (packed.test, source.test)):
        assert torch.equal(one.targets, other.targets)
        for index in range(len(one)):
            assert one.where(index).endswith(f"{'/'.join(other.where(index).split('/')[-2:])}.ppm")
            assert one.where(index).startswith(str(tmp_path / "out"))
    part = packed.train.select(torch.tensor([17, 2]))
    assert (part.read(0), part.read(1)) == (packed.train.read(2), packed.train.read(17))
    assert part.targets.tolist() == [0, 2]
    assert len({one.digest for one in (packed.train, packed.test, part)}) == 3
    first = torch.arange(3)
    assert len({one.fingerprint(first) for one in (packed.train, packed.test)}) == 2
    again = load(tmp_path / "out")  # now from the cached index
    assert again.train.digest == packed.train.digest
    assert again.train.fingerprint(first) == packed.train.fingerprint(first)
    assert [again.train.read(i) for i in range(24)] == [packed.train.read(i) for i in range(24)]
    by_folder = load_folder("pets", tmp_path / "out", image_size=16)  # dataset=folder finds archives too
    assert by_folder.train.read(5) == packed.train.read(5)
    held = load(tmp_path / "out", holdout=6, train_limit=3)
    assert (len(held.train), len(held.test), held.evaluated_on) == (3, 6, "holdout")
    assert load(tmp_path / "out", imbalance=4).train_counts == [8, 4, 2]
    assert load_folder("pets", tmp_path / "out", image_size=16, imbalance=4).train_counts == [8, 4, 2]
    with pytest.raises(DataError, match=r"1000 .* 3"):
        load(tmp_path / "out", num_classes=1000)


def test_evaluation_sees_the_very_same_pixels(source, tmp_path):
    """At 28 pixels the crop scales the shorter side to 32, the size in the archive."""
    write(source, tmp_path / "out")
    packed = load(tmp_path / "out", image_size=28)
    crop, generator = Crop(28, "center"), torch.Generator()
    for index in range(len(source.test)):
        one, other = (crop(decoded(split.read(index)), generator) for split in (source.test, packed.test))
        assert torch.equal(one, other)


def test_jpegs_are_much_smaller_the_more_so_at_lower_quality(source, tmp_path):
    kinds = {"raw": {}, "jpeg": {"format": "jpeg", "quality": 80}, "coarse": {"format": "jpeg", "quality": 20}}
    sizes = {}
    for kind, options in kinds.items():
        write(source, tmp_path / kind, **options)
        sizes[kind] = sum(path.stat().st_size for path in (tmp_path / kind).glob("*.zip"))
    assert sizes["jpeg"] < sizes["raw"] / 2
    assert sizes["coarse"] < 0.9 * sizes["jpeg"]
    raw, jpeg = (load(tmp_path / kind).train for kind in ("raw", "jpeg"))
    assert jpeg.where(3).endswith(".jpg.jpg")
    difference = decoded(raw.read(3)).int() - decoded(jpeg.read(3)).int()
    assert 0 < difference.abs().float().mean() < 8


def test_archives_are_the_same_bytes_whatever_the_workers(source, tmp_path):
    write(source, tmp_path / "one", workers=1)
    write(source, tmp_path / "two", workers=2)
    assert (tmp_path / "one/SHA256SUMS").read_text() == (tmp_path / "two/SHA256SUMS").read_text()


@pytest.mark.parametrize("where", ["before an archive", "before its checksum"])
def test_interrupted_packing_goes_on_with_what_is_not_finished(source, tmp_path, monkeypatch, where):
    name = {"before an archive": "_write_archive", "before its checksum": "sha256"}[where]
    written, calls, original = [], [], getattr(packing, name)

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(packing, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"3 .* 5 .*train-00002\.zip"):
        load(tmp_path / "out")
    write_archive = packing._write_archive
    monkeypatch.setattr(
        packing, "_write_archive", lambda path, *rest: written.append(path.name) or write_archive(path, *rest)
    )
    write(source, tmp_path / "out")
    assert written == ARCHIVES[2:]
    write(source, tmp_path / "out")  # finished: writes nothing
    assert written == ARCHIVES[2:]
    assert len(load(tmp_path / "out").train) == 24


def pack_and_hang(source, folder, hangs):
    """Pack until the first archive is finished and the second has begun, report that, and wait to be killed."""
    torch.set_num_threads(1)
    encoded = packing._encoded

    def hanging(*arguments):
        if list(folder.glob("train-00001.zip.*")):
            hangs.send(True)
            while True:
                signal.pause()
        return encoded(*arguments)

    packing._encoded = hanging
    write(source, folder)


def test_killed_packing_goes_on_with_what_is_not_finished(tmp_path, source):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=pack_and_hang, args=(source, tmp_path / "out", theirs))
    process.start()
    theirs.close()
    assert ours.recv()  # raises EOFError if the process has died
    process.kill()
    process.join()
    assert list((tmp_path / "out").glob("*.tmp"))
    first = (tmp_path / "out/train-00000.zip").stat()
    write(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert (tmp_path / "out/train-00000.zip").stat().st_ino == first.st_ino
    write(source, tmp_path / "undisturbed")
    for name in ARCHIVES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_other_settings_or_images_are_not_mixed(source, tmp_path):
    write(source, tmp_path / "out")
    other = load_folder("pets", make_folder(tmp_path / "other", val=5), image_size=16)
    for changed, options in [
        (source, {"size": 24}),
        (source, {"format": "jpeg"}),
        (source, {"images_per_archive": 9}),
        (other, {}),
    ]:
        with pytest.raises(DataError, match="out"):
            write(changed, tmp_path / "out", **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(DataError, match="mine"):
        write(source, tmp_path / "mine")
    with pytest.raises(DataError, match="pets"):  # archives cannot be packed once more
        write(load(tmp_path / "out"), tmp_path / "again")


def test_unreadable_images_stop_it_or_are_left_out(tmp_path):
    root = make_folder(tmp_path / "pets")
    (root / "train/bee/2.jpg").write_bytes(content(picture(1))[:-200])
    source = load_folder("pets", root, image_size=16)
    with pytest.raises(DataError, match=r"bee/2\.jpg .*unreadable=skip"):
        write(source, tmp_path / "out")
    said = write(source, tmp_path / "out", skip_unreadable=True)
    assert [line for line in said if "bee/2.jpg" in line]
    assert torch.bincount(load(tmp_path / "out").train.targets).tolist() == [8, 7, 8]


def test_missing_room_is_found_before_anything_is_written(source, tmp_path, monkeypatch):
    room = type("Usage", (), {"free": 60_000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda folder: room)
    with pytest.raises(DataError, match=r"out .*output=.*format=jpeg"):
        write(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    room.free = 200_000  # enough for 36 images of about 32 x 40 pixels of 3 bytes
    write(source, tmp_path / "out")
    room.free = 0  # finished archives need no more space
    write(source, tmp_path / "out")


def test_damage_is_found_and_packing_again_mends_it(source, tmp_path):
    write(source, tmp_path / "out")
    assert verify("folder", tmp_path / "out").ok
    archive = tmp_path / "out/train-00001.zip"
    whole = archive.read_bytes()
    harmed = bytearray(whole)
    harmed[len(harmed) // 3] ^= 255
    archive.write_bytes(harmed)
    found = verify("folder", tmp_path / "out")
    assert {file.path: file.state for file in found.files if file.state != "ok"}.keys() == {"train-00001.zip"}
    assert not found.ok
    archive.write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"train-00001\.zip"):
        load(tmp_path / "out")
    archive.unlink()
    with pytest.raises(DataError, match=r"1 .* 5 .*train-00001\.zip"):
        load(tmp_path / "out")
    write(source, tmp_path / "out")
    assert archive.read_bytes() == whole


def test_archive_that_is_compressed_or_of_another_class_is_named(source, tmp_path):
    write(source, tmp_path / "out")
    archive = tmp_path / "out/val-00001.zip"
    for name, kind, token in [("cat/3.jpg.ppm", zipfile.ZIP_DEFLATED, archive.name), ("dog/3.ppm", 0, "dog")]:
        with zipfile.ZipFile(archive, "w", kind) as changed:
            changed.writestr(name, content(picture(1), "PPM"))
        with pytest.raises(DataError, match=token):
            load(tmp_path / "out")


def test_archive_that_changes_while_it_is_read_is_an_error(source, tmp_path):
    write(source, tmp_path / "out")
    packed = load(tmp_path / "out").train
    path = tmp_path / "out/train-00002.zip"
    whole = path.read_bytes()
    for change in (whole[:100], whole[: packed.offset[23] + 100], b"x" * len(whole)):
        with path.open("r+b") as file:  # in place, since the split keeps the file open
            file.write(change)
            file.truncate()
        with pytest.raises(OSError, match="archive"):
            packed.read(23)


@pytest.mark.parametrize(
    ("option", "value"),
    [("format", "png"), *product(["quality"], [0, 101]), *product(["size", "images_per_archive"], [0])],
)
def test_bad_settings_of_packing_are_named(option, value):
    with pytest.raises(UserError, match=f"{option}={value}"):
        Packing(**{option: value})
    assert getattr(Packing(), option) != value


def test_folder_without_archives_or_with_a_bad_list_of_them_is_named(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        load_packed("imagenet_packed", tmp_path, image_size=16)
    for text in ("{}", "{"):
        (tmp_path / "packed.json").write_text(text)
        with pytest.raises(DataError, match=r"packed\.json"):
            load_packed("imagenet_packed", tmp_path, image_size=16)


# -------------------------------------------------------------------------------------- two at once, and from strangers


def pack_and_wait(source, folder, reports):
    """Begin to pack, report that, and wait in the middle until told to go on."""
    torch.set_num_threads(1)
    encoded, waited = packing._encoded, []

    def waiting(*arguments):
        if list(folder.glob("train-00001.zip.*")) and not waited:
            waited.append(True)
            reports.send("in the middle")
            reports.recv()
        return encoded(*arguments)

    packing._encoded = waiting
    write(source, folder)


def test_limit_of_open_files_is_raised_for_many_archives_or_named(source, tmp_path, monkeypatch):
    write(source, tmp_path / "out")
    limits = {resource.RLIMIT_NOFILE: (256, 1024)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    load(tmp_path / "out")
    assert limits[resource.RLIMIT_NOFILE] == (256 + len(ARCHIVES), 1024)
    limits[resource.RLIMIT_NOFILE] = (256, 260)
    with pytest.raises(DataError, match="260 files"):
        load(tmp_path / "out")
    limits[resource.RLIMIT_NOFILE] = (256, resource.RLIM_INFINITY)
    load(tmp_path / "out")
    assert limits[resource.RLIMIT_NOFILE][1] == resource.RLIM_INFINITY


def test_images_that_cannot_be_opened_among_too_many_files_are_not_left_out(source, tmp_path, monkeypatch):
    def read(*_):
        raise OSError(errno.EMFILE, "Too many open files", "bee/2.jpg")

    monkeypatch.setattr(type(source.train), "read", read)
    with pytest.raises(OSError, match="Too many open files"):
        write(source, tmp_path / "out", skip_unreadable=True)
    with pytest.raises(OSError, match="Too many open files"):
        verify("folder", tmp_path / "pets")


def test_second_packing_into_a_folder_is_refused_and_disturbs_nothing(tmp_path, source):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=pack_and_wait, args=(source, tmp_path / "out", theirs), daemon=True)
    process.start()
    theirs.close()
    ours.recv()
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(DataError, match="another process is packing"):
        write(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    ours.send("go on")
    process.join()
    assert process.exitcode == 0
    write(source, tmp_path / "undisturbed")
    for name in (*ARCHIVES, "SHA256SUMS", "packed.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*ARCHIVES, "SHA256SUMS", "packed.json"]
    )


def test_only_its_own_temporary_files_are_removed(source, tmp_path):
    write(source, tmp_path / "out")
    kept = ["notes.tmp", "train-00000.zip.mine.tmp", "packed.json.tmp"]
    for name in (*kept, "train-00001.zip.0123abcd.tmp", "packed.json.0123abcd.tmp"):
        (tmp_path / "out" / name).write_text("x")
    write(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tmp")) == sorted(kept)


def test_packing_does_not_go_on_with_other_images_of_the_same_number(source, tmp_path):
    write(source, tmp_path / "out")
    other = make_folder(tmp_path / "other", extension="png")
    with pytest.raises(DataError, match="other images"):
        write(load_folder("pets", other, image_size=16), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/packed.json").read_text())
    del manifest["of"]  # as an older version wrote it
    (tmp_path / "out/packed.json").write_text(json.dumps(manifest))
    write(source, tmp_path / "out")
