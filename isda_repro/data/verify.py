"""Is a data set there, whole, and what is in it: file by file, class by class."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from isda_repro.data.cifar import CIFAR_NAMES, cifar_class, expected_files, load_cifar
from isda_repro.data.digits import load_digits
from isda_repro.data.source import DataError, Source


@dataclass(frozen=True)
class FileCheck:
    """One file of a data set: its path below the data folder, its size, and its md5 beside the one it should have."""

    path: str
    num_bytes: int | None
    md5: str | None
    expected_md5: str

    @property
    def state(self) -> Literal["ok", "missing", "fails its checksum"]:
        """What is wrong with it, if anything."""
        if self.md5 is None:
            return "missing"
        return "ok" if self.md5 == self.expected_md5 else "fails its checksum"


@dataclass(frozen=True)
class Verification:
    """What was found. The counts, one number per class, are None where a file is missing or damaged."""

    name: str
    files: tuple[FileCheck, ...]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] | None
    test_counts: tuple[int, ...] | None

    @property
    def ok(self) -> bool:
        """Whether every file is there and whole."""
        return all(file.state == "ok" for file in self.files)

    def lines(self) -> Iterator[str]:
        """The findings for people, one line per file and one per class."""
        for file in self.files:
            size = "-" if file.num_bytes is None else f"{file.num_bytes:,}"
            yield f"{file.state:<18}  {size:>12} bytes  md5 {file.md5 or '-':<32}  {file.path}"
        if self.train_counts is None or self.test_counts is None:
            return
        yield f"{self.name}: {sum(self.train_counts)} training and {sum(self.test_counts)} test images"
        for label, counts in enumerate(zip(self.class_names, self.train_counts, self.test_counts, strict=True)):
            class_name, train, test = counts
            yield f"class {label:>3}  {train:>6} train  {test:>6} test  {class_name}"


def verify(name: str, data_dir: Path) -> Verification:
    """Check every file of ``digits``, ``cifar10`` or ``cifar100`` and count its classes; nothing is downloaded.

    Raises:
        DataError: no such data set, or labels that do not belong to it.
    """
    if name == "digits":  # inside scikit-learn, so without files of its own
        return _verification(name, (), load_digits())
    if name not in CIFAR_NAMES:
        raise DataError(f"There is nothing to verify for {name!r}; there are digits, {', '.join(CIFAR_NAMES)}.")
    data_dir = Path(data_dir).expanduser()
    files = tuple(_check(data_dir, path, md5) for path, md5 in expected_files(cifar_class(name)))
    whole = all(file.state == "ok" for file in files)
    return _verification(name, files, load_cifar(name, data_dir, download=False) if whole else None)


def _verification(name: str, files: tuple[FileCheck, ...], source: Source | None) -> Verification:
    if source is None:
        return Verification(name, files, (), None, None)
    train_counts, test_counts = (
        tuple(torch.bincount(split.targets, minlength=source.num_classes).tolist())
        for split in (source.train, source.test)
    )
    return Verification(name, files, source.class_names, train_counts, test_counts)


def _check(data_dir: Path, path: str, expected_md5: str) -> FileCheck:
    from torchvision.datasets.utils import calculate_md5

    file = data_dir / path
    if not file.is_file():
        return FileCheck(path, None, None, expected_md5)
    return FileCheck(path, file.stat().st_size, calculate_md5(file), expected_md5)
