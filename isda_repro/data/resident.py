"""The loader for data sets that fit on the device: all images live there as uint8 and become batches there."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from isda_repro.data.augment import Augmentation, NoAugmentation
from isda_repro.data.normalise import Normalise
from isda_repro.data.source import DataError, Split
from isda_repro.errors import UserError
from isda_repro.randomness import stream_seed


class ResidentLoader:
    """Batches of a split, gathered, augmented and normalised on the device.

    The order of an epoch and every draw of its augmentation are functions of (seed, epoch, position): they are made for
    the whole epoch on the CPU and moved to the device once, and a batch takes its slice. After that nothing waits for
    the device.

    Args:
        split: the images; they are copied to ``device`` once, in ``memory_format``.
        batch_size: images per batch; the last batch of an epoch holds what is left.
        mean, std: per channel, in units where the largest pixel is 1.
        augmentation: what is done to the uint8 images; None is ``NoAugmentation``.
        shuffle: whether each epoch has an order of its own (training) or the natural one (evaluation).
        seed: the run's seed; the streams are named in here.
        device: where the batches are.
        memory_format: of the batches: ``torch.contiguous_format`` or ``torch.channels_last``, each without a copy.

    Raises:
        DataError: a batch size that is not positive or, when shuffling, larger than the split.
        UserError: constants that do not fit the images.
        ValueError: another memory format.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        shuffle: bool,
        seed: int,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.num_samples = len(split)
        if batch_size < 1:
            raise DataError(f"A batch must hold at least one image, but the batch size is {batch_size}.")
        if shuffle and batch_size > self.num_samples:
            raise DataError(
                f"The batch size {batch_size} is larger than the {self.num_samples} training images there are; "
                f"lower it, or take more images."
            )
        channels, height, width = split.images.shape[1:]
        if len(mean) != channels:
            raise UserError(f"The images have {channels} channels, but mean and std have {len(mean)}.")
        self.steps_per_epoch = -(-self.num_samples // batch_size)
        self.batch_size, self._seed, self._shuffle, self._device = batch_size, seed, shuffle, device
        self._augmentation = augmentation or NoAugmentation()
        self._image_size = (height, width)
        self._channels_last = memory_format == torch.channels_last
        self._normalise = Normalise(mean, std, image_width=width, device=device, memory_format=memory_format)
        # Stored as the batches will be: [N, H, W, C] for channels_last, because index_select keeps dense rows only.
        images = split.images.to(device)
        self._stored = (images.permute(0, 2, 3, 1) if self._channels_last else images).contiguous()
        self._targets = split.targets.to(device)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches from ``first_step`` on: float32 [n, C, H, W] and int64 [n], on the device.

        They are the very batches that the epoch has there when it runs from its start.

        Raises:
            ValueError: ``first_step`` is not a step of the epoch, nor its end.
        """
        if not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(f"first_step={first_step} is outside the epoch's {self.steps_per_epoch} steps.")
        return self._batches(epoch, first_step)

    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        order, draws = self._order(epoch), self._draws(epoch)
        for start in range(first_step * self.batch_size, self.num_samples, self.batch_size):
            here = slice(start, min(start + self.batch_size, self.num_samples))
            if order is None:
                stored, targets = self._stored[here], self._targets[here]
            else:
                stored, targets = self._stored.index_select(0, order[here]), self._targets.index_select(0, order[here])
            images = stored.permute(0, 3, 1, 2) if self._channels_last else stored
            images = self._augmentation.apply(images, {name: numbers[here] for name, numbers in draws.items()})
            yield self._normalise(images), targets

    def _order(self, epoch: int) -> Tensor | None:
        """The epoch's permutation, int64 [N] on the device; None is the natural order."""
        if not self._shuffle:
            return None
        return torch.randperm(self.num_samples, generator=self._generator("order", epoch)).to(self._device)

    def _draws(self, epoch: int) -> dict[str, Tensor]:
        draws = self._augmentation.draw(self.num_samples, self._image_size, self._generator("augmentation", epoch))
        return {name: numbers.to(self._device) for name, numbers in draws.items()}

    def _generator(self, stream: str, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self._seed, stream, epoch))
