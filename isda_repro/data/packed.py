"""Data sets packed into a few ZIP archives, uncompressed: written by ``packing.py``, and read here without unpacking.

    packed.json         how it was made, and of what
    train-00000.zip ... <class>/<name>.ppm, or .jpg
    val-00000.zip ...
    SHA256SUMS          one line for each archive that is whole; ``sha256sum -c`` reads it too

An archive is a file that any tool opens. What it lists is kept in an index in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isda_repro.data.source import PARTS, DataError, Source, candidate_folders, narrowed
from isda_repro.files import atomic_write, cache_folder

MANIFEST, SUMS = "packed.json", "SHA256SUMS"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of what follows it
SIGNATURE = b"PK\3\4"
INDEX_VERSION = 1


@dataclass(frozen=True)
class PackedSplit:
    """One part of a data set in archives; see ``FileSplit``, whose place it can take.

    Args:
        archives: the files.
        archive: which of them each image is in, int64 [N].
        offset: of its entry in the file, in bytes, int64 [N].
        size: of its content, in bytes, int64 [N].
        names: of the entries, as bytes [N].
        targets: int64 [N].
        image_size: (H, W) of the pixels that are made of them.
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
        """The images at ``indices``, distinct int64 [K] in any order, kept in the order they have here."""
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
        """The archive and the entry of an image, for people."""
        return f"{self.archives[self.archive[index]]}, entry {os.fsdecode(bytes(self.names[index]))}"

    def fingerprint(self) -> str:
        """Of the names, sizes and labels: other images have another one."""
        digest = hashlib.sha256("\0".join(self.archives).encode())
        for part in (self.names, self.size, self.targets.numpy()):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> bytearray:
        """The image file's content.

        Raises:
            OSError: the archive is not there, shorter than it was, or another one.
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
    """Of a file that stays open. Processes may share it: every read names its own place."""
    return os.open(archive, os.O_RDONLY)


def is_packed(root: Path) -> bool:
    """Whether a folder holds archives of ours."""
    return (root / MANIFEST).is_file()


def load_packed(
    name: str,
    root: Path | str,
    image_size: int,
    num_classes: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
) -> Source:
    """What ``python scripts/data.py pack`` has written to ``root`` or ``root/name``. Arguments as in ``load_folder``.

    Raises:
        DataError: nothing is packed there, it is not finished, or an archive is missing or cannot be read.
    """
    tried = candidate_folders(name, root)
    folder = next((one for one in tried if is_packed(one)), None)
    if folder is None:
        raise DataError(
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
    classes = list(manifest["classes"])
    if num_classes is not None and len(classes) != num_classes:
        raise DataError(f"{name} has {num_classes} classes, but {folder} has {len(classes)}: use dataset=folder for it")
    splits = {part: _split(folder, manifest, part, classes, image_size) for part in PARTS}
    source = Source(name, splits["train"], splits["val"], len(classes), tuple(classes))
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout)


def read_manifest(folder: Path) -> dict[str, Any]:
    """``packed.json``.

    Raises:
        DataError: it cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not {"classes", "images", "images_per_archive", "size", "format"} <= manifest.keys():
            raise ValueError("something is missing in it")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read ({error}); pack the data anew") from error
    return manifest


def archive_names(manifest: dict[str, Any], part: str) -> list[str]:
    """The archives of ``train`` or ``val``."""
    count = -(-manifest["images"][part] // manifest["images_per_archive"])
    return [f"{part}-{number:05}.zip" for number in range(count)]


def checksums(folder: Path) -> dict[str, str]:
    """Archive -> its SHA-256; those that are finished."""
    with suppress(OSError):
        lines = (folder / SUMS).read_text().splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    return {}


# --------------------------------------------------------------------------------------------------------------- index


def _split(folder: Path, manifest: dict[str, Any], part: str, classes: list[str], image_size: int) -> PackedSplit:
    archives = [folder / name for name in archive_names(manifest, part)]
    arrays = _indexed(archives)
    label_of = {os.fsencode(name): label for label, name in enumerate(classes)}
    try:
        targets = torch.tensor([label_of[bytes(name).split(b"/", 1)[0]] for name in arrays["names"]])
    except KeyError as error:
        raise DataError(f"{folder} holds an image of class {error}, which {MANIFEST} does not list") from error
    return PackedSplit(
        archives=tuple(map(str, archives)),
        archive=arrays["archive"],
        offset=arrays["offset"],
        size=arrays["size"],
        names=arrays["names"],
        targets=targets,
        image_size=(image_size, image_size),
    )


def _indexed(archives: list[Path]) -> dict[str, np.ndarray[Any, Any]]:
    """archive, offset, size and names of all entries, from the cache if the archives are what they were."""
    stated = [[str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size] for path in archives]
    key = hashlib.sha256(json.dumps([INDEX_VERSION, stated]).encode()).hexdigest()[:16]
    file = cache_folder() / f"archives-{key}.npz"
    with suppress(Exception), np.load(file, allow_pickle=False) as stored:  # a damaged cache is made anew
        return {name: stored[name] for name in ("archive", "offset", "size", "names")}
    entries: list[tuple[int, int, int, bytes]] = []
    for number, path in enumerate(tqdm(archives, desc="reading archives", unit="", disable=None, leave=False)):
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.compress_type != zipfile.ZIP_STORED:
                        raise zipfile.BadZipFile(f"{entry.filename} is compressed")
                    entries.append((number, entry.header_offset, entry.file_size, os.fsencode(entry.filename)))
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({error}): delete it and pack again") from error
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
