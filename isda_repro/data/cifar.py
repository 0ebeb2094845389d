"""CIFAR-10 and CIFAR-100, loaded, checked and downloaded with torchvision's classes."""

import http.client
import socket
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from isda_repro.data.source import DataError, Source, Split, narrowed
from isda_repro.files import expanded

CIFAR_NAMES = ("cifar10", "cifar100")
NETWORK_TIMEOUT_S = 15.0


def load_cifar(
    name: str,
    data_dir: Path,
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
    imbalance: float | None = None,
) -> Source:
    """Load CIFAR from ``data_dir``, downloading it (170 MB) if it is missing or damaged there.

    Args:
        name: ``cifar10`` or ``cifar100``.
        data_dir: folder that holds, or will hold, ``cifar-10-batches-py`` or ``cifar-100-python``; or that folder
            itself. If the archive from the data set's site is in this folder, it is unpacked instead of downloaded.
        download: allow fetching missing or damaged files.
        train_limit, test_limit: number of images to use, stratified by class, for quick runs; None uses all.
        holdout: number of training images, stratified by class, to hold out and evaluate on instead of the test set.
        imbalance: see ``narrowed``; None: every class keeps its images.

    Raises:
        DataError: files are missing or damaged and cannot be fetched, or a count does not fit the data.
    """
    torchvision_class = cifar_class(name)
    data_dir = outer_folder(torchvision_class, data_dir)
    try:
        train = torchvision_class(data_dir, train=True, download=False)
    except RuntimeError:  # torchvision's "not found or corrupted", after checking the md5 of every file
        _fetch(name, torchvision_class, data_dir, download)
        train = torchvision_class(data_dir, train=True, download=False)
    test = torchvision_class(data_dir, train=False, download=False)
    source = Source(name, _split(train), _split(test), len(train.classes), tuple(train.classes))
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout, imbalance=imbalance)


def cifar_class(name: str) -> Any:
    """Return torchvision's data set class for ``name``; torchvision is only imported here.

    Raises:
        DataError: ``name`` is not a CIFAR data set.
    """
    from torchvision import datasets

    if name not in CIFAR_NAMES:
        raise DataError(f"There is no CIFAR data set {name!r}; there are {' and '.join(CIFAR_NAMES)}.")
    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def outer_folder(torchvision_class: Any, data_dir: Path | str) -> Path:
    """Return the folder that holds the data set's folder, also if ``data_dir`` is the data set's folder itself."""
    data_dir = expanded(data_dir)
    outer = data_dir.resolve().parent
    if data_dir.resolve() != outer / torchvision_class.base_folder:
        return data_dir
    return outer if any((outer / file).is_file() for file, _ in expected_files(torchvision_class)) else data_dir


def expected_files(torchvision_class: Any) -> list[tuple[str, str]]:
    """Return (path below the data folder, md5) of every file of the data set."""
    meta = (torchvision_class.meta["filename"], torchvision_class.meta["md5"])
    listed = [*torchvision_class.train_list, *torchvision_class.test_list, meta]
    return [(f"{torchvision_class.base_folder}/{file}", md5) for file, md5 in listed]


def _problems(torchvision_class: Any, data_dir: Path) -> Iterator[str]:
    """Yield one phrase per missing or damaged file."""
    from torchvision.datasets.utils import check_integrity

    if not (data_dir / torchvision_class.base_folder).is_dir():
        yield f"the folder {torchvision_class.base_folder} is missing"
        return
    for file, md5 in expected_files(torchvision_class):
        if not (data_dir / file).is_file():
            yield f"{file} is missing"
        elif not check_integrity(data_dir / file, md5):
            yield f"{file} fails its checksum"


def archive_problem(torchvision_class: Any, data_dir: Path) -> str:
    """Return a phrase about the archive in ``data_dir`` if it is damaged; empty if there is none, or it is whole."""
    from torchvision.datasets.utils import check_integrity

    archive = data_dir / torchvision_class.filename
    if not archive.is_file() or check_integrity(archive, torchvision_class.tgz_md5):
        return ""
    return f"{archive.name} there is damaged or was not downloaded to its end ({archive.stat().st_size:,} bytes)"


def _fetch(name: str, torchvision_class: Any, data_dir: Path, download: bool) -> None:
    """Fetch the whole data set into ``data_dir``.

    Raises:
        DataError: it could not be fetched; the message says why and what to do.
    """
    problems = list(_problems(torchvision_class, data_dir))
    reason = "downloading was not allowed"
    if download:
        try:
            _download(torchvision_class, data_dir)
            problems = list(_problems(torchvision_class, data_dir))
            if not problems:
                return
            reason = "a fresh copy has the same fault"
        except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
            reason = f"fetching it failed ({type(error).__name__}: {error})"
    damaged = archive_problem(torchvision_class, data_dir)
    advice = f"{damaged}: replace it by" if damaged else "put"
    raise DataError(
        f"{name} in {data_dir} cannot be used: {', '.join(problems)}, and {reason}; {advice} "
        f"{torchvision_class.filename} (from {torchvision_class.url}) or the folder {torchvision_class.base_folder} "
        "unpacked from it there."
    )


def _download(torchvision_class: Any, data_dir: Path) -> None:
    """Download and unpack into a temporary folder, then move each file into place.

    A download that is killed leaves nothing that looks like data, and runs that start at the same time on an empty
    folder do not write into each other's files.
    """
    from torchvision.datasets import utils

    archive, md5 = torchvision_class.filename, torchvision_class.tgz_md5
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as scratch:
        if utils.check_integrity(data_dir / archive, md5):
            utils.extract_archive(data_dir / archive, scratch)
        else:
            with _socket_timeout(NETWORK_TIMEOUT_S):
                utils.download_and_extract_archive(torchvision_class.url, scratch, filename=archive, md5=md5)
        (data_dir / torchvision_class.base_folder).mkdir(exist_ok=True)
        for file, _ in expected_files(torchvision_class):
            (Path(scratch) / file).replace(data_dir / file)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the default socket timeout within the block.

    torchvision opens connections without a time limit and could hang for minutes without a network.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _split(dataset: Any) -> Split:
    images_NHWC = torch.from_numpy(dataset.data)
    return Split(images_NHWC.permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets, dtype=torch.int64))
