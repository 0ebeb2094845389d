"""Verification of a data set: checksums of its files, and decoding of its images."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from isda_repro.console import one_line
from isda_repro.data.cifar import CIFAR_NAMES, archive_problem, cifar_class, expected_files, load_cifar, outer_folder
from isda_repro.data.decode import FORMATS, RULES, UnreadableError, decoded, peculiarities, unreadable_because
from isda_repro.data.digits import load_digits
from isda_repro.data.folder import EXTENSIONS, FileSplit, Part, load_folder, read_index
from isda_repro.data.packed import PackedSplit, archive_names, checksums, is_packed, load_packed, read_manifest
from isda_repro.data.source import PARTS, DataError, Source, StoredSplit, candidate_folders, counted, total
from isda_repro.data.workers import in_processes
from isda_repro.files import expanded, sha256

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
        class_files: for each class, the extensions of its files and what is left out; empty for images in memory.
        notes: lines about files that are not used, and about images that are read by one of ``RULES``.
        problems: what would make training fail, or its result wrong: images that cannot be read, pictures that are left
            out, training images that are evaluated on, and counts that are not the data set's.
    """

    name: str
    files: tuple[FileCheck, ...]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] | None
    test_counts: tuple[int, ...] | None
    class_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
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
        if self.train_counts is not None and self.test_counts is not None:
            yield f"{self.name}: {sum(self.train_counts)} training and {sum(self.test_counts)} test images"
            rows = zip(self.class_names, self.train_counts, self.test_counts, strict=True)
            for label, (class_name, train, test) in enumerate(rows):
                files = f"  ({self.class_files[label]})" if self.class_files else ""
                yield f"class {label:>3}  {train:>6} train  {test:>6} test  {one_line(class_name)}{files}"
        yield from self.notes
        if self.problems:
            yield f"faults: {len(self.problems)}"
            yield from (f"  {problem}" for problem in self.problems)


def verify(name: str, data_dir: Path, workers: int = 0, holdout: int | None = None) -> Verification:
    """Check every file of a data set and count the images of its classes; nothing is downloaded.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``imagenet``, ``imagenet_packed`` or ``folder``.
        data_dir: folder of the data.
        workers: processes that decode every image of the last three; not used for the others.
        holdout: number of training images to evaluate on, as in training; then there need not be a folder ``val``.

    Raises:
        DataError: an unknown data set, missing folders, or labels that do not belong to the data set.
    """
    if name == "digits":  # bundled with scikit-learn, so it has no files of its own
        return _verification(name, (), load_digits())
    if name in STORED_NAMES:
        return _verify_stored(name, expanded(data_dir), workers, holdout)
    if name not in CIFAR_NAMES:
        names = ", ".join(("digits", *CIFAR_NAMES, *STORED_NAMES))
        raise DataError(f"There is nothing to verify for {name!r}; there are {names}.")
    torchvision_class = cifar_class(name)
    data_dir = outer_folder(torchvision_class, data_dir)
    files = tuple(_check(data_dir, path, md5) for path, md5 in expected_files(torchvision_class))
    if all(file.state == "ok" for file in files):
        return _verification(name, files, load_cifar(name, data_dir, download=False))
    damaged = archive_problem(torchvision_class, data_dir)
    return replace(_verification(name, files, None), problems=(damaged,) if damaged else ())


def _verification(name: str, files: tuple[FileCheck, ...], source: Source | None) -> Verification:
    if source is None:
        return Verification(name, files, (), None, None)
    train_counts, test_counts = (
        tuple(torch.bincount(split.targets, minlength=source.num_classes).tolist())
        for split in (source.train, source.test)
    )
    return Verification(name, files, source.class_names, train_counts, test_counts)


# ----------------------------------------------------------------------------------------------------- images in files

NOT_READ = frozenset(
    (
        *(".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".psd", ".svg", ".eps", ".ico"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".exr", ".hdr", ".pfm", ".dcm"),
    )
)
"""Extensions of pictures that are left out, so that a data set is smaller than it seems."""
SHOWN = 10  # pairs of equal files that are named


def _verify_stored(name: str, data_dir: Path, workers: int, holdout: int | None) -> Verification:
    """Verify archives by their checksums, and every image by decoding it."""
    load = load_packed if name == "imagenet_packed" else load_folder
    called = data_dir.resolve().name if name == "folder" else name
    options: dict[str, Any] = {"image_size": 8, "num_classes": None if name == "folder" else 1000}
    source = load(called, data_dir, holdout=holdout, **options)
    packed = next((folder for folder in candidate_folders(called, data_dir) if is_packed(folder)), None)
    splits: dict[str, FileSplit | PackedSplit] = dict(zip(PARTS, (source.train, source.test), strict=True))  # type: ignore[arg-type]
    index = read_index(splits["train"].root.parent) if isinstance(splits["train"], FileSplit) else {}
    if holdout is not None:  # the images to evaluate are then also in train
        index.pop("val", None)
    inspected = {part: _inspected(f"{called}, {part}", split, workers) for part, split in splits.items()}
    problems = [problem for part in inspected.values() for problem in part.unreadable]
    notes = [*_left_out(index, problems), *_read_by_a_rule(inspected.values())]
    equal = list(_equal(splits, inspected))
    if name == "folder":
        problems += equal
    else:  # published data: not the user's to change
        notes += equal
        for part, split in splits.items():
            if holdout is None and len(split) != IMAGENET_IMAGES[part]:
                problems.append(f"{part} has {len(split):,} images, and ImageNet {IMAGENET_IMAGES[part]:,}")
    return replace(
        _verification(called, () if packed is None else tuple(_check_archives(packed)), source),
        class_files=tuple(_class_files(source.class_names, splits, index)),
        notes=tuple(notes),
        problems=tuple(problems),
    )


def _check_archives(folder: Path) -> Iterator[FileCheck]:
    manifest, listed = read_manifest(folder), checksums(folder)
    names = [name for part in PARTS for name in archive_names(manifest, part)]
    for name in tqdm(names, desc="checksums", disable=None, leave=False):
        file = folder / name
        yield FileCheck(name, file.stat().st_size, sha256(file), listed.get(name, "-"), "sha256")


class _Image(NamedTuple):
    """Findings about one image file; ``reason`` says why it cannot be read, and is empty if it can."""

    content: int  # 64 bits of a hash
    kind: str
    peculiar: tuple[str, ...]
    reason: str


@dataclass
class _Inspected:
    """Findings about the images of one part."""

    contents: np.ndarray[Any, Any]  # hash of the content of each file, uint64 [N]; 0 if it cannot be read
    peculiar: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


MISNAMED = "a name of another format"


def _inspected(what: str, split: FileSplit | PackedSplit, workers: int) -> _Inspected:
    found = _Inspected(np.zeros(len(split), np.uint64))
    with (
        tqdm(total=len(split), desc=what, unit=" images", disable=None, leave=False) as bar,
        closing(in_processes(workers, partial(_inspect, split), range(len(split)))) as images,
    ):
        for index, image in enumerate(images):
            found.contents[index] = image.content
            found.peculiar.update(image.peculiar)
            extension = Path(bytes(split.names[index]).decode("utf-8", "replace")).suffix.lower()
            found.peculiar[MISNAMED] += bool(image.kind) and extension not in FORMATS[image.kind]
            if image.reason:
                found.unreadable.append(f"{split.where(index)} cannot be read as an image: {one_line(image.reason)}")
            bar.update()
    return found


def _inspect(split: FileSplit | PackedSplit, index: int) -> _Image:
    try:
        content = split.read(index)
        hashed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little") or 1
        kind, peculiar = peculiarities(content)
        decoded(content)
    except (UnreadableError, OSError) as error:
        return _Image(0, "", (), unreadable_because(error))
    return _Image(hashed, kind, tuple(peculiar), "")


def _left_out(index: Mapping[str, Part], problems: list[str]) -> Iterator[str]:
    """Yield lines about the files that are not used, and append those to ``problems`` that are pictures."""
    for part, content in index.items():
        for class_name, kinds in content.left_out.items():
            where = f"{part}/{one_line(class_name)}" if class_name else f"{part}, outside of the class folders"
            pictures = NOT_READ | set(EXTENSIONS) if not class_name else NOT_READ
            if left_out := {kind: count for kind, count in kinds.items() if kind in pictures}:
                problems.append(
                    f"{where} has pictures that are not used ({counted(left_out)}): save them as .png in a class folder"
                )
    if kinds := total(of_class for content in index.values() for of_class in content.left_out.values()):
        yield f"files that are not used: {sum(kinds.values()):,}"
        for kind, count in sorted(kinds.items()):
            why = "a format that is not read" if kind in NOT_READ else "not a picture by its name"
            yield f"  {count:>7,}  {one_line(kind)}" + (f": {why}" if kind.startswith(".") else "")


def _read_by_a_rule(parts: Iterable[_Inspected]) -> Iterator[str]:
    peculiar = sum((part.peculiar for part in parts), Counter[str]())
    rules = RULES | {MISNAMED: "the format is recognised from the content"}
    if any(peculiar.values()):
        yield "images that are read by a rule (docs/data.md):"
        for name in (name for name in rules if peculiar[name]):
            yield f"  {peculiar[name]:>7,}  {name}: {rules[name]}"


def _equal(splits: Mapping[str, StoredSplit], inspected: Mapping[str, _Inspected]) -> Iterator[str]:
    """Yield lines about images that are evaluated on and have the same content as a training image."""
    train, test = (inspected[part].contents for part in PARTS)
    first_of = {content: index for index, content in reversed([*enumerate(train.tolist())]) if content}
    pairs = [(first_of[content], index) for index, content in enumerate(test.tolist()) if content in first_of]
    for a, b in pairs[:SHOWN]:
        yield f"{splits['val'].where(b)} has the same content as {splits['train'].where(a)}"
    if len(pairs) > SHOWN:
        yield f"{len(pairs) - SHOWN:,} more of the images that are evaluated on have the content of a training image"


def _class_files(
    class_names: Sequence[str], splits: Mapping[str, FileSplit | PackedSplit], index: Mapping[str, Part]
) -> Iterator[str]:
    """Yield, for each class, its numbers of files by extension and what is left out."""
    extensions: list[Counter[str]] = [Counter() for _ in class_names]
    for split in splits.values():
        suffixes = [Path(name.decode("utf-8", "replace")).suffix.lower() for name in split.names.tolist()]
        for label, suffix in zip(split.targets.tolist(), suffixes, strict=True):
            extensions[label][suffix] += 1
    for label, class_name in enumerate(class_names):
        left_out = counted(total(part.left_out.get(class_name, {}) for part in index.values()))
        yield counted(extensions[label]) + (f"; not used: {left_out}" if left_out else "")


def _check(data_dir: Path, path: str, expected_md5: str) -> FileCheck:
    from torchvision.datasets.utils import calculate_md5

    file = data_dir / path
    if not file.is_file():
        return FileCheck(path, None, None, expected_md5)
    return FileCheck(path, file.stat().st_size, calculate_md5(file), expected_md5)
