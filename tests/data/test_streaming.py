"""Batches of image files depend on (seed, epoch, position), not on the workers; unreadable files; ends of workers."""

import contextlib
import errno
import gc
import multiprocessing
import os
import re
import select
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from batches import same
from pictures import content, make_folder, picture

from isda_repro.data import (
    AutoAugment,
    Chain,
    Crop,
    Cutout,
    DataError,
    InMemoryLoader,
    PadCropFlip,
    Share,
    Split,
    StreamingLoader,
    load_folder,
    streaming,
)
from isda_repro.data.decode import decoded
from isda_repro.errors import UserError
from isda_repro.randomness import stream_seed

CPU = torch.device("cpu")
SIZE = 12
CONSTANTS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
AUGMENTATION = Chain(policy=AutoAugment("imagenet"), cutout=Cutout(4))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "pets", train=13)  # 39 images: batches of 8, the last of 7


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_are_the_files_cropped_and_augmented_in_the_order_of_the_epoch(split, memory_format):
    order = torch.randperm(39, generator=torch.Generator().manual_seed(stream_seed(5, "order", 2)))
    crop = Crop(SIZE, flip=True)
    pixels = torch.stack(
        [
            crop(decoded(split.read(index)), torch.Generator().manual_seed(stream_seed(5, "crop", 2, position)))
            for position, index in enumerate(order.tolist())
        ]
    )
    in_memory = Split(pixels.permute(0, 3, 1, 2).contiguous(), split.targets[order])
    expected = InMemoryLoader(
        in_memory, batch_size=8, shuffle=False, seed=5, augmentation=AUGMENTATION, device=CPU, **CONSTANTS
    )
    found = list(loader(split, memory_format=memory_format).epoch(2))
    for (images, targets), (wanted, labels) in zip(found, expected.epoch(2), strict=True):
        assert torch.equal(images, wanted)
        assert torch.equal(targets, labels)
        assert images.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_workers_nor_on_where_an_epoch_begins(split, workers):
    expected = {epoch: list(loader(split).epoch(epoch)) for epoch in (0, 1)}
    assert [len(targets) for _, targets in expected[0]] == [8, 8, 8, 8, 7]
    assert not same(expected[0], expected[1])
    several = loader(split, workers)
    assert same(several.epoch(0), expected[0])
    for first_step in (2, 4, 5):
        assert same(several.epoch(1, first_step), expected[1][first_step:])
    for taken in (1, 2, 3):  # an abandoned epoch must not affect the next one
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
    assert same(found, evaluated)  # memory of batches that are still in use is not recycled


@pytest.mark.parametrize(("world_size", "workers"), [(2, 2), (3, 0), (8, 0)])
def test_batches_of_several_processes_are_those_of_one(split, world_size, workers):
    whole = list(loader(split).epoch(1, 2))
    parts = [list(loader(split, workers, share=Share(rank, world_size)).epoch(1, 2)) for rank in range(world_size)]
    for step, (images, targets) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)
    assert [len(part[-1][1]) for part in parts] == {2: [4, 3], 3: [3, 2, 2], 8: [1, 1, 1, 1, 1, 1, 1, 0]}[world_size]


# --------------------------------------------------------------------------------------------------- unreadable files


@pytest.fixture
def damaged(tmp_path):
    """Return a split with several kinds of damaged files, and the sorted paths of these."""
    root = make_folder(tmp_path / "pets", train=13)
    bad = {
        root / "train/ant/0.jpg": b"",
        root / "train/ant/5.jpg": b"text, not an image",
        root / "train/cat/12.jpg": content(picture(3))[:-300],
    }
    for path, data in bad.items():
        path.write_bytes(data)
    return load_folder("pets", root, image_size=SIZE).train, sorted(map(str, bad))


def test_unreadable_file_stops_the_run_and_is_named(damaged):
    split, paths = damaged
    with pytest.raises(DataError) as caught:
        list(loader(split).epoch(0))
    assert any(path in str(caught.value) for path in paths)
    gone = split.select(torch.tensor([17]))
    Path(gone.where(0)).unlink()
    with pytest.raises(DataError, match=re.escape(gone.where(0))):
        list(loader(gone, batch_size=1).epoch(0))


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


def test_readable_files_are_as_if_nothing_were_wrong(damaged, split):
    harmed, paths = damaged
    order = torch.randperm(39, generator=torch.Generator().manual_seed(stream_seed(5, "order", 0))).tolist()
    readable = torch.tensor([harmed.where(index) not in paths for index in order])
    for kind, expected in zip(zip(*loader(harmed, unreadable="skip").epoch(0), strict=True), (0, 1), strict=True):
        whole = torch.cat([batch[expected] for batch in loader(split).epoch(0)])
        assert torch.equal(torch.cat(kind), whole[readable])


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_cannot_be_opened_among_too_many_others_is_not_left_out(split, monkeypatch, workers):
    def read(*_):
        raise OSError(errno.EMFILE, "Too many open files", "bee/2.jpg")

    monkeypatch.setattr(type(split), "read", read)
    with pytest.raises(OSError, match=r"Too many open files: 'bee/2\.jpg'"):
        next(loader(split, workers, unreadable="skip").epoch(0))


def test_batch_of_unreadable_files_alone_is_empty(damaged):
    split, paths = damaged
    wrong = torch.tensor([index for index in range(39) if split.where(index) in paths])
    (batch,) = loader(split.select(wrong), batch_size=3, unreadable="skip", augmentation=PadCropFlip()).epoch(0)
    assert batch[0].shape == (0, 3, SIZE, SIZE)
    assert len(batch[1]) == 0


@pytest.mark.parametrize(
    ("options", "token"),
    [({"batch_size": 40}, "40"), ({"unreadable": "ignore"}, "unreadable"), ({"workers": -1}, "workers=-1")],
)
def test_bad_settings_of_a_loader_are_named(split, options, token):
    with pytest.raises(DataError, match=token):
        loader(split, **options)


# ------------------------------------------------------------------------------------------------------------ processes


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def process_end(pid):
    """Yield a function that waits for a process at most so many seconds, and returns True if it has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield lambda seconds: bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


def load_and_wait(split, pids):
    """Start an epoch, send the ids of its workers, and wait to be killed."""
    torch.set_num_threads(1)
    used = loader(split, 2)
    batches = used.epoch(0)
    for _ in range(2):  # a batch of each worker
        next(batches)
    pids.send([worker.pid for worker in used._loader._iterator._workers])
    while True:
        signal.pause()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(split, end):
    """Workers end too if they cannot run any code themselves, because they are stopped."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=load_and_wait, args=(split, theirs))
    process.start()
    theirs.close()
    workers = ours.recv()  # raises EOFError if the process has died
    assert len(workers) == 2
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(process_end(pid)) for pid in workers]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        os.kill(process.pid, end)
        process.join()
        for waited in ends:
            assert waited(30)
    assert process.exitcode == -end


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_are_deaf_to_interrupts_and_end_with_their_loader(split):
    used = loader(split, 2)
    first = list(used.epoch(0))
    processes = [worker.pid for worker in used._loader._iterator._workers]
    for pid in processes:
        assert os.getsid(pid) == pid  # Ctrl-C of a terminal does not reach another session
        os.kill(pid, signal.SIGINT)
    assert same(used.epoch(0), first)
    assert [worker.pid for worker in used._loader._iterator._workers] == processes
    assert all(map(alive, processes))
    del used
    gc.collect()
    assert not any(map(alive, processes))


def test_workers_that_would_use_up_the_shared_memory_are_refused_before_they_start(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda place: SimpleNamespace(free=64e6))
    streaming._check_shared_memory(2, 16, 224, 224, tmp_path)
    with pytest.raises(UserError, match=r"dataset\.workers=16"):
        streaming._check_shared_memory(16, 256, 224, 224, tmp_path)
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**16))
    with pytest.raises(UserError, match=r"dataset\.workers=2"):
        streaming._check_shared_memory(2, 0, 32, 32, tmp_path)
    streaming._check_shared_memory(1, 0, 32, 32, tmp_path)
    streaming._check_shared_memory(16, 256, 224, 224, tmp_path / "not there")
