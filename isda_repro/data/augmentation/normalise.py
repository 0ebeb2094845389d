"""Normalisation of images, and the mean and standard deviation of the training images of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from tqdm import tqdm

from isda_repro.data.decode import Crop, UnreadableError, decoded, unreadable_because
from isda_repro.data.source import DataError, StoredSplit, stratified_order
from isda_repro.errors import UserError
from isda_repro.files import atomic_write, cache_folder

LARGEST_PIXEL = 255


class Normalise:
    """Normalisation of uint8 [N, C, H, W] to float32 [N, C, H, W]: (pixel / 255 - mean) / std, in one memory format.

    Args:
        mean, std: per channel, in units where the largest pixel is 1.
        image_width: W; needed because in channels_last the constants are laid out along a whole row of pixels.
        device: device of the images.
        memory_format: layout of the output; no copy is made if the input already has it.

    Raises:
        UserError: ``mean`` and ``std`` have different lengths, or a ``std`` is not positive.
        ValueError: another memory format.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        image_width: int,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(f"memory_format must be contiguous_format or channels_last, not {memory_format}.")
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise UserError(f"mean {list(mean)} and std {list(std)} must have one number per channel, std above 0.")
        self.memory_format = memory_format
        shift = LARGEST_PIXEL * torch.tensor(list(mean), dtype=torch.float64)
        scale = 1 / (LARGEST_PIXEL * torch.tensor(list(std), dtype=torch.float64))
        # Broadcasting along an innermost dimension of 3 is 4 times slower on a CPU than along a row of 3 W numbers.
        layout = (image_width,) if memory_format == torch.channels_last else (1, 1)
        self._shift, self._scale = (
            (c.repeat(layout) if memory_format == torch.channels_last else c.view(-1, *layout))
            .to(torch.float32)
            .to(device)
            for c in (shift, scale)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images uint8 [N, C, H, W] of any strides to float32 of the same shape, in the memory format."""
        images = images.contiguous(memory_format=self.memory_format)
        if self.memory_format == torch.contiguous_format:
            return images.to(torch.float32).sub_(self._shift).mul_(self._scale)
        pixels_NHWC = images.permute(0, 2, 3, 1).to(torch.float32)
        pixels_NHWC.flatten(2).sub_(self._shift).mul_(self._scale)  # in place, because flatten returns a view
        return pixels_NHWC.permute(0, 3, 1, 2)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel over all pixels of uint8 [N, C, H, W], in units of [0, 1].

    They are exact up to the last rounding, because pixel values are counted, not summed. The deviation is the
    population's (no Bessel correction), as in the constants that are usually published.
    """
    values = torch.arange(LARGEST_PIXEL + 1, dtype=torch.float64) / LARGEST_PIXEL
    means, deviations = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=len(values)).double()
        share /= share.sum()
        mean = float(share @ values)
        means.append(mean)
        deviations.append(float(share @ (values - mean) ** 2) ** 0.5)
    return tuple(means), tuple(deviations)


IMAGES = 2000
STATISTICS_VERSION = 2  # increase it when other pixels are decoded from the same files
Constants = tuple[Sequence[float], Sequence[float]]


def stored_statistics(split: StoredSplit) -> Constants:
    """Return the mean and standard deviation of each channel over the centre crops of ``IMAGES`` stratified images.

    The same files give the same numbers. They are computed once and then read from the user's cache, until one of the
    files is another or was written again.

    Raises:
        DataError: none of the images can be read.
    """
    chosen = stratified_order(split.targets, "channel statistics")[:IMAGES].sort().values
    digest = hashlib.sha256(split.fingerprint(chosen).encode())
    digest.update(repr((split.image_size, STATISTICS_VERSION)).encode())
    cache = cache_folder() / f"statistics-{digest.hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(cache.read_text())
        return tuple(map(float, stored["mean"])), tuple(map(float, stored["std"]))
    (mean, std), is_whole = _computed(split, chosen.tolist())
    if not is_whole:  # an error of the disk or the network may be over next time
        return mean, std
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(cache) as file:
            file.write(json.dumps({"mean": mean, "std": std}).encode())
    return mean, std


def _computed(split: StoredSplit, chosen: list[int]) -> tuple[Constants, bool]:
    """Return the constants, and True if each file could be read, whether or not it is an image."""
    crop, generator, images, is_whole = Crop(split.image_size[0], "center"), torch.Generator(), [], True
    for index in tqdm(chosen, desc="normalisation constants", unit=" images", disable=None, leave=False):
        try:
            images.append(crop(decoded(split.read(index)), generator))
        except (UnreadableError, OSError) as error:  # training reports unreadable files
            unreadable_because(error)
            is_whole = is_whole and isinstance(error, UnreadableError)
    if not images:
        raise DataError(f"none of {len(chosen)} images can be read, the first being {split.where(0)}")
    mean, std = channel_statistics(torch.stack(images).permute(0, 3, 1, 2))
    return (mean, tuple(max(one, 1 / 255) for one in std)), is_whole  # a constant channel gets one grey level
