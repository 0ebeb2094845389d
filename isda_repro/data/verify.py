"""Verification of a data set: checksums of its files, decoding of its images, and a sheet of augmented images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from isda_repro.data.cifar import CIFAR_NAMES, cifar_class, expected_files, load_cifar
from isda_repro.data.decode import Crop
from isda_repro.data.digits import load_digits
from isda_repro.data.folder import load_folder
from isda_repro.data.loader import Loader
from isda_repro.data.packed import checksums, is_packed, load_packed
from isda_repro.data.source import PARTS, DataError, Source, candidate_folders
from isda_repro.data.streaming import StreamingLoader
from isda_repro.files import sha256

STORED_NAMES = ("imagenet", "imagenet_packed", "folder")
IMAGENET_IMAGES = {"train": 1_281_167, "val": 50_000}


@dataclass(frozen=True)
class FileCheck:
    """Result of checking one file: path below the data folder, size in bytes, found and expected checksum."""

    path: str
    num_bytes: int | None
    found: str | None
    expected: str
    kind: str = "md5"

    @property
    def state(self) -> Literal["ok", "missing", "fails its checksum"]:
        """State of the file: ``ok``, ``missing`` or ``fails its checksum``."""
        if self.found is None:
            return "missing"
        return "ok" if self.found == self.expected else "fails its checksum"


@dataclass(frozen=True)
class Verification:
    """Findings of ``verify``.

    Attributes:
        name: name of the data set.
        files: check of each file.
        class_names: name of each class.
        train_counts, test_counts: number of images per class; None if a file is missing or damaged.
        problems: phrases about images that cannot be read, and about counts that are not the data set's.
    """

    name: str
    files: tuple[FileCheck, ...]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] | None
    test_counts: tuple[int, ...] | None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if every file is present and intact, and there are no problems."""
        return not self.problems and all(file.state == "ok" for file in self.files)

    def lines(self) -> Iterator[str]:
        """Yield the findings as text, one line per file and one per class."""
        for file in self.files:
            size = "-" if file.num_bytes is None else f"{file.num_bytes:,}"
            yield f"{file.state:<18}  {size:>12} bytes  {file.kind} {file.found or '-':<32}  {file.path}"
        yield from self.problems
        if self.train_counts is None or self.test_counts is None:
            return
        yield f"{self.name}: {sum(self.train_counts)} training and {sum(self.test_counts)} test images"
        for label, counts in enumerate(zip(self.class_names, self.train_counts, self.test_counts, strict=True)):
            class_name, train, test = counts
            yield f"class {label:>3}  {train:>6} train  {test:>6} test  {class_name}"


def verify(name: str, data_dir: Path, workers: int = 0) -> Verification:
    """Check every file of a data set and count the images of its classes; nothing is downloaded.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``imagenet``, ``imagenet_packed`` or ``folder``.
        data_dir: folder of the data.
        workers: processes that decode every image of the last three; not used for the others.

    Raises:
        DataError: an unknown data set, missing folders, or labels that do not belong to the data set.
    """
    if name == "digits":  # bundled with scikit-learn, so it has no files of its own
        return _verification(name, (), load_digits())
    if name in STORED_NAMES:
        return _verify_stored(name, Path(data_dir).expanduser(), workers)
    if name not in CIFAR_NAMES:
        names = ", ".join(("digits", *CIFAR_NAMES, *STORED_NAMES))
        raise DataError(f"There is nothing to verify for {name!r}; there are {names}.")
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


def _verify_stored(name: str, data_dir: Path, workers: int) -> Verification:
    """Verify archives by their checksums, and every image by decoding it."""
    load = load_packed if name == "imagenet_packed" else load_folder
    called = data_dir.resolve().name if name == "folder" else name
    source = load(called, data_dir, image_size=8, num_classes=None if name == "folder" else 1000)
    packed = next((folder for folder in candidate_folders(called, data_dir) if is_packed(folder)), None)
    files = () if packed is None else tuple(_check_archives(packed))
    problems = []
    for part, split in zip(PARTS, (source.train, source.test), strict=True):
        if name != "folder" and len(split) != IMAGENET_IMAGES[part]:
            problems.append(f"{part} has {len(split):,} images, and ImageNet {IMAGENET_IMAGES[part]:,}")
        problems += _unreadable(f"{called}, {part}", split, workers)
    counted = _verification(called, files, source)
    return replace(counted, problems=tuple(problems))


def _check_archives(folder: Path) -> Iterator[FileCheck]:
    for name, expected in tqdm(sorted(checksums(folder).items()), desc="checksums", disable=None, leave=False):
        file = folder / name
        yield FileCheck(name, file.stat().st_size, sha256(file), expected, "sha256")


def _unreadable(what: str, split: Any, workers: int) -> Iterator[str]:
    loader = StreamingLoader(
        split,
        crop=Crop(8, "center"),
        workers=workers,
        unreadable="skip",
        batch_size=256,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        shuffle=False,
        seed=0,
        device=torch.device("cpu"),
    )
    with tqdm(total=len(split), desc=what, unit=" images", disable=None, leave=False) as bar:
        for images, _ in loader.epoch(0):
            bar.update(len(images))
    return (f"{where} cannot be read as an image: {reason}" for where, reason in loader.unreadable.items())


def _check(data_dir: Path, path: str, expected_md5: str) -> FileCheck:
    from torchvision.datasets.utils import calculate_md5

    file = data_dir / path
    if not file.is_file():
        return FileCheck(path, None, None, expected_md5)
    return FileCheck(path, file.stat().st_size, calculate_md5(file), expected_md5)


GAP = 2  # pixels between images, before they are enlarged
WHITE = 255


def contact_sheet(
    evaluated: Loader,
    trained: Loader,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    versions: int,
    enlarged: int,
) -> Tensor:
    """Draw a sheet with one image per row: first as evaluated, then ``versions`` augmented versions of it.

    Args:
        evaluated: loader of the images as they are evaluated, in one batch.
        trained: loader of the same images in the same order as they are trained on; each version is one of its epochs.
        mean, std: normalisation of both loaders, which is inverted here.
        versions: number of augmented versions.
        enlarged: side in output pixels of the square that each image pixel becomes.

    Returns:
        uint8 [3, height, width].
    """
    batches = [evaluated.epoch(0), *(trained.epoch(epoch) for epoch in range(versions))]
    columns = [_pixels(next(batch)[0].cpu(), mean, std) for batch in batches]
    return _arranged(torch.stack(columns, dim=1), enlarged)


def _pixels(normalised: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(list(numbers))[:, None, None] for numbers in (mean, std))
    return ((normalised * std_C11 + mean_C11) * 255).round().clamp(0, 255).to(torch.uint8)


def _arranged(images: Tensor, enlarged: int) -> Tensor:
    """Arrange images uint8 [rows, columns, 3, H, W] on a white sheet, with a wider gap after the first column."""
    rows, columns, channels, height, width = images.shape
    first = 2 * GAP  # extra width of the gap after the first column
    sheet = torch.full((channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP + first), WHITE)
    sheet = sheet.to(torch.uint8)
    for row in range(rows):
        for column in range(columns):
            top = GAP + row * (height + GAP)
            left = GAP + column * (width + GAP) + (first if column else 0)
            sheet[:, top : top + height, left : left + width] = images[row, column]
    return sheet.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2)
