"""Data sets packed into a few uncompressed ZIP archives, which ``packing.py`` writes and this module reads in place.

    packed.json         settings of the packing, and the classes and numbers of images
    train-00000.zip ... <class>/<name>.ppm, or .jpg
    val-00000.zip ...
    SHA256SUMS          one line for each finished archive, readable by ``sha256sum -c``

Any ZIP tool opens the archives. Their directories are kept in an index in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import zipfile
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isda_repro.console import one_line
from isda_repro.data.decode import MAX_FILE_BYTES
from isda_repro.data.source import (
    PARTS,
    DataError,
    MissingDataError,
    Source,
    candidate_folders,
    hash_of,
    narrowed,
)
from isda_repro.files import atomic_write, cache_folder, open_regular

MANIFEST, SUMS = "packed.json", "SHA256SUMS"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of what follows it
SIGNATURE = b"PK\3\4"
INDEX_VERSION = 2
MAX_MANIFEST_BYTES = 2**26
MAX_ARCHIVES = 100_000
MAX_IMAGES = 2**40
MAX_NAME_BYTES = 4096


@dataclass(frozen=True)
class PackedSplit:
    """One part of a data set in archives; a drop-in replacement for ``FileSplit``.

    Args:
        archives: paths of the archives.
        archive: index of each image's archive, int64 [N].
        offset: offset of each image's entry in its archive, in bytes, int64 [N].
        size: size of each image's content, in bytes, int64 [N].
        names: entry names, as bytes [N].
        targets: labels, int64 [N].
        image_size: (H, W) of the images after decoding and cropping.
        channels: C of the images after decoding.
    """

    archives: tuple[str, ...]
    archive: np.ndarray[Any, Any]
    offset: np.ndarray[Any, Any]
    size: np.ndarray[Any, Any]
    names: np.ndarray[Any, Any]
    targets: Tensor
    image_size: tuple[int, int]
    channels: int = 3

    def __len__(self) -> int:
        return self.targets.numel()

    def select(self, indices: Tensor) -> PackedSplit:
        """Return the images at ``indices``, distinct int64 [K] in any order, in their order in this split."""
        indices = indices.sort().values
        taken = {
            field.name: getattr(self, field.name)[indices.numpy()]
            for field in fields(self)
            if field.name in ("archive", "offset", "size", "names")
        }
        return PackedSplit(
            self.archives, **taken, targets=self.targets[indices], image_size=self.image_size, channels=self.channels
        )

    def where(self, index: int) -> str:
        """Return the archive and the entry of an image, for messages."""
        entry = os.fsdecode(bytes(self.names[index]))
        return one_line(f"{self.archives[self.archive[index]]}, entry {entry}")

    @cached_property
    def digest(self) -> str:
        """Hash of the names and sizes of the entries, the same wherever the archives are."""
        return hash_of(self.names, self.size)

    def fingerprint(self, indices: Tensor) -> str:
        """Return a hash of the entries at ``indices`` and of their archives' paths and modification times."""
        chosen = indices.numpy()
        found = hashlib.sha256()
        for part in (self.names, self.size, self.offset, self.archive):
            found.update(np.ascontiguousarray(part[chosen]).tobytes())
        for number in np.unique(self.archive[chosen]).tolist():
            archive = Path(self.archives[number])
            found.update(os.fsencode(archive) + f"\0{archive.stat().st_mtime_ns}\0".encode())
        return found.hexdigest()

    def read(self, index: int) -> bytearray:
        """Return the content of an image file.

        Raises:
            OSError: the archive is missing, shorter than it was, or a different one.
        """
        file, offset = _descriptor(self.archives[self.archive[index]]), int(self.offset[index])
        signature, *lengths = LOCAL_HEADER.unpack(os.pread(file, LOCAL_HEADER.size, offset).ljust(LOCAL_HEADER.size))
        content = bytearray(int(self.size[index]))
        begins = offset + LOCAL_HEADER.size + sum(lengths)
        if signature != SIGNATURE or os.preadv(file, [content], begins) != len(content):
            raise OSError("the archive is damaged, or another one than when the run began")
        return content


@cache
def _descriptor(archive: str) -> int:
    """Open an archive once and return its file descriptor.

    Processes can share it, because every read gives its own offset.
    """
    return os.open(archive, os.O_RDONLY)


OTHER_FILES = 256  # that a process of a training has open beside the archives


def _allow_open_files(archives: int) -> None:
    """Raise this process's limit of open files, if necessary, so that it and its workers can keep all archives open.

    Raises:
        DataError: the system allows fewer.
    """
    needed = archives + OTHER_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < needed:
        if most != resource.RLIM_INFINITY and most < needed:
            raise DataError(
                f"{archives:,} archives have to be open at once, and a process may open {most:,} files here: raise the "
                "limit (ulimit -Hn), or pack anew with a larger images_per_archive="
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def is_packed(root: Path) -> bool:
    """Return whether ``root`` holds a data set that ``packing.py`` has written (possibly unfinished)."""
    return (root / MANIFEST).is_file()


def load_packed(
    name: str,
    root: Path | str,
    image_size: int,
    num_classes: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
    imbalance: float | None = None,
) -> Source:
    """Load the data set that ``python scripts/data.py pack`` has written to ``root`` or ``root/name``.

    The arguments are those of ``load_folder``.

    Raises:
        DataError: nothing is packed there, the packing is not finished, or an archive is missing or cannot be read.
    """
    tried = candidate_folders(name, root)
    folder = next((one for one in tried if is_packed(one)), None)
    if folder is None:
        raise MissingDataError(
            f"nothing is packed in {tried[0]} or {tried[1]}: write it with python scripts/data.py pack "
            "dataset=imagenet output=FOLDER, and give data_dir=FOLDER"
        )
    manifest = read_manifest(folder)
    archives = [folder / archive for part in PARTS for archive in archive_names(manifest, part)]
    listed = checksums(folder)
    if missing := [archive.name for archive in archives if archive.name not in listed or not archive.is_file()]:
        raise DataError(
            f"{folder} is not whole: {len(missing)} of {len(archives)} archives are not there or not finished, the "
            f"first is {missing[0]}; the command that packed it goes on where it was"
        )
    _allow_open_files(len(archives))
    classes = list(manifest["classes"])
    if num_classes is not None and len(classes) != num_classes:
        raise DataError(f"{name} has {num_classes} classes, but {folder} has {len(classes)}: use dataset=folder for it")
    splits = {part: _split(folder, manifest, part, classes, image_size) for part in PARTS}
    source = Source(name, splits["train"], splits["val"], len(classes), tuple(classes))
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout, imbalance=imbalance)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``packed.json``.

    Raises:
        DataError: it cannot be read, lacks a key, or holds a value that ``packing.py`` does not write.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path, MAX_MANIFEST_BYTES) as file:
            manifest = json.loads(file.read())
        _check_manifest(manifest)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); pack the data anew") from error
    return dict(manifest)


def _check_manifest(manifest: Any) -> None:
    """Raise ValueError unless the content of a ``packed.json`` is as ``packing.py`` writes it."""
    if not isinstance(manifest, dict) or not manifest.keys() >= MANIFEST_KEYS:
        raise ValueError("something is missing in it")
    images, classes = manifest["images"], manifest["classes"]
    if not isinstance(images, dict) or images.keys() != set(PARTS):
        raise ValueError("images must give the numbers of train and val")
    numbers = {f"images of {part}": images[part] for part in PARTS}
    numbers |= {key: manifest[key] for key in ("images_per_archive", "size")}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_IMAGES:
            raise ValueError(f"{name} must be a whole number from 1 to 2**40")
    if any(images[part] > MAX_ARCHIVES * manifest["images_per_archive"] for part in PARTS):
        raise ValueError(f"it names more than {MAX_ARCHIVES:,} archives")
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError("classes must be a list of names")
    if len({entry_name(name) for name in classes}) != len(classes) or any("/" in name for name in classes):
        raise ValueError("the names of the classes must differ, and have no slash")


MANIFEST_KEYS = {"classes", "images", "images_per_archive", "size", "format"}


def entry_name(name: str) -> str:
    """Return a path as it is written in an archive, in UTF-8; other bytes are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def archive_names(manifest: dict[str, Any], part: str) -> list[str]:
    """Return the names of all archives of ``train`` or ``val``."""
    count = -(-manifest["images"][part] // manifest["images_per_archive"])
    return [f"{part}-{number:05}.zip" for number in range(count)]


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each finished archive by its name; empty if there is no ``SHA256SUMS``."""
    with suppress(OSError), open_regular(folder / SUMS, MAX_MANIFEST_BYTES) as file:
        lines = file.read().decode("ascii", "replace").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    return {}


# --------------------------------------------------------------------------------------------------------------- index


def _split(folder: Path, manifest: dict[str, Any], part: str, classes: list[str], image_size: int) -> PackedSplit:
    archives = [folder / name for name in archive_names(manifest, part)]
    arrays = _indexed(archives)
    label_of = {entry_name(name).encode(): label for label, name in enumerate(classes)}
    try:
        labels = [label_of[name.split(b"/", 1)[0]] for name in arrays["names"].tolist()]
    except KeyError as error:
        raise DataError(f"{folder} holds an image of class {error}, which {MANIFEST} does not list") from error
    if not labels:
        raise DataError(f"{folder} holds no image of {part}: pack the data anew")
    return PackedSplit(
        archives=tuple(map(str, archives)),
        archive=arrays["archive"],
        offset=arrays["offset"],
        size=arrays["size"],
        names=arrays["names"],
        targets=torch.tensor(labels, dtype=torch.int64),
        image_size=(image_size, image_size),
    )


def _indexed(archives: list[Path]) -> dict[str, np.ndarray[Any, Any]]:
    """Return archive, offset, size and names of all entries, from the cache if the archives have not changed."""
    stated = [[str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size] for path in archives]
    key = hashlib.sha256(json.dumps([INDEX_VERSION, stated]).encode()).hexdigest()[:16]
    file = cache_folder() / f"archives-{key}.npz"
    with suppress(Exception), np.load(file, allow_pickle=False) as stored:  # a damaged cache is rebuilt
        return {name: stored[name] for name in ("archive", "offset", "size", "names")}
    entries: list[tuple[int, int, int, bytes]] = []
    for number, path in enumerate(tqdm(archives, desc="reading archives", unit="", disable=None, leave=False)):
        try:
            with zipfile.ZipFile(path) as archive:
                entries += [(number, *_entry(entry, path.stat().st_size)) for entry in archive.infolist()]
        except Exception as error:  # a zip archive can be damaged in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path} cannot be read ({reason}): delete it and pack again") from error
    columns = list(zip(*entries, strict=True)) or [(), (), (), ()]
    arrays: dict[str, np.ndarray[Any, Any]] = {
        name: np.array(column, dtype=kind)
        for name, column, kind in zip(
            ("archive", "offset", "size", "names"), columns, (np.int64, np.int64, np.int64, np.bytes_), strict=True
        )
    }
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    return arrays


def _entry(entry: zipfile.ZipInfo, archive_bytes: int) -> tuple[int, int, bytes]:
    """Return the offset, the size and the name of an entry.

    Raises:
        zipfile.BadZipFile: it is not one that ``packing.py`` writes, or not within the archive.
    """
    name = entry.filename.encode()
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise zipfile.BadZipFile(f"{one_line(entry.filename)} is compressed or encrypted")
    inside = 0 <= entry.header_offset <= archive_bytes and 0 <= entry.file_size <= archive_bytes - entry.header_offset
    if not inside or entry.file_size > MAX_FILE_BYTES or len(name) > MAX_NAME_BYTES:
        raise zipfile.BadZipFile(f"{one_line(entry.filename[:100])} has an impossible size or place")
    return entry.header_offset, entry.file_size, name
