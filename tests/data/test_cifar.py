"""CIFAR on disk: whole, missing, half there, damaged, without a network. Small files stand in for the real ones."""

import functools
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from isda_repro.data import DataError, channel_statistics, cifar, load_cifar, verify

NOBODY_LISTENS = "http://127.0.0.1:9/cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_batch(path, seed, images=20, classes=10):
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (images, 3072)).astype(np.uint8)
    path.write_bytes(pickle.dumps({"data": pixels, "labels": (np.arange(images) % classes).tolist()}))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A small CIFAR-10 with its own checksums: ``site/cifar-10-python.tar.gz`` and the folder unpacked beside it."""
    site = tmp_path / "site"
    folder = site / FOLDER
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for seed, file in enumerate(files):
        write_batch(folder / file, seed)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    archive = site / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=FOLDER)
    listed = [[file, md5(folder / file)] for file in files]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[5:])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(datasets.CIFAR10, "url", NOBODY_LISTENS)
    return site


@pytest.fixture
def web(site):
    """The address of a web server for the site's folder, on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def data_dir(tmp_path, site):
    """A data folder with all of the small CIFAR-10 in it, and no network to the site."""
    data_dir = tmp_path / "data"
    shutil.copytree(site / FOLDER, data_dir / FOLDER)
    return data_dir


def test_whole_files_are_read_and_the_network_is_not_touched(data_dir, monkeypatch):
    monkeypatch.setattr(cifar, "_download", None)
    source = load_cifar("cifar10", data_dir)
    assert source.train.images.shape == (100, 3, 32, 32)
    assert source.test.images.shape == (20, 3, 32, 32)
    assert source.train.images.dtype == torch.uint8
    assert source.train.images.is_contiguous()
    assert source.class_names[3] == "class 3"
    first = pickle.loads((data_dir / FOLDER / "data_batch_1").read_bytes())
    assert source.train.images[0].flatten().tolist() == first["data"][0].tolist()
    assert source.train.targets[:20].tolist() == first["labels"]


def test_holdout_and_limits(data_dir):
    source = load_cifar("cifar10", data_dir, holdout=20, train_limit=30, test_limit=10)
    assert (len(source.train), len(source.test), source.evaluated_on) == (30, 10, "holdout")
    assert torch.bincount(source.train.targets).tolist() == [3] * 10


def test_downloaded_and_nothing_else_is_left(web, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{web}/cifar-10-python.tar.gz")
    data_dir = tmp_path / "not" / "there yet"
    assert len(load_cifar("cifar10", data_dir).train) == 100
    assert [path.name for path in data_dir.iterdir()] == [FOLDER]


def test_a_half_unpacked_folder_is_completed(web, data_dir, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{web}/cifar-10-python.tar.gz")
    (data_dir / FOLDER / "data_batch_3").unlink()
    (data_dir / FOLDER / "test_batch").write_bytes(b"half")
    assert len(load_cifar("cifar10", data_dir).test) == 20


def test_the_archive_in_the_folder_is_used_without_a_network(site, tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copy(site / "cifar-10-python.tar.gz", data_dir)
    assert len(load_cifar("cifar10", data_dir).train) == 100


def test_half_an_archive_is_not_taken_for_whole(site, tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    whole = (site / "cifar-10-python.tar.gz").read_bytes()
    (data_dir / "cifar-10-python.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="the folder cifar-10-batches-py is missing, and fetching it failed"):
        load_cifar("cifar10", data_dir)


def test_a_download_that_breaks_off_is_not_taken_for_whole(site, web, tmp_path, monkeypatch):
    whole = (site / "cifar-10-python.tar.gz").read_bytes()
    (site / "broken.tar.gz").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{web}/broken.tar.gz")
    with pytest.raises(DataError, match="File not found or corrupted"):
        load_cifar("cifar10", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def assert_one_sentence(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(
        f"put cifar-10-python.tar.gz (from {NOBODY_LISTENS}) or the folder {FOLDER} unpacked from it there."
    )
    for part in parts:
        assert part in message


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_missing_folder_without_a_network(site, tmp_path, exists):
    data_dir = tmp_path / "data"
    if exists:
        data_dir.mkdir()
    with pytest.raises(DataError) as error:
        load_cifar("cifar10", data_dir)
    assert_one_sentence(
        error, f"cifar10 in {data_dir}", f"the folder {FOLDER} is missing", "fetching it failed (URLError"
    )


def test_a_missing_file_without_a_network(data_dir):
    (data_dir / FOLDER / "data_batch_3").unlink()
    with pytest.raises(DataError) as error:
        load_cifar("cifar10", data_dir)
    assert_one_sentence(error, f"{FOLDER}/data_batch_3 is missing, and fetching it failed")


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_damaged_file_is_named(data_dir, file):
    path = data_dir / FOLDER / file
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError) as error:
        load_cifar("cifar10", data_dir, download=False)
    assert_one_sentence(error, f"{FOLDER}/{file} fails its checksum, and downloading was not allowed")


def test_a_network_that_hangs_is_given_up(site, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "NETWORK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        start = time.monotonic()
        with pytest.raises(DataError, match="fetching it failed"):
            load_cifar("cifar10", tmp_path / "data")
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


def test_a_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"fetching it failed \((FileExistsError|NotADirectoryError)"):
        load_cifar("cifar10", tmp_path / "data")


def test_a_label_outside_the_classes(data_dir, monkeypatch):
    file = data_dir / FOLDER / "test_batch"
    write_batch(file, seed=0, classes=11)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(file)]])
    with pytest.raises(DataError, match=r"^cifar10, test split: image 10 has label 10, outside \[0, 10\)"):
        load_cifar("cifar10", data_dir)


def test_unknown_names_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"^There is no CIFAR data set 'cifar1'; there are cifar10 and cifar100\.$"):
        load_cifar("cifar1", tmp_path)
    with pytest.raises(DataError, match=r"there are digits, cifar10, cifar100, imagenet, imagenet_packed, folder\.$"):
        verify("mnist", tmp_path)


def test_verify_names_every_file(data_dir):
    whole = verify("cifar10", data_dir)
    assert whole.ok
    assert whole.train_counts == (10,) * 10
    assert whole.test_counts == (2,) * 10
    assert len(list(whole.lines())) == 7 + 1 + 10
    (data_dir / FOLDER / "data_batch_3").unlink()
    (data_dir / FOLDER / "test_batch").write_bytes(b"damaged")
    broken = verify("cifar10", data_dir)
    states = {check.path.split("/")[1]: check.state for check in broken.files}
    assert not broken.ok
    assert states.pop("data_batch_3") == "missing"
    assert states.pop("test_batch") == "fails its checksum"
    assert set(states.values()) == {"ok"}
    assert broken.train_counts is None
    assert len(list(broken.lines())) == 7


PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar(name):
    data_dir = Path(os.environ.get("ISDA_DATA", "data"))
    if not (data_dir / getattr(datasets, name.upper()).base_folder).is_dir():
        pytest.skip(f"no {name} in {data_dir} (set ISDA_DATA to a folder that holds it)")
    source = load_cifar(name, data_dir, download=False)
    assert source.train.images.shape == (50_000, 3, 32, 32)
    assert source.test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(source.train.targets).tolist() == [50_000 // source.num_classes] * source.num_classes
    for found, published in zip(channel_statistics(source.train.images), PUBLISHED[name], strict=True):
        assert found == pytest.approx(published, abs=6e-5)
    held = load_cifar(name, data_dir, download=False, holdout=5000)
    assert torch.bincount(held.test.targets).tolist() == [5000 // source.num_classes] * source.num_classes
