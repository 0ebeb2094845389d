"""Loader for data sets that fit on the device: all images are kept there as uint8, and batches are made there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from isda_repro.data.loader import Loader, Plan
from isda_repro.data.source import Split
from isda_repro.randomness import stream_seed

# Size of the window of images that is augmented at once where that is faster. On a CPU it fits into the cache. On an
# accelerator it is larger, so that the host, which launches hundreds of operations per window, stays ahead.
WINDOW_BYTES = 2**24  # 5461 CIFAR images
ACCELERATOR_WINDOW_BYTES = 2**26


class InMemoryLoader(Loader):
    """Batches of a split, gathered, augmented and normalised on the device.

    The order and the draws are made on the CPU for the whole epoch and copied to the device once; each batch takes a
    slice. After that nothing waits for the device. An augmentation that is faster on many images gets a window of
    several batches.

    Args:
        split: images in memory; they are copied to ``device`` once, in the memory format of the batches.
        options: see ``Loader``, which also lists the errors.
    """

    def __init__(self, split: Split, **options: Any) -> None:
        super().__init__(split, **options)
        batch_bytes = self.batch_size * split.images[0].numel()
        window_bytes = WINDOW_BYTES if self._device.type == "cpu" else ACCELERATOR_WINDOW_BYTES
        self._steps_at_once = max(1, window_bytes // batch_bytes) if self._augmentation.wants_many else 1
        # Stored as the batches will be: [N, H, W, C] for channels_last, because index_select keeps dense rows only.
        images = split.images.to(self._device)
        self._stored = (images.permute(0, 2, 3, 1) if self._channels_last else images).contiguous()
        self._targets = split.targets.to(self._device)
        self._noise = torch.Generator(self._device)
        drawn = dict(self._augmentation.draw(1, self._image_size, torch.Generator()))
        if self._mixup is not None:
            drawn |= self._mixup.draw(1, 1, 0)
        self._draw_types = {name: numbers.dtype for name, numbers in drawn.items()}

    @property
    def has_static_batches(self) -> bool:
        """True if ``batch_from`` can make every batch: shuffled real images, no float64 draws, window or host draws."""
        fit = all(dtype == torch.float32 or not dtype.is_floating_point for dtype in self._draw_types.values())
        is_one_step = not self._augmentation.wants_many and not self._augmentation.host_draws
        return self._shuffle and self._synthetic is None and is_one_step and fit

    def numbers_of_batches(self, epoch: int, first_step: int = 0) -> Iterator[Tensor]:
        """Yield the input of ``batch_from`` for each batch from ``first_step`` on: image indices and draws.

        Yields:
            int64 [1 + draws, n] on the device; they are views of one tensor that is copied to it once per epoch. A
            float32 draw is stored as its bits.
        """
        plan = self._plan(epoch)
        assert plan.images is not None
        drawn = (plan.draws[name] for name in self._draw_types)
        bits = (row.view(torch.int32) if row.is_floating_point() else row for row in drawn)
        rows = [plan.images, *(row.long() for row in bits)]
        numbers = torch.stack(rows).to(self._device)
        for start, stop in pairwise(plan.starts[first_step:]):
            yield numbers[:, start:stop]

    def batch_from(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Assemble the batch of ``numbers`` int64 [1 + draws, n]: float32 [n, C, H, W] and targets as ``epoch`` has.

        The batch is the same as the one that ``epoch`` yields. Everything runs on the device, and the shapes depend on
        n alone, so a CUDA graph can capture it.
        """
        draws = {}
        for row, (name, dtype) in zip(numbers[1:], self._draw_types.items(), strict=True):
            draws[name] = row.int().view(dtype) if dtype.is_floating_point else row.to(dtype)
        images, targets = self._gathered(numbers[0], slice(None))
        images = self._normalised(self._augmented(images, draws), draws)
        return (images, targets) if self._mixup is None else self._mixup.mix(images, targets, draws, len(images))

    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        plan = self._plan(epoch)
        order, draws = None if plan.images is None else plan.images.to(self._device), self._placed(plan.draws)
        for first in range(first_step, self.steps_per_epoch, self._steps_at_once):
            starts = plan.starts[first : first + self._steps_at_once + 1]
            window = slice(starts[0], starts[-1])
            images, targets = self._gathered(order, window)
            here = {name: numbers[window] for name, numbers in draws.items()}
            for step in range(first, first + len(starts) - 1):
                self._put_generated(images, starts[step - first] - starts[0], epoch, step, plan)
            images = self._augmented(images, here)
            for step, (start, stop) in enumerate(pairwise(starts), first):
                batch = slice(start - starts[0], stop - starts[0])
                here_in_batch = {name: numbers[batch] for name, numbers in here.items()}
                normalised = self._normalised(images[batch], here_in_batch)
                yield self._mixed(normalised, targets[batch], here_in_batch, step)

    def _put_generated(self, images: Tensor, begin: int, epoch: int, step: int, plan: Plan) -> None:
        """Write a step's generated images into ``images``, in which the step's samples begin at row ``begin``."""
        if self._synthetic is None or not plan.generated:
            return
        generated = plan.generated[step]
        self._noise.manual_seed(stream_seed(self._seed, "synthetic", epoch, step))
        made = self._synthetic.source.sample(generated.labels, self._noise, generated.part)
        images[begin + generated.rows.to(self._device, non_blocking=True)] = made.to(self._device)

    def _gathered(self, order: Tensor | None, window: slice) -> tuple[Tensor, Tensor]:
        """Return a window's images as they are stored, uint8 [n, C, H, W], and its labels, int64 [n]."""
        if order is None:
            stored, targets = self._stored[window], self._targets[window]
        else:
            stored, targets = self._stored.index_select(0, order[window]), self._targets.index_select(0, order[window])
        return (stored.permute(0, 3, 1, 2) if self._channels_last else stored), targets
