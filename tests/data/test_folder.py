"""Image folders: what is found in them, the index that is kept, and what is refused."""

import time

import pytest
import torch
from pictures import CLASSES, content, make_folder, picture

from isda_repro.data import DataError, folder, load_folder, stored_statistics
from isda_repro.data.folder import read_index


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A user's cache of its own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "isda_repro"


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "pets")


@pytest.fixture
def scans(monkeypatch):
    """How often a folder was looked through."""
    done, scan = [], folder._scan
    monkeypatch.setattr(folder, "_scan", lambda part: done.append(part) or scan(part))
    return done


def test_classes_are_numbered_by_name_and_images_are_those_of_the_files(root):
    source = load_folder("pets", root, image_size=16)
    assert source.class_names == CLASSES
    assert (len(source.train), len(source.test), source.evaluated_on) == (24, 12, "test")
    assert source.train.image_size == (16, 16)
    assert torch.equal(source.train.targets, torch.arange(3).repeat_interleave(8))
    assert source.train.where(9) == str(root / "train/bee/1.jpg")
    assert source.train.read(9) == (root / "train/bee/1.jpg").read_bytes()
    part = source.train.select(torch.tensor([20, 3]))
    assert [part.where(i) for i in range(2)] == [source.train.where(3), source.train.where(20)]
    assert part.targets.tolist() == [0, 2]


def test_a_data_set_may_lie_in_a_folder_of_its_name(root):
    above = load_folder("pets", root.parent, image_size=16)
    assert above.train.where(0) == load_folder("pets", root, image_size=16).train.where(0)


def test_holdout_and_limits_never_overlap_and_keep_the_shares(root):
    source = load_folder("pets", root, image_size=16, holdout=9, train_limit=6)
    assert source.evaluated_on == "holdout"
    assert (len(source.train), len(source.test)) == (6, 9)
    names = [{split.where(i) for i in range(len(split))} for split in (source.train, source.test)]
    assert not names[0] & names[1]
    assert torch.bincount(source.test.targets).tolist() == [3, 3, 3]
    assert all("/train/" in name for name in names[1])


def test_the_second_start_reads_the_index(root, scans, cache):
    first = load_folder("pets", root, image_size=16)
    assert len(scans) == 2
    again = load_folder("pets", root, image_size=16)
    assert len(scans) == 2
    assert [again.train.where(i) for i in range(24)] == [first.train.where(i) for i in range(24)]
    assert torch.equal(again.train.targets, first.train.targets)
    (index,) = cache.glob("index-*.npz")
    index.write_bytes(index.read_bytes()[:50])  # damaged
    assert len(load_folder("pets", root, image_size=16).train) == 24
    assert len(scans) == 4


@pytest.mark.parametrize("change", ["added", "removed", "nested", "class"])
def test_a_folder_that_has_changed_is_looked_through_again(root, scans, change):
    load_folder("pets", root, image_size=16)
    time.sleep(0.02)
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
    source = load_folder("pets", root, image_size=16)
    expected = {"added": (25, 3), "removed": (23, 3), "nested": (25, 3), "class": (25, 4)}[change]
    assert (len(source.train), source.num_classes) == expected
    assert len(scans) == 4


def test_a_cache_that_cannot_be_written_is_done_without(root, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert len(load_folder("pets", root, image_size=16).train) == 24
    assert len(stored_statistics(load_folder("pets", root, image_size=16).train)[0]) == 3


def test_files_that_are_no_images_by_name_and_links_and_unusual_names(root):
    (root / "train/ant/.DS_Store").write_text("x")
    (root / "train/ant/Thumbs.db").write_text("x")
    (root / "train/ant/größer als ß.JPEG").write_bytes(content(picture(5)))
    for part in ("train", "val"):
        (root / part / "zebra").symlink_to(root / part / "cat")
    source = load_folder("pets", root, image_size=16)
    assert source.class_names == (*CLASSES, "zebra")
    assert len(source.train) == 24 + 1 + 8
    assert read_index(root)["train"].ignored == 2
    assert any(source.train.where(i).endswith("größer als ß.JPEG") for i in range(9))


def test_a_million_images_start_in_under_a_second(tmp_path, scans, monkeypatch):
    """1,000 classes as in ImageNet, the file names made up: an index of 1.28 million takes no longer to read."""
    for part in ("train", "val"):
        for label in range(1000):
            (tmp_path / part / f"n{label:08}").mkdir(parents=True)
    real_walk = folder._walk

    def walk(path, name):
        for found, modified, _ in real_walk(path, name):
            yield found, modified, [f"{found}_{number}.JPEG" for number in range(1281 if "train" in path.parts else 50)]

    monkeypatch.setattr(folder, "_walk", walk)
    read_index(tmp_path)
    seconds = []
    for _ in range(3):  # another process may be in the way of one
        begin = time.perf_counter()
        index = read_index(tmp_path)
        seconds.append(time.perf_counter() - begin)
        assert len(index["train"].targets) == 1_281_000
    assert len(scans) == 2
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda root: (root / "val").rename(root / "validation"),
            r"is not in .*pets .*there must be the folders train",
        ),
        (lambda root: (root / "val/bee").rename(root / "moved"), r"val has no folder for bee, and .*train has"),
        (lambda root: (root / "val/dog").mkdir(), r"val has no image of dog \(files"),
        (lambda root: [file.unlink() for file in (root / "train/cat").iterdir()], r"train has no image of cat \(files"),
    ],
)
def test_folders_that_cannot_be_used_are_one_sentence(root, harm, words):
    harm(root)
    with pytest.raises(DataError, match=words):
        load_folder("pets", root, image_size=16)


def test_imagenet_has_a_thousand_classes(root):
    with pytest.raises(DataError, match=r"imagenet has 1000 classes, but .*pets has 3: .*use dataset=folder"):
        load_folder("imagenet", root, image_size=16, num_classes=1000)


def test_one_class_is_too_few(tmp_path):
    make_folder(tmp_path / "one", classes=("ant",))
    with pytest.raises(DataError, match="holds 1 folders"):
        load_folder("one", tmp_path / "one", image_size=16)


def test_constants_are_those_of_the_training_images_and_kept(root, cache, monkeypatch):
    split = load_folder("pets", root, image_size=16).train
    from isda_repro.data import Crop, channel_statistics, statistics
    from isda_repro.data.decode import decoded

    middle = Crop(16, "center")
    pixels = torch.stack([middle(decoded(split.read(i)), torch.Generator()) for i in range(len(split))])
    expected = channel_statistics(pixels.permute(0, 3, 1, 2))
    assert stored_statistics(split) == expected
    monkeypatch.setattr(statistics, "_computed", lambda split: pytest.fail("computed again"))
    assert stored_statistics(split) == expected
    assert len(list(cache.glob("statistics-*.json"))) == 1
