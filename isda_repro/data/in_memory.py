"""The loader for data sets that fit on the device: all images live there as uint8 and become batches there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from isda_repro.data.loader import Loader, Plan
from isda_repro.data.source import Split
from isda_repro.randomness import stream_seed

# Images that are augmented at once where that is faster: what a CPU's cache has room for; on an accelerator more, so
# that the host, which starts hundreds of operations for each window, stays ahead of it.
WINDOW_BYTES = 2**24  # 5461 of CIFAR's
ACCELERATOR_WINDOW_BYTES = 2**26


class InMemoryLoader(Loader):
    """Batches of a split, gathered, augmented and normalised on the device.

    The order and the draws are made for the whole epoch on the CPU and moved to the device once, and a batch takes its
    slice. After that nothing waits for the device. An augmentation that is faster on many images gets a window of
    several batches at a time.

    Args:
        split: the images; they are copied to ``device`` once, in the memory format of the batches.
        options: see ``Loader``, errors too.
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
        drawn = self._augmentation.draw(1, self._image_size, torch.Generator())
        self._draw_types = {name: numbers.dtype for name, numbers in drawn.items()}

    @property
    def has_static_batches(self) -> bool:
        """True if ``batch_from`` makes every batch: the images are real, and each is augmented by itself."""
        are_whole = all(not dtype.is_floating_point for dtype in self._draw_types.values())
        is_one_step = not self._augmentation.wants_many and not self._augmentation.host_draws
        return self._shuffle and self._synthetic is None and is_one_step and are_whole

    def numbers_of_batches(self, epoch: int, first_step: int = 0) -> Iterator[Tensor]:
        """Yield what ``batch_from`` makes each batch of, from ``first_step`` on: each sample's image and draws.

        Yields:
            int64 [1 + draws, n], on the device; nothing is copied to it but once an epoch.
        """
        plan = self._plan(epoch)
        assert plan.images is not None
        rows = [plan.images, *(plan.draws[name].long() for name in self._draw_types)]
        numbers = torch.stack(rows).to(self._device)
        for start, stop in pairwise(plan.starts[first_step:]):
            yield numbers[:, start:stop]

    def batch_from(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Assemble the batch of ``numbers`` int64 [1 + draws, n]: float32 [n, C, H, W] and int64 [n].

        The batch is the one that ``epoch`` gives. Everything happens on the device and its shapes depend on n alone,
        so that a CUDA graph can capture it.
        """
        draws = {name: row.to(dtype) for row, (name, dtype) in zip(numbers[1:], self._draw_types.items(), strict=True)}
        images, targets = self._gathered(numbers[0], slice(None))
        images = self._normalise(self._augmentation.apply(images, draws))
        return self._augmentation.apply_normalised(images, draws), targets

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
            images = self._augmentation.apply(images, here)
            for start, stop in pairwise(starts):
                batch = slice(start - starts[0], stop - starts[0])
                normalised = self._normalise(images[batch])
                here_in_batch = {name: numbers[batch] for name, numbers in here.items()}
                yield self._augmentation.apply_normalised(normalised, here_in_batch), targets[batch]

    def _put_generated(self, images: Tensor, begin: int, epoch: int, step: int, plan: Plan) -> None:
        """Generated images in the places of a step that are theirs; its samples begin at ``begin`` in ``images``."""
        if self._synthetic is None or not plan.generated:
            return
        generated = plan.generated[step]
        self._noise.manual_seed(stream_seed(self._seed, "synthetic", epoch, step))
        made = self._synthetic.source.sample(generated.labels, self._noise, generated.part)
        images[begin + generated.rows.to(self._device, non_blocking=True)] = made.to(self._device)

    def _gathered(self, order: Tensor | None, window: slice) -> tuple[Tensor, Tensor]:
        """The window's images as they are stored, uint8 [n, C, H, W], and labels."""
        if order is None:
            stored, targets = self._stored[window], self._targets[window]
        else:
            stored, targets = self._stored.index_select(0, order[window]), self._targets.index_select(0, order[window])
        return (stored.permute(0, 3, 1, 2) if self._channels_last else stored), targets
