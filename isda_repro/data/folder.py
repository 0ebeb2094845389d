"""Image folders in the layout of ImageNet: ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``.

Only file names are read here. They are kept in an index in the user's cache, so that the next start reads one file
instead of scanning every folder. If a folder or an image has changed since, all are scanned again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isda_repro.console import one_line
from isda_repro.data.decode import FORMATS, MAX_FILE_BYTES
from isda_repro.data.packed import is_packed, load_packed
from isda_repro.data.source import (
    PARTS,
    DataError,
    MissingDataError,
    Source,
    candidate_folders,
    counted,
    hash_of,
    narrowed,
    total,
)
from isda_repro.files import atomic_write, cache_folder

EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
INDEX_VERSION = 2
CHECKED = 10_000  # images whose size is compared when an index is read; it takes 20 ms on a local disk

LITTER = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"),
        *("lost+found", "@eadir", "#recycle", "@recycle", "__pycache__"),
    )
)
"""Names, in lower case, of what operating systems and programs leave in folders."""

PASSED_OVER = "hidden or litter (names like .x, Thumbs.db, __MACOSX)"
NO_EXTENSION = "without an extension"
NO_FILE = "that are no files"
LOOP = "links to a folder around them"


@dataclass(frozen=True)
class FileSplit:
    """One part of a data set whose images stay on disk; the counterpart of ``Split`` for images in memory.

    Args:
        root: folder that the names are relative to.
        names: path of each image below ``root``, as bytes [N]; a numpy array, which processes share without copying it.
        sizes: size of each file in bytes, int64 [N]; -1 if it could not be found out.
        targets: labels, int64 [N].
        image_size: (H, W) of the images after decoding and cropping.
        channels: C of the images after decoding.
    """

    root: Path
    names: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    targets: Tensor
    image_size: tuple[int, int]
    channels: int = 3

    def __len__(self) -> int:
        return self.targets.numel()

    def select(self, indices: Tensor) -> FileSplit:
        """Return the images at ``indices``, distinct int64 [K] in any order, in their order in this split."""
        chosen = indices.sort().values
        names, sizes = (one[chosen.numpy()] for one in (self.names, self.sizes))
        return FileSplit(self.root, names, sizes, self.targets[chosen], self.image_size, self.channels)

    def path(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.root / os.fsdecode(bytes(self.names[index])))

    def where(self, index: int) -> str:
        """Return the path of an image as text for messages."""
        return one_line(self.path(index))

    @cached_property
    def digest(self) -> str:
        """Hash of the names below the part's folder and of the sizes, the same wherever the folder is."""
        return hash_of(self.names, self.sizes)

    def fingerprint(self, indices: Tensor) -> str:
        """Return a hash of the paths, sizes and modification times of the files at ``indices``, for caches."""
        found = hashlib.sha256()
        for path in (self.path(index) for index in indices.tolist()):
            with suppress(OSError):
                about = Path(path).stat()
                found.update(os.fsencode(path) + f"\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
        return found.hexdigest()

    def read(self, index: int) -> bytes:
        """Return the content of an image file.

        Raises:
            OSError: it cannot be read, or is larger than ``MAX_FILE_BYTES``.
        """
        with Path(self.path(index)).open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
                raise OSError(f"the file has {size:,} bytes, and the limit is {MAX_FILE_BYTES:,}")
            return file.read()


def load_folder(
    name: str,
    root: Path | str,
    image_size: int,
    num_classes: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
    imbalance: float | None = None,
) -> Source:
    """Load images from ``root/train/<class>/`` and ``root/val/<class>/``; classes are numbered in name order.

    A folder that holds packed archives (see ``load_packed``) is read as such.

    Args:
        name: name of the data set; its folder may be ``root/<name>`` or ``root`` itself.
        root: folder of the data.
        image_size: side in pixels of the square that each image is cropped to.
        num_classes: expected number of classes; None accepts any number.
        train_limit, test_limit, holdout, imbalance: see ``narrowed``. With a holdout ``val`` is not used.

    Raises:
        DataError: the folders do not exist or hold no images, or the classes of the two parts differ.
    """
    if packed := next((one for one in candidate_folders(name, root) if is_packed(one)), None):
        return load_packed(name, packed, image_size, num_classes, train_limit, test_limit, holdout, imbalance)
    root = _found(name, root, needs_val=holdout is None)
    used = ("train",) if holdout is not None else PARTS
    index = {part: content for part, content in read_index(root).items() if part in used}
    _check_classes(name, root, index, num_classes)
    size = (image_size, image_size)
    splits = {part: FileSplit(root / part, at.names, at.sizes, at.targets, size) for part, at in index.items()}
    train = splits["train"]
    classes = tuple(index["train"].classes)
    left_out = total(of_class for content in index.values() for of_class in content.left_out.values())
    test = splits.get("val", train.select(torch.empty(0, dtype=torch.int64)))  # empty: a holdout takes its place
    source = Source(name, train, test, len(classes), classes, left_out=left_out)
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout, imbalance=imbalance)


def _found(name: str, root: Path | str, *, needs_val: bool) -> Path:
    """Return the folder of the data set: the first one with both parts, or without ``val`` if that is allowed.

    Raises:
        MissingDataError: there is none.
    """
    tried = candidate_folders(name, root)
    for parts in (PARTS, PARTS[:1])[: 1 if needs_val else 2]:
        for folder in tried:
            if all((folder / part).is_dir() for part in parts):
                return folder
    message = (
        f"{name} is not in {root} (nor in {tried[0]}): there must be folders train and val, in each a folder for every "
        "class with its images; give their place as data_dir=FOLDER"
    )
    if any((folder / "train").is_dir() for folder in tried):
        message += ", or evaluate on a part of train by dataset.holdout=NUMBER"
    raise MissingDataError(message)


# --------------------------------------------------------------------------------------------------------------- index


@dataclass(frozen=True)
class Part:
    """Content of the folder ``train`` or ``val``."""

    classes: list[str]
    names: np.ndarray[Any, Any]  # bytes [N], path below the part
    sizes: np.ndarray[Any, Any]  # int64 [N], in bytes
    targets: Tensor
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Class -> kind -> number of files that are not used; the class "" stands for files outside of class folders."""
    changed: dict[str, int] = field(default_factory=dict)  # modification time of each folder below it, in ns


def read_index(root: Path) -> dict[str, Part]:
    """Return the content of ``root/train`` and, if it exists, ``root/val``.

    It is read from the cache if no folder has changed since and up to ``CHECKED`` images have the size that they had;
    otherwise the folders are scanned.
    """
    parts = [part for part in PARTS if (root / part).is_dir()]
    cache = _cache_file(root)
    index = _cached(cache)
    if index is not None and [*index] == parts and all(_is_current(root / part, index[part]) for part in parts):
        return index
    index = {part: _scan(root / part) for part in parts}
    with suppress(OSError):  # without a cache the next start is merely slower
        _write(cache, index)
    return index


def _cache_file(root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_folder() / f"index-{digest}.npz"


def _scan(part: Path) -> Part:
    """List the images in every folder below ``part``."""
    content = _Content(part)
    names: list[bytes] = []
    sizes: list[int] = []
    counts, left_out, changed = [], {"": content.left_out}, {"": content.modified}
    classes = content.folders
    for loose in content.images:
        content.left_out[_extension(loose)] += 1
    with tqdm(desc=f"looking through {part}", unit=" images", unit_scale=True, disable=None, leave=False) as bar:
        for label in classes:
            before = len(names)
            left_out[label] = Counter()
            for folder, below in _walk(part / label, label):
                changed[folder] = below.modified
                names += [os.fsencode(f"{folder}/{file}") for file in below.images]
                sizes += below.images.values()
                left_out[label] += below.left_out
            counts.append(len(names) - before)
            bar.update(counts[-1])
    targets = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    left_out = {label: kinds for label, kinds in left_out.items() if kinds}
    return Part(classes, np.array(names, dtype=np.bytes_), np.array(sizes, np.int64), targets, left_out, changed)


class _Content:
    """Content of one folder.

    Attributes:
        modified: its modification time in ns.
        identity: device and inode, the same by whatever link the folder is reached.
        folders: names of the folders in it, in order.
        images: name -> size in bytes of the files with an extension of an image, in order of the names; -1 for a link
            to nothing, which is an image that cannot be read.
        left_out: number of all other entries, by kind.
    """

    def __init__(self, path: Path) -> None:
        about = path.stat()
        self.modified, self.identity = about.st_mtime_ns, (about.st_dev, about.st_ino)
        self.folders: list[str] = []
        self.images: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                self._add(entry)

    def _add(self, entry: os.DirEntry[str]) -> None:
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            self.left_out[PASSED_OVER] += 1
        elif entry.is_dir():
            self.folders.append(entry.name)
        elif not entry.name.lower().endswith(EXTENSIONS):
            self.left_out[_extension(entry.name)] += 1
        elif (size := _size(entry)) is None:
            self.left_out[NO_FILE] += 1
        else:
            self.images[entry.name] = size


def _extension(name: str) -> str:
    return Path(name).suffix.lower() or NO_EXTENSION


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the size of a file in bytes, -1 if it cannot be found out, and None for a pipe or a device."""
    try:
        about = entry.stat()
    except OSError:
        return -1
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _walk(path: Path, name: str) -> Iterator[tuple[str, _Content]]:
    """Yield the name and the content of a folder and of all those below it, in order."""
    waiting: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(path, name, frozenset())]
    while waiting:
        path, name, around = waiting.pop()
        content = _Content(path)
        if content.identity in around:
            content.folders, content.images, content.left_out = [], {}, Counter({LOOP: 1})
        yield name, content
        inside = around | {content.identity}
        waiting += [(path / folder, f"{name}/{folder}", inside) for folder in reversed(content.folders)]


def images_below(folder: Path) -> list[str]:
    """Return the paths of all images in a folder and below it, in order, by the rules for the folder of a class.

    Raises:
        DataError: there is none.
    """
    contents = list(_walk(folder, str(folder)))
    if found := [f"{name}/{file}" for name, content in contents for file in content.images]:
        return found
    there = counted(total(content.left_out for _, content in contents)) or "no files"
    raise DataError(f"{folder} has no image (files ending with {', '.join(EXTENSIONS)} count; there are {there})")


def _is_current(part: Path, index: Part) -> bool:
    chosen = np.linspace(0, len(index.names) - 1, min(len(index.names), CHECKED)).astype(np.int64)
    root = os.fsencode(part)
    images = (root + b"/" + name for name in index.names[chosen].tolist())
    try:
        if any((part / folder).stat().st_mtime_ns != modified for folder, modified in index.changed.items()):
            return False
        return all(about.st_size == size for about, size in zip(map(os.stat, images), index.sizes[chosen], strict=True))
    except OSError:
        return False


def _write(cache: Path, index: dict[str, Part]) -> None:
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {"version": INDEX_VERSION}
    for name, part in index.items():
        arrays |= {f"{name}_names": part.names, f"{name}_sizes": part.sizes, f"{name}_targets": part.targets.numpy()}
        about[name] = {"classes": part.classes, "left_out": part.left_out, "changed": part.changed}
    cache.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(cache) as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode("utf-8", "surrogateescape"), np.uint8), **arrays)


def _cached(cache: Path) -> dict[str, Part] | None:
    """Return the stored index, or None if there is none or it cannot be read."""
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes().decode("utf-8", "surrogateescape"))
            if about["version"] != INDEX_VERSION:
                return None
            return {
                name: Part(
                    names=arrays[f"{name}_names"],
                    sizes=arrays[f"{name}_sizes"],
                    targets=torch.from_numpy(arrays[f"{name}_targets"]),
                    **about[name],
                )
                for name in PARTS
                if name in about
            }
    except Exception:  # a zip archive can be damaged in many ways
        return None


# -------------------------------------------------------------------------------------------------------------- checks


def _check_classes(name: str, root: Path, index: Mapping[str, Part], num_classes: int | None) -> None:
    train = index["train"]
    for part_name, part in sorted(index.items(), reverse=True):  # val first
        for other_name, other in index.items():
            if missing := sorted(set(other.classes) - set(part.classes)):
                raise DataError(
                    f"{root / part_name} has no folder for {_some(missing)}, and {root / other_name} has: both must "
                    "have the same classes"
                )
        counts = torch.bincount(part.targets, minlength=len(part.classes))
        if empty := [part.classes[label] for label in (counts == 0).nonzero()[:, 0]]:
            there = counted(total(part.left_out.get(label, {}) for label in empty))
            raise DataError(
                f"{root / part_name} has no image of {_some(empty)} (files ending with {', '.join(EXTENSIONS)} count; "
                f"there are {there or 'no files'}): add some, or remove the folder from both train and val"
            )
    if len(train.classes) < 2:
        raise DataError(f"{root / 'train'} holds {len(train.classes)} folders, and each class needs one: at least two")
    if num_classes is not None and len(train.classes) != num_classes:
        raise DataError(
            f"{name} has {num_classes} classes, but {root} has {len(train.classes)}: for a part of it, or for other "
            "images, use dataset=folder"
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    """Join the first ``most`` names and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
