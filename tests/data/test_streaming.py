"""Batches from files: functions of (seed, epoch, position), whoever decodes them; and files that cannot be read."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pictures import content, make_folder, odd_files, picture

from isda_repro.data import (
    AutoAugment,
    Chain,
    Crop,
    Cutout,
    DataError,
    NoAugmentation,
    ResidentLoader,
    Share,
    Split,
    StreamingLoader,
    load_folder,
)
from isda_repro.data.decode import decoded
from isda_repro.randomness import stream_seed

CPU = torch.device("cpu")
SIZE = 12
CONSTANTS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
AUGMENTATION = Chain(policy=AutoAugment("imagenet"), cutout=Cutout(4))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "pets", train=13)  # 39: batches of 8, the last of 7


@pytest.fixture
def split(root):
    return load_folder("pets", root, image_size=SIZE).train


def loader(split, workers=0, **options):
    options = {
        "crop": Crop(SIZE, flip=True),
        "batch_size": 8,
        "augmentation": AUGMENTATION,
        "shuffle": True,
        "seed": 5,
        "device": CPU,
        **CONSTANTS,
        **options,
    }
    return StreamingLoader(split, workers=workers, **options)


def same(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_are_the_files_cropped_and_augmented_in_the_epochs_order(split, memory_format):
    order = torch.randperm(39, generator=torch.Generator().manual_seed(stream_seed(5, "order", 2)))
    crop = Crop(SIZE, flip=True)
    pixels = torch.stack(
        [
            crop(decoded(split.read(index)), torch.Generator().manual_seed(stream_seed(5, "crop", 2, position)))
            for position, index in enumerate(order.tolist())
        ]
    )
    in_memory = Split(pixels.permute(0, 3, 1, 2).contiguous(), split.targets[order])
    expected = ResidentLoader(
        in_memory, batch_size=8, shuffle=False, seed=5, augmentation=AUGMENTATION, device=CPU, **CONSTANTS
    )
    found = list(loader(split, memory_format=memory_format).epoch(2))
    for (images, targets), (wanted, labels) in zip(found, expected.epoch(2), strict=True):
        assert torch.equal(images, wanted)
        assert torch.equal(targets, labels)
        assert images.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_changes_nothing_nor_does_where_an_epoch_begins(split, workers):
    expected = {epoch: list(loader(split).epoch(epoch)) for epoch in (0, 1)}
    assert [len(targets) for _, targets in expected[0]] == [8, 8, 8, 8, 7]
    assert not same(expected[0], expected[1])
    several = loader(split, workers)
    assert same(several.epoch(0), expected[0])
    for first_step in (2, 4, 5):
        assert same(several.epoch(1, first_step), expected[1][first_step:])
    for taken in (1, 2, 3):  # left in its middle, an epoch leaves nothing behind
        begun = several.epoch(0)
        assert same([next(begun) for _ in range(taken)], expected[0][:taken])
        assert same(several.epoch(1), expected[1])


def test_two_loaders_at_once(split, root):
    one, other = loader(split, 2), loader(load_folder("pets", root, image_size=SIZE).test, 1, shuffle=False)
    expected, evaluated = list(loader(split).epoch(3)), list(loader(split).epoch(3))
    found = []
    for batch in one.epoch(3):
        assert sum(len(targets) for _, targets in other.epoch(0)) == 12
        found.append(batch)
    assert same(found, expected)
    assert same(found, evaluated)  # batches that are kept keep their pixels


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_slices_of_the_ranks_are_the_batch_of_one(split, world_size, workers):
    whole = list(loader(split).epoch(1, 2))
    parts = [list(loader(split, workers, share=Share(rank, world_size)).epoch(1, 2)) for rank in range(world_size)]
    for step, (images, targets) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)
    assert [len(part[-1][1]) for part in parts] == {2: [4, 3], 3: [3, 2, 2], 8: [1, 1, 1, 1, 1, 1, 1, 0]}[world_size]


@pytest.mark.parametrize("world_size", [2, 3])
def test_slices_of_resident_images_too(world_size):
    images = torch.randint(0, 256, (39, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(39))

    def resident(share, shuffle):
        options = {"augmentation": AUGMENTATION, "shuffle": shuffle, "seed": 5, "device": CPU, **CONSTANTS}
        return ResidentLoader(split, batch_size=8, share=share, **options)

    for shuffle in (True, False):
        whole = list(resident(Share(), shuffle).epoch(1, 1))
        parts = [list(resident(Share(rank, world_size), shuffle).epoch(1, 1)) for rank in range(world_size)]
        for step, (pixels, targets) in enumerate(whole):
            assert torch.equal(torch.cat([part[step][0] for part in parts]), pixels)
            assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)


# --------------------------------------------------------------------------------------------------- unreadable files


@pytest.fixture
def damaged(tmp_path):
    """Some files of several kinds of damage, and their paths."""
    root = make_folder(tmp_path / "pets", train=13)
    bad = {
        root / "train/ant/0.jpg": b"",
        root / "train/ant/5.jpg": b"text, not an image",
        root / "train/cat/12.jpg": content(picture(3))[:-300],
    }
    for path, data in bad.items():
        path.write_bytes(data)
    return load_folder("pets", root, image_size=SIZE).train, sorted(map(str, bad))


def test_an_unreadable_file_stops_the_run_by_its_path(damaged):
    split, paths = damaged
    words = r"cannot be read as an image \(.+\): replace .*dataset\.unreadable=skip"
    with pytest.raises(DataError, match=words) as caught:
        list(loader(split).epoch(0))
    assert any(str(caught.value).startswith(path) for path in paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_skipped_named_and_counted(damaged, workers):
    split, paths = damaged
    told = []
    skipping = loader(split, workers, unreadable="skip", report=lambda where, reason: told.append((where, reason)))
    for epoch in range(2):
        batches = list(skipping.epoch(epoch))
        assert sum(len(targets) for _, targets in batches) == 36
        assert all(len(images) == len(targets) for images, targets in batches)
    assert sorted(where for where, _ in told) == paths == sorted(skipping.unreadable)
    assert all(reason for _, reason in told)


def test_the_others_are_as_if_nothing_were_wrong(damaged, tmp_path):
    split, paths = damaged
    whole = load_folder("pets", make_folder(tmp_path / "whole" / "pets", train=13), image_size=SIZE).train
    order = torch.randperm(39, generator=torch.Generator().manual_seed(stream_seed(5, "order", 0))).tolist()
    readable = torch.tensor([split.where(index) not in paths for index in order])
    expected = torch.cat([images for images, _ in loader(whole).epoch(0)])[readable]
    found = torch.cat([images for images, _ in loader(split, unreadable="skip").epoch(0)])
    assert torch.equal(found, expected)


def test_a_batch_of_unreadable_files_alone_is_empty(damaged):
    split, paths = damaged
    wrong = torch.tensor([index for index in range(39) if split.where(index) in paths])
    (batch,) = loader(split.select(wrong), batch_size=3, unreadable="skip", augmentation=None).epoch(0)
    assert batch[0].shape == (0, 3, SIZE, SIZE)
    assert len(batch[1]) == 0


def test_a_file_that_vanishes_is_named(split, root, tmp_path):
    copy = load_folder("pets", make_folder(tmp_path / "pets"), image_size=SIZE).train
    (tmp_path / "pets/train/bee/2.jpg").unlink()
    with pytest.raises(DataError, match=r"bee/2\.jpg cannot be read as an image \(.*No such file"):
        list(loader(copy).epoch(0))


def test_odd_images_stream(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for kind, data in odd_files().items():
                (tmp_path / part / name / f"{kind}.jpg").write_bytes(data)
    odd = load_folder("odd", tmp_path, image_size=SIZE).train
    batches = list(loader(odd, augmentation=NoAugmentation()).epoch(0))
    assert sum(len(targets) for _, targets in batches) == 2 * len(odd_files())


def test_more_images_in_a_batch_than_there_are_is_refused(split):
    with pytest.raises(DataError, match="batch size 40 is larger than the 39 training images"):
        loader(split, batch_size=40)


@pytest.mark.parametrize(("options", "words"), [({"unreadable": "ignore"}, "unreadable"), ({"workers": -1}, "workers")])
def test_what_cannot_be_is_refused(split, options, words):
    with pytest.raises(DataError, match=words):
        loader(split, **options)


# ------------------------------------------------------------------------------------------------------------ processes


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(root, end, tmp_path):
    program = f"""
import sys, time, torch
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from test_streaming import loader, SIZE
from isda_repro.data import load_folder
batches = loader(load_folder("pets", {str(root)!r}, image_size=SIZE).train, 2).epoch(0)
next(batches)
print("begun", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout.readline() == "begun\n"
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(end)
    process.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_workers_end_with_their_loader(split):
    used = loader(split, 2)
    list(used.epoch(0))
    processes = [worker.pid for worker in used._loader._iterator._workers]
    assert all(map(alive, processes))
    del used
    gc.collect()
    assert not any(map(alive, processes))
