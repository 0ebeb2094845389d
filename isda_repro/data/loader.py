"""Base class of the loaders: the order of an epoch and every draw are functions of (seed, epoch, position) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from isda_repro.data.augmentation.augment import Augmentation, Draws, NoAugmentation
from isda_repro.data.augmentation.mixup import PARTNER, Mixup, share_among_processes
from isda_repro.data.augmentation.normalise import Normalise
from isda_repro.data.source import AnySplit, DataError
from isda_repro.data.synthetic import Synthetic
from isda_repro.errors import UserError
from isda_repro.randomness import stream_seed


@dataclass(frozen=True)
class Share:
    """Part of each global batch that belongs to this process: the ``rank``-th of ``world_size`` nearly equal parts."""

    rank: int = 0
    world_size: int = 1

    def of(self, start: int, stop: int) -> slice:
        """Return this process's positions among ``start`` to ``stop``; the slice may be empty."""
        each, more = divmod(stop - start, self.world_size)
        begin = start + self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))


WHOLE = Share()


@dataclass(frozen=True)
class Generated:
    """Generated images of one step; the tensors are on the CPU.

    Attributes:
        labels: labels of the step's generated images on all processes, int64.
        part: slice of ``labels`` that belongs to this process.
        rows: rows of the generated images among this process's samples of the step, int64.
    """

    labels: Tensor
    part: slice
    rows: Tensor


@dataclass(frozen=True)
class Plan:
    """One epoch from the point of view of this process; the tensors are on the CPU.

    With mixup, a step also loads the partners of its samples that other processes have, behind its own samples.

    Attributes:
        positions: positions of the samples to load in the epoch, int64 [n]; None: all N, in order.
        images: image index of each sample, int64 [n]; None: the natural order.
        draws: the draws of augmentation and mixup for each sample; a partner is a row of its step.
        starts: index of the first sample of each step, and the end: [steps + 1].
        generated: generated images of each step; empty if none are generated.
    """

    positions: Tensor | None
    images: Tensor | None
    draws: Draws
    starts: Sequence[int]
    generated: Sequence[Generated] = ()


class Loader(ABC):
    """Batches of a split, augmented and normalised on the device.

    Args:
        split: images and labels.
        batch_size: images in a global batch; the last batch of an epoch holds the remainder.
        mean, std: per channel, in units where the largest pixel is 1.
        augmentation: applied to the uint8 images and then to the normalised ones; None is ``NoAugmentation``.
        shuffle: give each epoch its own random order (training) instead of the natural order (evaluation).
        passes: number of passes over the split per epoch, each in its own order.
        seed: seed of the run; the random streams of order and augmentation are derived from it here.
        device: device of the batches.
        memory_format: layout of the batches, ``torch.contiguous_format`` or ``torch.channels_last``; neither costs a
            copy.
        share: part of each global batch that this loader yields.
        synthetic: generated images to mix with the real ones; None uses real images alone.
        mixup: mix each image with another one of the global batch; None: no mixup.

    Raises:
        DataError: a batch size that is not positive or, when shuffling, larger than the split.
        UserError: ``mean`` and ``std`` do not fit the images.
        ValueError: another memory format.
    """

    def __init__(
        self,
        split: AnySplit,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        shuffle: bool,
        passes: int = 1,
        seed: int,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
        share: Share = WHOLE,
        synthetic: Synthetic | None = None,
        mixup: Mixup | None = None,
    ) -> None:
        self._images, self._passes, self._synthetic, self._mixup = len(split), passes, synthetic, mixup
        self._targets_on_host = split.targets
        self.num_samples = passes * len(split)  # in an epoch
        if synthetic is not None:
            self.num_samples = synthetic.samples_of_epoch(self.num_samples)
        if batch_size < 1:
            raise DataError(f"A batch must hold at least one image, but the batch size is {batch_size}.")
        if shuffle and batch_size > len(split):
            raise DataError(
                f"The batch size {batch_size} is larger than the {len(split)} training images there are; "
                f"lower it, or take more images."
            )
        if len(mean) != split.channels:
            raise UserError(f"The images have {split.channels} channels, but mean and std have {len(mean)}.")
        self.steps_per_epoch = -(-self.num_samples // batch_size)
        self.batch_size, self.share = batch_size, share
        self.may_fall_short = False  # True if unreadable images can make a batch smaller
        self._seed, self._shuffle, self._device = seed, shuffle, device
        self._augmentation = augmentation or NoAugmentation()
        self._image_size = split.image_size
        self._channels_last = memory_format == torch.channels_last
        width = self._image_size[1]
        self._normalise = Normalise(mean, std, image_width=width, device=device, memory_format=memory_format)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the epoch's batches from ``first_step`` on: float32 [n, C, H, W] and int64 [n], on the device.

        With mixup, the targets are float32 [n, classes]: the share of each class in the mixed image.

        These are exactly the batches that the epoch yields there when it runs from its start.

        Raises:
            ValueError: ``first_step`` is neither a step of the epoch nor its end.
        """
        if not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(f"first_step={first_step} is outside the epoch's {self.steps_per_epoch} steps.")
        return self._batches(epoch, first_step)

    def part_of(self, step: int) -> tuple[int, int]:
        """Return the offset of this process's samples in the global batch of a step, and the size of that batch."""
        start = step * self.batch_size
        return self._own(step).start - start, min(self.batch_size, self.num_samples - start)

    def close(self) -> None:  # noqa: B027 (most loaders have nothing to end)
        """End the processes that a loader has started; it cannot be used afterwards."""

    def share_sizes(self) -> set[int]:
        """Return how many samples a process can have in one step, over all processes and steps; no share is 0."""
        last = self.num_samples - (self.steps_per_epoch - 1) * self.batch_size
        processes = self.share.world_size
        sizes = {size // processes + more for size in (self.batch_size, last) for more in (0, size % processes > 0)}
        return sizes - {0}

    @abstractmethod
    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]: ...

    def _plan(self, epoch: int) -> Plan:
        """Return the plan of an epoch for this process."""
        order = self._order(epoch) if self._shuffle else None
        draws = dict(
            self._augmentation.draw(self.num_samples, self._image_size, self._generator("augmentation", epoch))
        )
        if self._mixup is not None:
            draws |= self._mixup.draw(self.num_samples, self.batch_size, stream_seed(self._seed, "mixup", epoch))
        batches = range(0, self.num_samples, self.batch_size)
        if self.share.world_size == 1:
            return Plan(None, order, draws, [*batches, self.num_samples], self._generated(order))
        parts = [self._own(step) for step in range(self.steps_per_epoch)]
        of_steps = [torch.arange(part.start, part.stop) for part in parts]
        partners: list[Tensor] = []
        if self._mixup is not None:
            shared = [share_among_processes(draws, *of_step) for of_step in zip(batches, parts, strict=True)]
            of_steps, partners = [one for one, _ in shared], [rows for _, rows in shared]
        starts = [0, *accumulate(map(len, of_steps))]
        positions = torch.cat(of_steps)
        images = positions if order is None else order[positions]
        own = {name: numbers[positions] for name, numbers in draws.items()}
        if partners:
            own[PARTNER] = torch.cat(partners)
        return Plan(positions, images, own, starts, self._generated(order))

    def _own(self, step: int) -> slice:
        """Return the positions in the epoch of this process's samples of a step; the slice may be empty."""
        start = step * self.batch_size
        return self.share.of(start, min(start + self.batch_size, self.num_samples))

    def _generated(self, order: Tensor | None) -> list[Generated]:
        """Return the generated images of each step; their classes are those of the images in ``order``."""
        if self._synthetic is None or order is None:
            return []
        chosen, labels = self._synthetic.positions(self.num_samples), self._targets_on_host[order]
        return [self._generated_in(start, chosen, labels) for start in range(0, self.num_samples, self.batch_size)]

    def _generated_in(self, start: int, chosen: Tensor, labels: Tensor) -> Generated:
        stop = min(start + self.batch_size, self.num_samples)
        own = self.share.of(start, stop)
        before = int(chosen[start : own.start].sum())
        rows = chosen[own].nonzero()[:, 0]
        return Generated(labels[start:stop][chosen[start:stop]], slice(before, before + len(rows)), rows)

    def _order(self, epoch: int) -> Tensor:
        """Return the image index of each sample; for a generated sample, the index of an image whose class it takes."""
        generator = self._generator("order", epoch)
        real = torch.cat([torch.randperm(self._images, generator=generator) for _ in range(self._passes)])
        if self._synthetic is None or not self._synthetic.covers_all:
            return real
        chosen = self._synthetic.positions(self.num_samples)
        order = torch.empty(self.num_samples, dtype=torch.int64)
        order[~chosen] = real
        others = torch.randint(self._images, (int(chosen.sum()),), generator=self._generator("synthetic_labels", epoch))
        order[chosen] = others
        return order

    def _augmented(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment uint8 images; augmentations need not accept the empty share of a batch that a process can have."""
        return self._augmentation.apply(images, draws) if len(images) else images

    def _normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Normalise images, and apply the augmentations of normalised images."""
        images = self._normalise(images)
        return self._augmentation.apply_normalised(images, draws) if len(images) else images

    def _mixed(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Return the images and targets of this process in a step, of all that it has loaded for it."""
        if self._mixup is None:
            return images, labels
        own = self._own(step)
        return self._mixup.mix(images, labels, draws, own.stop - own.start)

    def _placed(self, draws: Draws) -> dict[str, Tensor]:
        """Move the draws to the device, except those that the augmentation needs on the CPU."""
        on_host = self._augmentation.host_draws
        return {name: numbers if name in on_host else numbers.to(self._device) for name, numbers in draws.items()}

    def _generator(self, stream: str, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self._seed, stream, epoch))
