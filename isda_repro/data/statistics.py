"""Normalisation constants of images in files, from some of them, kept for the next start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress

import torch
from tqdm import tqdm

from isda_repro.data.decode import Crop, UnreadableError, decoded
from isda_repro.data.normalise import channel_statistics
from isda_repro.data.source import DataError, StoredSplit
from isda_repro.data.subset import stratified_order
from isda_repro.files import atomic_write, cache_folder

IMAGES = 2000
Constants = tuple[Sequence[float], Sequence[float]]


def stored_statistics(split: StoredSplit) -> Constants:
    """Mean and standard deviation of each channel of ``IMAGES`` images, stratified, of the middle of each.

    The same files give the same numbers; they are computed once and read from the user's cache from then on.

    Raises:
        DataError: none of the images can be read.
    """
    digest = hashlib.sha256(split.fingerprint().encode())
    digest.update(repr((split.image_size, IMAGES)).encode())
    cache = cache_folder() / f"statistics-{digest.hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(cache.read_text())
        return tuple(map(float, stored["mean"])), tuple(map(float, stored["std"]))
    mean, std = _computed(split)
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cache) as file:
            file.write(json.dumps({"mean": mean, "std": std}).encode())
    return mean, std


def _computed(split: StoredSplit) -> Constants:
    chosen = stratified_order(split.targets, "channel statistics")[:IMAGES].sort().values.tolist()
    crop, generator, images = Crop(split.image_size[0], "center"), torch.Generator(), []
    for index in tqdm(chosen, desc="normalisation constants", unit=" images", disable=None, leave=False):
        with suppress(UnreadableError, OSError):  # training names them
            images.append(crop(decoded(split.read(index)), generator))
    if not images:
        raise DataError(f"none of {len(chosen)} images can be read, the first being {split.where(0)}")
    mean, std = channel_statistics(torch.stack(images).permute(0, 3, 1, 2))
    return mean, tuple(max(one, 1 / 255) for one in std)  # of one colour alone: what one grey level is
