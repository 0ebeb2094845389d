"""Image folders: their contents, the cached index, the constants of their images, and refused input."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from pictures import CLASSES, content, make_folder, picture

from isda_repro.data import Crop, DataError, channel_statistics, folder, load_folder, stored_statistics
from isda_repro.data.augmentation import normalise
from isda_repro.data.decode import decoded
from isda_repro.data.folder import FileSplit, read_index
from isda_repro.data.source import stratified_order


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "pets")


@pytest.fixture
def scans(monkeypatch):
    """Return a list that grows by each folder that is scanned."""
    done, scan = [], folder._scan
    monkeypatch.setattr(folder, "_scan", lambda part: done.append(part) or scan(part))
    return done


def load(root, name="pets", **options):
    return load_folder(name, root, image_size=16, **options)


def test_classes_are_numbered_by_name_and_images_are_those_of_the_files(root):
    source = load(root)
    assert source.class_names == CLASSES
    assert (len(source.train), len(source.test), source.evaluated_on) == (24, 12, "test")
    assert source.train.image_size == (16, 16)
    assert torch.equal(source.train.targets, torch.arange(3).repeat_interleave(8))
    assert source.train.where(9) == str(root / "train/bee/1.jpg")
    assert source.test.where(0) == str(root / "val/ant/0.jpg")
    assert source.train.read(9) == (root / "train/bee/1.jpg").read_bytes()
    part = source.train.select(torch.tensor([20, 3]))
    assert [part.where(i) for i in range(2)] == [source.train.where(3), source.train.where(20)]
    assert part.targets.tolist() == [0, 2]
    assert load(root.parent).train.where(0) == source.train.where(0)  # root may contain a folder of the data set's name
    assert load(root).train.digest == source.train.digest


def test_digest_is_that_of_names_and_sizes_wherever_and_whenever_they_were_written(root, tmp_path):
    split = load(root).train
    copy = Path(shutil.copytree(root, tmp_path / "elsewhere" / "pets"))
    os.utime(copy / "train/ant/0.jpg", (1e9, 1e9))
    assert load(copy).train.digest == split.digest
    digests = {split.digest, load(root).test.digest, *(split.select(torch.tensor([i])).digest for i in (3, 4))}
    (copy / "train/ant/0.jpg").rename(copy / "train/ant/00.jpg")
    digests.add(load(copy).train.digest)
    (copy / "train/bee/0.jpg").write_bytes(content(picture(77, 50, 50)))  # in place: its folder keeps its time
    digests.add(load(copy).train.digest)
    assert len(digests) == 6


def test_fingerprint_for_caches_is_that_of_these_very_files(root, tmp_path):
    split, some = load(root).train, torch.arange(5)
    copy = load(Path(shutil.copytree(root, tmp_path / "copy"))).train
    prints = {split.fingerprint(some), split.fingerprint(some + 1), copy.fingerprint(some)}
    assert split.fingerprint(some) in prints
    os.utime(root / "train/ant/4.jpg", (1e9, 1e9))
    assert len(prints | {split.fingerprint(some)}) == 4


def test_holdout_and_limits_never_overlap_and_keep_the_shares(root):
    source = load(root, holdout=9, train_limit=6)
    assert (len(source.train), len(source.test), source.evaluated_on) == (6, 9, "holdout")
    names = [{split.where(i) for i in range(len(split))} for split in (source.train, source.test)]
    assert not names[0] & names[1]
    assert torch.bincount(source.test.targets).tolist() == [3, 3, 3]
    assert all("/train/" in name for name in names[1])


def test_second_start_reads_the_index(root, scans, cache):
    first = load(root)
    assert len(scans) == 2
    again = load(root)
    assert len(scans) == 2
    assert [again.train.where(i) for i in range(24)] == [first.train.where(i) for i in range(24)]
    assert torch.equal(again.train.targets, first.train.targets)
    (index,) = cache.glob("index-*.npz")
    index.write_bytes(index.read_bytes()[:50])  # damaged
    assert len(load(root).train) == 24
    assert len(scans) == 4


@pytest.mark.parametrize("change", ["added", "removed", "nested", "class"])
def test_changed_folder_is_looked_through_again(root, scans, change):
    for path in (root, *root.rglob("*")):  # date everything 2001, so that any change has another time
        os.utime(path, (1e9, 1e9))
    load(root)
    if change == "added":
        (root / "train/bee/new.png").write_bytes(content(picture(9), "PNG"))
    elif change == "removed":
        (root / "train/bee/3.jpg").unlink()
    elif change == "nested":
        (root / "train/bee/more/deep").mkdir(parents=True)
        (root / "train/bee/more/deep/x.jpg").write_bytes(content(picture(9)))
    else:
        for part in ("train", "val"):
            (root / part / "dog").mkdir()
            (root / part / "dog/x.jpg").write_bytes(content(picture(9)))
    source = load(root)
    expected = {"added": (25, 3), "removed": (23, 3), "nested": (25, 3), "class": (25, 4)}[change]
    assert (len(source.train), source.num_classes) == expected
    assert len(scans) == 4


def test_cache_that_cannot_be_written_is_done_without(root, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    source = load(root)
    assert len(source.train) == 24
    assert len(stored_statistics(source.train)[0]) == 3


def test_links_and_unusual_names_are_followed(root):
    (root / "train/ant/größer als ß.JPEG").write_bytes(content(picture(5)))
    for part in ("train", "val"):
        (root / part / "zebra").symlink_to(root / part / "cat")
    source = load(root)
    assert source.class_names == (*CLASSES, "zebra")
    assert len(source.train) == 24 + 1 + 8
    assert any(source.train.where(i).endswith("größer als ß.JPEG") for i in range(9))


def test_start_with_an_index_looks_at_folders_and_not_at_images(root, scans, monkeypatch):
    """Loading an index checks the times of folders alone, so its duration does not grow with the images."""
    read_index(root)

    def listed(*_):
        raise AssertionError("a folder was listed")

    monkeypatch.setattr(os, "scandir", listed)
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or stat(path, **options))
    assert len(read_index(root)["train"].targets) == 24
    assert len(scans) == 2
    assert not [path for path in asked if path.endswith(".jpg")]


@pytest.mark.parametrize(
    ("moved", "tokens"),
    [("val", ["pets", "train", "val"]), ("val/bee", ["pets/val", "bee"]), ("train/cat", ["pets/train", "cat"])],
)
def test_missing_folder_is_named(root, moved, tokens):
    (root / moved).rename(root / "elsewhere")
    with pytest.raises(DataError) as caught:
        load(root)
    assert all(token in str(caught.value) for token in tokens)


@pytest.mark.parametrize("part", ["train", "val"])
def test_class_without_images_is_named(root, part):
    for file in (root / part / "cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=f"pets/{part} .* cat"):
        load(root)


def test_number_of_classes_must_be_that_of_the_data_set(root, tmp_path):
    assert load(root, "folder", num_classes=3).num_classes == 3
    with pytest.raises(DataError, match=r"imagenet .*1000 .*pets .*3"):
        load(root, "imagenet", num_classes=1000)
    with pytest.raises(DataError, match=f"{tmp_path}/one/train"):
        load(make_folder(tmp_path / "one", classes=("ant",)))


# ---------------------------------------------------------------------------------------------- normalisation constants


def pixels_of(split, chosen):
    middle = Crop(16, "center")
    pixels = [middle(decoded(split.read(i)), torch.Generator()) for i in chosen]
    return torch.stack(pixels).permute(0, 3, 1, 2)


def test_constants_are_those_of_the_training_images_and_are_kept(root, cache, monkeypatch):
    split = load(root).train
    expected = channel_statistics(pixels_of(split, range(24)))
    assert stored_statistics(split) == expected
    computed, compute = [], normalise._computed
    monkeypatch.setattr(normalise, "_computed", lambda *given: computed.append(given) or compute(*given))
    assert stored_statistics(split) == expected
    assert not computed
    part = split.select(torch.arange(5))
    assert stored_statistics(part) == channel_statistics(pixels_of(split, range(5))) != expected
    assert stored_statistics(load_folder("pets", root, image_size=8).train) != expected
    assert len(computed) == 2
    for file in cache.glob("statistics-*.json"):
        file.write_text("{")  # damaged
    assert stored_statistics(split) == expected


def test_constants_are_not_kept_when_a_file_could_not_be_read_this_time(root, cache, monkeypatch):
    split, read = load(root).train, FileSplit.read

    def failing(number):
        def fails(self, index):
            if index == 3:
                raise OSError(number, "not this time")
            return read(self, index)

        return fails

    monkeypatch.setattr(FileSplit, "read", failing(errno.EIO))
    assert stored_statistics(split) == channel_statistics(pixels_of(split, [i for i in range(24) if i != 3]))
    assert not list(cache.glob("statistics-*.json"))
    monkeypatch.setattr(FileSplit, "read", failing(errno.EMFILE))
    with pytest.raises(OSError, match="not this time"):
        stored_statistics(split)
    monkeypatch.setattr(FileSplit, "read", read)
    assert stored_statistics(split) == channel_statistics(pixels_of(split, range(24)))
    assert list(cache.glob("statistics-*.json"))


def test_constants_of_many_images_are_those_of_a_stratified_part(root, monkeypatch):
    split = load(root).train
    monkeypatch.setattr(normalise, "IMAGES", 7)
    chosen = stratified_order(split.targets, "channel statistics")[:7].tolist()
    assert stored_statistics(split) == channel_statistics(pixels_of(split, chosen))


def test_constants_leave_unreadable_images_out_and_deviate_by_a_grey_level_at_least(root):
    grey = content(torch.full((20, 20, 3), 51, dtype=torch.uint8).numpy(), "PNG")
    for file in (root / "train").glob("*/*.jpg"):
        file.write_bytes(grey)
    (root / "train/ant/0.jpg").write_bytes(b"no image")
    mean, std = stored_statistics(load(root).train)
    assert mean == pytest.approx((0.2,) * 3)
    assert std == (1 / 255,) * 3
    bad = load(root).train.select(torch.tensor([0]))
    with pytest.raises(DataError, match=r"ant/0\.jpg"):
        stored_statistics(bad)
