"""CIFAR on disk: complete, missing, partial, damaged, and without a network. Small files replace the real ones."""

import contextlib
import functools
import hashlib
import http.server
import pickle
import shutil
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from isda_repro.data import DataError, channel_statistics, cifar, load_cifar, verify

ARCHIVE = "cifar-10-python.tar.gz"
NOBODY_LISTENS = f"http://127.0.0.1:9/{ARCHIVE}"  # connections to the discard port are refused at once
FOLDER = "cifar-10-batches-py"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_batch(path, seed, images=20, classes=10):
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (images, 3072)).astype(np.uint8)
    path.write_bytes(pickle.dumps({"data": pixels, "labels": (np.arange(images) % classes).tolist()}))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return a folder with the archive of a small CIFAR-10, unpacked beside it; its checksums replace the real ones."""
    site = tmp_path / "site"
    folder = site / FOLDER
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for seed, file in enumerate(files):
        write_batch(folder / file, seed)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    archive = site / ARCHIVE
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
    """Return the address of a local web server for the site's folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def data_dir(tmp_path, site):
    """Return a data folder that holds the small CIFAR-10; no server is running."""
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
    assert source.class_names == tuple(f"class {i}" for i in range(10))
    first = pickle.loads((data_dir / FOLDER / "data_batch_1").read_bytes())
    assert source.train.images[0].flatten().tolist() == first["data"][0].tolist()
    assert source.train.targets[:20].tolist() == first["labels"]
    narrowed = load_cifar("cifar10", data_dir, holdout=20, train_limit=30, test_limit=10)
    assert (len(narrowed.train), len(narrowed.test), narrowed.evaluated_on) == (30, 10, "holdout")
    assert load_cifar("cifar10", data_dir, imbalance=5).train_counts == [10, 8, 6, 5, 4, 4, 3, 2, 2, 2]


def test_download_leaves_the_unpacked_folder_alone(web, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{web}/{ARCHIVE}")
    data_dir = tmp_path / "not" / "there yet"
    assert len(load_cifar("cifar10", data_dir).train) == 100
    assert [path.name for path in data_dir.iterdir()] == [FOLDER]
    (data_dir / FOLDER / "data_batch_3").unlink()
    (data_dir / FOLDER / "test_batch").write_bytes(b"half")
    assert len(load_cifar("cifar10", data_dir).test) == 20  # missing and damaged files are replaced


def test_archive_in_the_folder_is_used_without_a_network(site, tmp_path):
    shutil.copy(site / ARCHIVE, tmp_path)
    assert len(load_cifar("cifar10", tmp_path).train) == 100


def half(path):
    return path.read_bytes()[: path.stat().st_size // 2]


def test_download_that_breaks_off_is_not_taken_for_whole(site, web, tmp_path, monkeypatch):
    (site / "broken.tar.gz").write_bytes(half(site / ARCHIVE))
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{web}/broken.tar.gz")
    with pytest.raises(DataError, match=FOLDER):
        load_cifar("cifar10", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def nothing(data_dir, site):
    shutil.rmtree(data_dir)


def empty_folder(data_dir, site):
    shutil.rmtree(data_dir / FOLDER)


def file_instead_of_folder(data_dir, site):
    shutil.rmtree(data_dir)
    data_dir.write_text("a file where the folder should be")


def half_an_archive(data_dir, site):
    shutil.rmtree(data_dir / FOLDER)
    (data_dir / ARCHIVE).write_bytes(half(site / ARCHIVE))


def missing_file(data_dir, site):
    (data_dir / FOLDER / "data_batch_3").unlink()


def damaged(name):
    def damage(data_dir, site):
        path = data_dir / FOLDER / name
        path.write_bytes(path.read_bytes()[:-1] + b"\0")

    return damage


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize(
    ("harm", "token"),
    [
        (nothing, FOLDER),
        (empty_folder, FOLDER),
        (file_instead_of_folder, FOLDER),
        (half_an_archive, FOLDER),
        (missing_file, f"{FOLDER}/data_batch_3"),
        *((damaged(name), f"{FOLDER}/{name}") for name in ("data_batch_2", "test_batch", "batches.meta")),
    ],
)
def test_what_is_missing_or_damaged_is_named_with_where_to_get_it(data_dir, site, monkeypatch, harm, token, download):
    harm(data_dir, site)
    asked, real = [], cifar._download
    monkeypatch.setattr(cifar, "_download", lambda *arguments: asked.append(arguments) or real(*arguments))
    with pytest.raises(DataError) as error:
        load_cifar("cifar10", data_dir, download=download)
    assert len(asked) == download
    for named in (str(data_dir), token, ARCHIVE, NOBODY_LISTENS):
        assert named in str(error.value)
    others = {"data_batch_1", "data_batch_2", "data_batch_3", "test_batch", "batches.meta"} - {Path(token).name}
    assert not [name for name in others if name in str(error.value)]


def test_damaged_archive_is_named_with_its_size(site, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(b"noise" * 200)
    for problem in (load_cifar, verify):
        if problem is verify:
            found = verify("cifar10", tmp_path)
            assert not found.ok
            text = " ".join(found.problems)
        else:
            with pytest.raises(DataError) as caught:
                load_cifar("cifar10", tmp_path)
            text = str(caught.value)
        assert f"{ARCHIVE} there is damaged" in text
        assert "1,000 bytes" in text
    assert (tmp_path / ARCHIVE).read_bytes() == b"noise" * 200


def test_folder_of_the_data_set_itself_is_recognised(data_dir, site, tmp_path, monkeypatch):
    expected = load_cifar("cifar10", data_dir)
    inner = data_dir / FOLDER
    (tmp_path / "link").symlink_to(inner)
    monkeypatch.chdir(inner)
    for place in (inner, Path(), tmp_path / "link"):
        assert torch.equal(load_cifar("cifar10", place).train.images, expected.train.images)
        assert verify("cifar10", place).ok
    (inner / "batches.meta").unlink()
    with pytest.raises(DataError, match=f"{FOLDER}/batches.meta is missing"):
        load_cifar("cifar10", inner)
    assert sorted(path.name for path in inner.iterdir()) == sorted(
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    )


def test_network_that_hangs_is_given_up(site, tmp_path, monkeypatch):
    """The server accepts and never answers; the client must close the connection by itself."""
    monkeypatch.setattr(cifar, "NETWORK_TIMEOUT_S", 0.2)
    left_by_itself = []

    def say_nothing():
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(30)
            with contextlib.suppress(TimeoutError):
                while connection.recv(4096):
                    pass
                left_by_itself.append(True)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        server = threading.Thread(target=say_nothing, daemon=True)
        server.start()
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{ARCHIVE}")
        with pytest.raises(DataError, match=ARCHIVE):
            load_cifar("cifar10", tmp_path / "data")
        server.join()
    assert left_by_itself
    assert socket.getdefaulttimeout() is None


def test_label_outside_the_classes_is_named(data_dir, monkeypatch):
    file = data_dir / FOLDER / "test_batch"
    write_batch(file, seed=0, classes=11)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(file)]])
    with pytest.raises(DataError, match=r"cifar10, test .* 10 "):
        load_cifar("cifar10", data_dir)


def test_files_of_each_data_set_are_its_own():
    for name, torchvision_class in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        files = dict(cifar.expected_files(cifar.cifar_class(name)))
        assert files[f"{torchvision_class.base_folder}/{torchvision_class.meta['filename']}"]
        assert len(files) == {"cifar10": 7, "cifar100": 3}[name]


@pytest.mark.parametrize(("load", "name"), [(load_cifar, "cifar1"), (verify, "mnist")])
def test_unknown_data_set_is_named(tmp_path, load, name):
    with pytest.raises(DataError, match=name):
        load(name, tmp_path)


def test_verify_finds_the_state_of_every_file_and_counts_the_classes(data_dir):
    whole = verify("cifar10", data_dir)
    assert whole.ok
    assert (whole.train_counts, whole.test_counts) == ((10,) * 10, (2,) * 10)
    assert whole.class_names == tuple(f"class {i}" for i in range(10))
    sizes = {f"{FOLDER}/{path.name}": path.stat().st_size for path in (data_dir / FOLDER).iterdir()}
    assert {check.path: check.num_bytes for check in whole.files} == sizes
    (data_dir / FOLDER / "data_batch_3").unlink()
    (data_dir / FOLDER / "test_batch").write_bytes(b"damaged")
    broken = verify("cifar10", data_dir)
    states = {Path(check.path).name: check.state for check in broken.files}
    assert not broken.ok
    assert states.pop("data_batch_3") == "missing"
    assert states.pop("test_batch") == "fails its checksum"
    assert (len(states), set(states.values())) == (5, {"ok"})
    assert (broken.train_counts, broken.test_counts) == (None, None)
    for lines in (whole.lines(), broken.lines()):
        assert sum("test_batch" in line for line in lines) == 1


PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("name", ["cifar10", pytest.param("cifar100", marks=pytest.mark.slow)])
def test_real_cifar_has_the_published_channel_statistics(name, cifar_dir):
    source = load_cifar(name, cifar_dir, download=False)
    assert source.train.images.shape == (50_000, 3, 32, 32)
    assert source.test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(source.train.targets).tolist() == [50_000 // source.num_classes] * source.num_classes
    for found, published in zip(channel_statistics(source.train.images), PUBLISHED[name], strict=True):
        assert found == pytest.approx(published, abs=6e-5)
