"""What all loaders keep to: the order of an epoch and every draw are functions of (seed, epoch, position) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isda_repro.data.augment import Augmentation, Draws, NoAugmentation
from isda_repro.data.normalise import Normalise
from isda_repro.data.source import AnySplit, DataError
from isda_repro.data.synthetic import Synthetic
from isda_repro.errors import UserError
from isda_repro.randomness import stream_seed


@dataclass(frozen=True)
class Share:
    """Which part of each global batch is this process's: the ``rank``-th of ``world_size`` nearly equal ones."""

    rank: int = 0
    world_size: int = 1

    def of(self, start: int, stop: int) -> slice:
        """Its positions among ``start`` to ``stop``; there may be none."""
        each, more = divmod(stop - start, self.world_size)
        begin = start + self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))


WHOLE = Share()


@dataclass(frozen=True)
class Generated:
    """The generated images of a step, on the CPU.

    Attributes:
        labels: of all processes, int64.
        part: which of these are this process's.
        rows: where among its samples of the step they belong, int64.
    """

    labels: Tensor
    part: slice
    rows: Tensor


@dataclass(frozen=True)
class Plan:
    """An epoch as this process sees it, on the CPU.

    Attributes:
        positions: of its samples in the epoch, int64 [n]; None: all N, in order.
        images: which image each is, int64 [n]; None: the natural order.
        draws: the augmentation's numbers for each.
        starts: of each step's samples among them, and the end: [steps + 1].
        generated: of each step; empty where nothing is generated.
    """

    positions: Tensor | None
    images: Tensor | None
    draws: Draws
    starts: Sequence[int]
    generated: Sequence[Generated] = ()


class Loader(ABC):
    """Batches of a split, augmented and normalised on the device.

    Args:
        split: the images.
        batch_size: images per global batch; the last batch of an epoch holds what is left.
        mean, std: per channel, in units where the largest pixel is 1.
        augmentation: what is done to the uint8 images; None is ``NoAugmentation``.
        shuffle: whether each epoch has an order of its own (training) or the natural one (evaluation).
        passes: over the split in an epoch, each in an order of its own.
        seed: the run's seed; the streams are named in here.
        device: where the batches are.
        memory_format: of the batches: ``torch.contiguous_format`` or ``torch.channels_last``, each without a copy.
        share: which part of each global batch is given out here.
        synthetic: generated images that are among the real ones; None: real ones alone.

    Raises:
        DataError: a batch size that is not positive or, when shuffling, larger than the split.
        UserError: constants that do not fit the images.
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
    ) -> None:
        self._images, self._passes, self._synthetic = len(split), passes, synthetic
        self._targets_on_host = split.targets
        self.num_samples = passes * len(split)  # of an epoch
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
        self.may_fall_short = False  # of images: those that cannot be read
        self._seed, self._shuffle, self._device = seed, shuffle, device
        self._augmentation = augmentation or NoAugmentation()
        self._image_size = split.image_size
        self._channels_last = memory_format == torch.channels_last
        width = self._image_size[1]
        self._normalise = Normalise(mean, std, image_width=width, device=device, memory_format=memory_format)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from ``first_step`` on: float32 [n, C, H, W] and int64 [n], on the device.

        They are the very batches that the epoch has there when it runs from its start.

        Raises:
            ValueError: ``first_step`` is not a step of the epoch, nor its end.
        """
        if not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(f"first_step={first_step} is outside the epoch's {self.steps_per_epoch} steps.")
        return self._batches(epoch, first_step)

    def part_of(self, step: int) -> tuple[int, int]:
        """Where this process's samples begin in the global batch of a step of the epoch, and how many that has."""
        start = step * self.batch_size
        stop = min(start + self.batch_size, self.num_samples)
        return self.share.of(start, stop).start - start, stop - start

    @abstractmethod
    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]: ...

    def _plan(self, epoch: int) -> Plan:
        """What this process has to do in an epoch."""
        order = self._order(epoch) if self._shuffle else None
        draws = self._augmentation.draw(self.num_samples, self._image_size, self._generator("augmentation", epoch))
        batches = range(0, self.num_samples, self.batch_size)
        if self.share.world_size == 1:
            return Plan(None, order, draws, [*batches, self.num_samples], self._generated(order))
        parts = [self.share.of(start, min(start + self.batch_size, self.num_samples)) for start in batches]
        positions = torch.cat([torch.arange(part.start, part.stop) for part in parts])
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.stop - part.start)
        images = positions if order is None else order[positions]
        own = {name: numbers[positions] for name, numbers in draws.items()}
        return Plan(positions, images, own, starts, self._generated(order))

    def _generated(self, order: Tensor | None) -> list[Generated]:
        """What is to be made in each step of an epoch, of the classes of the real images that are in ``order``."""
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
        """Which image each sample is; of a generated one, whose class it has."""
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

    def _placed(self, draws: Draws) -> dict[str, Tensor]:
        """Where the augmentation wants them."""
        on_host = self._augmentation.host_draws
        return {name: numbers if name in on_host else numbers.to(self._device) for name, numbers in draws.items()}

    def _generator(self, stream: str, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self._seed, stream, epoch))
