"""Write a folder of images as a few archives of smaller images, so that epochs spend less time decoding.

``packed.py`` reads the archives.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from isda_repro.data.decode import Crop, UnreadableError, decoded, scaled, shorter_side, unreadable_because
from isda_repro.data.folder import FileSplit
from isda_repro.data.packed import MANIFEST, SUMS, archive_names, checksums, entry_name, read_manifest
from isda_repro.data.source import PARTS, DataError, Source
from isda_repro.data.workers import in_processes
from isda_repro.errors import UserError
from isda_repro.files import atomic_write, sha256

Encoded = tuple[bytes | None, str]  # (content of the file, ""), or (None, reason) if the image cannot be read
TRIED = 64  # images per part that are encoded to estimate the size
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that archives are the same bytes whenever they are written


@dataclass(frozen=True)
class Packing:
    """Settings of the packed images.

    Args:
        size: shorter side in pixels; smaller images keep their size. Evaluation at 224 needs 256.
        format: ``raw``, pixels that need no decoding; or ``jpeg``, a tenth of the size.
        quality: JPEG quality from 1 to 100; not used by ``raw``.
        images_per_archive: images in one archive, which is also the most work that an interruption can lose.

    Raises:
        UserError: an unknown format, or a number out of range.
    """

    size: int = 256
    format: Literal["raw", "jpeg"] = "raw"
    quality: int = 90
    images_per_archive: int = 4096

    def __post_init__(self) -> None:
        if self.format not in ("raw", "jpeg"):
            raise UserError(f"format={self.format} must be raw or jpeg")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} must be a number from 1 to 100")
        for name, value in (("size", self.size), ("images_per_archive", self.images_per_archive)):
            if value < 1:
                raise UserError(f"{name}={value} must be a whole number from 1 on")

    @property
    def extension(self) -> str:
        """File name extension of the entries."""
        return ".ppm" if self.format == "raw" else ".jpg"

    def encoded(self, pixels: Tensor) -> bytes:
        """Scale pixels uint8 [H, W, 3] down to ``size`` and encode them as the content of an image file."""
        from PIL import Image

        height, width = pixels.shape[:2]
        if min(height, width) > self.size:
            pixels = scaled(pixels, (0, 0, height, width), shorter_side(height, width, self.size))
        stream = io.BytesIO()
        image = Image.fromarray(pixels.contiguous().numpy())
        if self.format == "raw":
            image.save(stream, "PPM")
        else:
            image.save(stream, "JPEG", quality=self.quality)
        return stream.getvalue()


def pack(
    source: Source,
    folder: Path,
    packing: Packing,
    *,
    workers: int,
    skip_unreadable: bool,
    report: Callable[[str], None],
) -> None:
    """Write all images of a source to archives in ``folder``; archives that are already finished there are kept.

    Args:
        source: a data set whose splits are ``FileSplit``.
        folder: output folder; empty, new, or with an unfinished packing of the same images and settings.
        packing: size and format of the images.
        workers: number of processes that encode images; below 2 this process does it.
        skip_unreadable: leave out images that cannot be read instead of raising an error.
        report: called with each line of the report.

    Raises:
        DataError: an image cannot be read and ``skip_unreadable`` is false, the disk is too small, the folder holds
            something else, or another process is packing there.
    """
    if not (isinstance(source.train, FileSplit) and isinstance(source.test, FileSplit)):
        raise DataError(f"{source.name} is not a folder of image files: there is nothing to pack")
    splits = dict(zip(PARTS, (source.train, source.test), strict=True))
    manifest = _manifest(source, splits, packing)
    if len({entry_name(name) for name in source.class_names}) != len(source.class_names):
        raise DataError(f"two classes of {source.name} have the same name in UTF-8: rename one of them")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _check_content(folder, manifest)
        _check_room(splits, folder, packing, report)
        with atomic_write(folder / MANIFEST) as file:
            file.write((json.dumps(manifest, indent=1) + "\n").encode())
        finished = checksums(folder)
        with tqdm(total=sum(map(len, splits.values())), unit=" images", disable=None) as bar:
            for part, split in splits.items():
                encode = partial(_encoded, split, packing)
                for number, name in enumerate(archive_names(manifest, part)):
                    first = number * packing.images_per_archive
                    indices = range(first, min(first + packing.images_per_archive, len(split)))
                    if name not in finished or not (folder / name).is_file():
                        with closing(in_processes(workers, encode, indices)) as encoded:
                            images = zip(indices, encoded, strict=True)
                            _write_archive(folder / name, split, images, packing, skip_unreadable, report)
                        with (folder / SUMS).open("a") as sums:
                            sums.write(f"{sha256(folder / name)}  {name}\n")
                    bar.update(len(indices))


LOCK = "packing.lock"
OWN_LEFTOVER = re.compile(r"(packed\.json|(train|val)-\d{5,}\.zip)\.[0-9a-f]{8}\.tmp")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder that archives are written to.

    Raises:
        DataError: another process holds it.
    """
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    except Timeout as error:
        raise DataError(
            f"another process is packing into {folder}: wait for it, or give another output= (if there is none for "
            f"certain, delete {folder / LOCK})"
        ) from error


def _check_content(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, and remove the temporary files of a packing that was killed there.

    Raises:
        DataError: it does.
    """
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        if any(key not in manifest or manifest[key] != value for key, value in found.items()):
            raise DataError(
                f"{folder} holds something packed otherwise, or of other images: give another output=, or delete it"
            )
    elif any(entry.name != LOCK for entry in folder.iterdir()):
        raise DataError(f"{folder} is not empty: give output= a folder that is, or one that does not exist")
    for leftover in folder.iterdir():
        if OWN_LEFTOVER.fullmatch(leftover.name):
            leftover.unlink()


def _manifest(source: Source, splits: dict[str, FileSplit], packing: Packing) -> dict[str, Any]:
    return {
        "name": source.name,
        "classes": list(source.class_names),
        "images": {part: len(split) for part, split in splits.items()},
        "images_per_archive": packing.images_per_archive,
        "size": packing.size,
        "format": packing.format,
        "quality": packing.quality if packing.format == "jpeg" else None,
        "of": {part: split.digest for part, split in splits.items()},
    }


def _check_room(splits: dict[str, Any], folder: Path, packing: Packing, report: Callable[[str], None]) -> None:
    """Report the estimated size of the archives, and raise DataError if they do not fit on the disk."""
    needed = 0.0
    for split in splits.values():
        sizes = []
        for index in torch.linspace(0, len(split) - 1, min(TRIED, len(split))).long().tolist():
            content, _ = _encoded(split, packing, index)
            sizes.append(len(content or b""))
        needed += sum(sizes) / len(sizes) * len(split)
    there = sum(file.stat().st_size for file in folder.glob("*.zip"))
    free = shutil.disk_usage(folder).free
    report(f"{sum(map(len, splits.values())):,} images will take about {needed / 1e9:,.1f} GB in {folder}")
    if needed - there > free:
        raise DataError(
            f"{folder} has room for {free / 1e9:,.1f} GB, and about {(needed - there) / 1e9:,.1f} GB are needed: give "
            "output= on another disk, or format=jpeg, which takes a tenth of raw"
        )


def _write_archive(
    path: Path,
    split: FileSplit,
    images: Iterable[tuple[int, Encoded]],
    packing: Packing,
    skip_unreadable: bool,
    report: Callable[[str], None],
) -> None:
    """Write one archive atomically."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, (content, reason) in images:
            if content is None:
                if not skip_unreadable:
                    raise DataError(
                        f"{split.where(index)} cannot be read as an image ({reason}): replace or remove it, or leave "
                        "such files out by unreadable=skip"
                    )
                report(f"left out: {split.where(index)} ({reason})")
                continue
            name = entry_name(os.fsdecode(bytes(split.names[index])))
            entry = zipfile.ZipInfo(f"{name}{packing.extension}", LONG_AGO)
            archive.writestr(entry, content)


def _encoded(split: FileSplit, packing: Packing, index: int) -> Encoded:
    """Return the content of an image as it will be written, or None and the reason if it cannot be read."""
    try:
        return packing.encoded(decoded(split.read(index))), ""
    except (UnreadableError, OSError) as error:
        return None, unreadable_because(error)


def speed_up(before: FileSplit, after: Any, image_size: int, images: int = 200) -> float:
    """Return how many times faster random crops are read from archives than from files, on one core.

    Args:
        before: the image files.
        after: the packed split of the same images.
        image_size: side of the crops in pixels.
        images: largest number of images to read.
    """
    crop, generator = Crop(image_size), torch.Generator()
    seconds = []
    count = min(images, len(before), len(after))
    for split in (before, after, before, after):
        generator.manual_seed(0)
        begin = time.perf_counter()
        for index in torch.linspace(0, len(split) - 1, count).long().tolist():
            with suppress(UnreadableError, OSError):  # an unreadable image, which packing has left out
                crop(decoded(split.read(index)), generator)
        seconds.append((time.perf_counter() - begin) / count)
    return seconds[2] / seconds[3]  # the first two are a warm-up
