"""Image folders in the layout of ImageNet: ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG``.

Only file names are read here. They are kept in an index in the user's cache, so that the next start reads one file
instead of scanning every folder. If a folder has changed since, all are scanned again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isda_repro.data.packed import is_packed, load_packed
from isda_repro.data.source import PARTS, DataError, Source, candidate_folders, narrowed
from isda_repro.files import atomic_write, cache_folder

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
INDEX_VERSION = 1


@dataclass(frozen=True)
class FileSplit:
    """One part of a data set whose images stay on disk; the counterpart of ``Split`` for images in memory.

    Args:
        root: folder that the names are relative to.
        names: path of each image below ``root``, as bytes [N]; a numpy array, which processes share without copying it.
        targets: labels, int64 [N].
        image_size: (H, W) of the images after decoding and cropping.
        channels: C of the images after decoding.
    """

    root: Path
    names: np.ndarray[Any, Any]
    targets: Tensor
    image_size: tuple[int, int]
    channels: int = 3

    def __len__(self) -> int:
        return self.targets.numel()

    def select(self, indices: Tensor) -> FileSplit:
        """Return the images at ``indices``, distinct int64 [K] in any order, in their order in this split."""
        indices = indices.sort().values
        return FileSplit(self.root, self.names[indices.numpy()], self.targets[indices], self.image_size)

    def where(self, index: int) -> str:
        """Return the path of an image, for messages."""
        return str(self.root / os.fsdecode(bytes(self.names[index])))

    def fingerprint(self) -> str:
        """Return a hash of the folder, the names and the labels, which differs for any other set of files."""
        digest = hashlib.sha256(os.fsencode(self.root))
        for part in (self.names, self.targets.numpy()):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> bytes:
        """Return the content of an image file."""
        return Path(self.where(index)).read_bytes()


def load_folder(
    name: str,
    root: Path | str,
    image_size: int,
    num_classes: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
) -> Source:
    """Load images from ``root/train/<class>/`` and ``root/val/<class>/``; classes are numbered in name order.

    A folder that holds packed archives (see ``load_packed``) is read as such.

    Args:
        name: name of the data set; its folder may be ``root/<name>`` or ``root`` itself.
        root: folder of the data.
        image_size: side in pixels of the square that each image is cropped to.
        num_classes: expected number of classes; None accepts any number.
        train_limit, test_limit, holdout: see ``narrowed``.

    Raises:
        DataError: the folders do not exist or hold no images, or the classes of the two parts differ.
    """
    if packed := next((one for one in candidate_folders(name, root) if is_packed(one)), None):
        return load_packed(name, packed, image_size, num_classes, train_limit, test_limit, holdout)
    root = _found(name, root)
    index = read_index(root)
    train, val = (index[part] for part in PARTS)
    _check_classes(name, root, train, val, num_classes)
    size = (image_size, image_size)
    source = Source(
        name,
        FileSplit(root / "train", train.names, train.targets, size),
        FileSplit(root / "val", val.names, val.targets, size),
        len(train.classes),
        tuple(train.classes),
    )
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout)


def _found(name: str, root: Path | str) -> Path:
    for folder in candidate_folders(name, root):
        if all((folder / part).is_dir() for part in PARTS):
            return folder
    raise DataError(
        f"{name} is not in {root} (nor in {candidate_folders(name, root)[0]}): there must be folders train and val, "
        "in each a folder for every class with its images; give their place as data_dir=FOLDER"
    )


# --------------------------------------------------------------------------------------------------------------- index


@dataclass(frozen=True)
class Part:
    """Content of the folder ``train`` or ``val``."""

    classes: list[str]
    names: np.ndarray[Any, Any]  # bytes [N], path below the part
    targets: Tensor
    ignored: int = 0  # number of files without an image extension
    changed: dict[str, int] = field(default_factory=dict)  # modification time of each folder below it, in ns


def read_index(root: Path) -> dict[str, Part]:
    """Return the content of ``root``: from the cache if no folder has changed since, else by scanning it."""
    cache = _cache_file(root)
    index = _cached(cache)
    if index is not None and all(_is_current(root / part, index[part]) for part in PARTS):
        return index
    index = {part: _scan(root / part) for part in PARTS}
    with suppress(OSError):  # without a cache the next start is merely slower
        _write(cache, index)
    return index


def _cache_file(root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_folder() / f"index-{digest}.npz"


def _scan(part: Path) -> Part:
    """List the images in every folder below ``part``."""
    classes = sorted(entry.name for entry in os.scandir(part) if entry.is_dir())
    names: list[bytes] = []
    counts, ignored, changed = [], 0, {"": part.stat().st_mtime_ns}
    with tqdm(desc=f"looking through {part}", unit=" images", unit_scale=True, disable=None, leave=False) as bar:
        for label in classes:
            before = len(names)
            for folder, modified, files in _walk(part / label, label):
                changed[folder] = modified
                images = [file for file in files if file.lower().endswith(EXTENSIONS)]
                ignored += len(files) - len(images)
                names += [os.fsencode(f"{folder}/{file}") for file in images]
            counts.append(len(names) - before)
            bar.update(counts[-1])
    targets = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return Part(classes, np.array(names, dtype=np.bytes_), targets, ignored, changed)


def _walk(path: Path, name: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the name, modification time and sorted files of a folder and, recursively, of those below it in order."""
    modified = path.stat().st_mtime_ns
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    yield name, modified, sorted(files)
    for folder in sorted(folders):
        yield from _walk(path / folder, f"{name}/{folder}")


def _is_current(part: Path, index: Part) -> bool:
    try:
        return all((part / folder).stat().st_mtime_ns == modified for folder, modified in index.changed.items())
    except OSError:
        return False


def _write(cache: Path, index: dict[str, Part]) -> None:
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {"version": INDEX_VERSION}
    for name, part in index.items():
        arrays |= {f"{name}_names": part.names, f"{name}_targets": part.targets.numpy()}
        about[name] = {"classes": part.classes, "ignored": part.ignored, "changed": part.changed}
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
                    names=arrays[f"{name}_names"], targets=torch.from_numpy(arrays[f"{name}_targets"]), **about[name]
                )
                for name in PARTS
            }
    except Exception:  # a zip archive can be damaged in many ways
        return None


# -------------------------------------------------------------------------------------------------------------- checks


def _check_classes(name: str, root: Path, train: Part, val: Part, num_classes: int | None) -> None:
    for part_name, part, other_name, other in (("val", val, "train", train), ("train", train, "val", val)):
        if missing := sorted(set(other.classes) - set(part.classes)):
            raise DataError(
                f"{root / part_name} has no folder for {_some(missing)}, and {root / other_name} has: both must have "
                "the same classes"
            )
        counts = torch.bincount(part.targets, minlength=len(part.classes))
        if empty := [part.classes[label] for label in (counts == 0).nonzero()[:, 0]]:
            raise DataError(
                f"{root / part_name} has no image of {_some(empty)} (files ending with {', '.join(EXTENSIONS)} count): "
                "add some, or remove the folder from both train and val"
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
