"""Loader for data sets that stay on disk: worker processes decode and crop, the rest happens on the device."""

from __future__ import annotations

import mmap
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isda_repro.console import one_line
from isda_repro.data.augmentation.augment import Draws
from isda_repro.data.augmentation.mixup import only_with
from isda_repro.data.decode import Crop, UnreadableError, decoded, unreadable_because
from isda_repro.data.loader import Loader, Plan
from isda_repro.data.source import DataError, StoredSplit
from isda_repro.data.workers import belong_to_parent
from isda_repro.errors import UserError
from isda_repro.randomness import stream_seed

FORKS = sys.platform == "linux"
SHARED_MEMORY = Path("/dev/shm")
QUEUE_BYTES = 2**15  # of shared memory for the semaphores of a worker's queue
PREFETCHED = 2  # batches that each worker prepares ahead


class StreamingLoader(Loader):
    """Batches of a split whose images are files.

    The crop of the sample at a position of an epoch is a function of (seed, epoch, position), so neither the number of
    workers nor starting in the middle of an epoch changes it. Workers are kept from one epoch to the next, and end with
    the process that started them, however it ends.

    Args:
        split: image files and labels.
        crop: crop of each image.
        workers: number of processes that decode; with 0 this process decodes.
        unreadable: ``stop`` at a file that is not an image or is damaged, or ``skip`` it, which makes its batch
            smaller.
        report: called once with the path of each skipped file and the reason.
        options: see ``Loader``, which also lists the errors.

    Raises:
        UserError: the workers need more shared memory than there is (if batches go to an accelerator).
        DataError: while iterating: a file cannot be read, and ``unreadable`` is ``stop``.
    """

    def __init__(
        self,
        split: StoredSplit,
        *,
        crop: Crop,
        workers: int,
        unreadable: Literal["stop", "skip"] = "stop",
        report: Callable[[str, str], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(split, **options)
        if unreadable not in ("stop", "skip"):
            raise DataError(f"unreadable={unreadable!r} must be 'stop' or 'skip'.")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise DataError(f"workers={workers!r} must be a number of processes, 0 or more.")
        self.unreadable: dict[str, str] = {}
        """Reason of each file skipped so far."""
        self._targets, self.may_fall_short = split.targets, unreadable == "skip"
        self.report = report
        slots = PREFETCHED * workers + 2 if workers and self._device.type == "cpu" and FORKS else 0
        most = -(-self.batch_size // self.share.world_size)
        if self._mixup is not None:  # the partners may all be samples of other processes
            most = min(2 * most, self.batch_size)
        self._slots = _shared_slots(slots, most, *self._image_size)
        self._requests = _Requests(slots)
        if workers:
            waiting = 0 if slots else most
            _check_shared_memory(workers, waiting, *self._image_size)
        self._loader: DataLoader[Any] = DataLoader(
            _Fetcher(split, crop, self._seed, self._slots),
            batch_sampler=self._requests,  # PyTorch accepts any iterable
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context="fork" if slots else None,
            worker_init_fn=belong_to_parent,
            pin_memory=self._device.type == "cuda",
            **({"persistent_workers": True, "prefetch_factor": PREFETCHED} if workers else {}),  # type: ignore[arg-type]
        )
        decoded(ONE_PIXEL)  # import the decoders once, before the workers are forked

    def close(self) -> None:
        """End the workers. When a loader is garbage in a cycle, PyTorch waits 10 s for its workers and kills them."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        plan = self._plan(epoch)
        draws = self._placed(plan.draws)
        self._requests.of_epoch(epoch, plan, first_step)
        for step, fetched in enumerate(self._loader, first_step):
            batch = slice(plan.starts[step], plan.starts[step + 1])
            targets = self._targets[batch] if plan.images is None else self._targets[plan.images[batch]]
            pixels = fetched.pixels if fetched.slot is None else self._slots[fetched.slot, : len(targets)]
            here = {name: numbers[batch] for name, numbers in draws.items()}
            kept = self._without(fetched.failures, len(targets)) if fetched.failures else None
            if kept is not None and self._mixup is None:
                pixels, targets = pixels[kept], targets[kept]
                here = {name: numbers[kept.to(numbers.device)] for name, numbers in here.items()}
            pixels, targets = (one.to(self._device, non_blocking=True) for one in (pixels, targets))
            images = self._normalised(self._augmented(pixels.permute(0, 3, 1, 2), here), here)
            self._requests.give_back(fetched.slot)
            if self._mixup is not None:
                images, targets = self._mixed_of_read(images, targets, here, step, kept)
            yield images, targets

    def _mixed_of_read(
        self, images: Tensor, labels: Tensor, draws: Draws, step: int, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mixed images and targets of a step, without the samples that are not ``kept`` (None: all are).

        A sample whose partner could not be read stays as it is, whichever process has which of the two.
        """
        if kept is None:
            return self._mixed(images, labels, draws, step)
        images, targets = self._mixed(images, labels, only_with(draws, kept), step)
        own = kept[kept < len(images)].to(images.device)
        return images[own], targets[own]

    def _without(self, failures: Sequence[Failure], samples: int) -> Tensor:
        """Return the indices of the samples that were read, int64, and report the failures.

        Raises:
            DataError: there is a failure, and ``unreadable`` is ``stop``.
        """
        for failure in failures:
            if not self.may_fall_short:
                raise DataError(
                    f"{failure.where} cannot be read as an image ({failure.reason}): replace or remove it, or go on "
                    "without such files by dataset.unreadable=skip"
                )
            if failure.where not in self.unreadable:
                self.unreadable[failure.where] = failure.reason
                if self.report is not None:
                    self.report(failure.where, failure.reason)
        kept = torch.ones(samples, dtype=torch.bool)
        kept[[failure.offset for failure in failures]] = False
        return kept.nonzero()[:, 0]


# ------------------------------------------------------------------------------------------------------------- workers

ONE_PIXEL = b"P6 1 1 255 abc"


class Request(NamedTuple):
    """Request to a worker: the samples of one step, and the slot to write them into, if there are slots."""

    epoch: int
    slot: int | None
    positions: np.ndarray[Any, Any]
    images: np.ndarray[Any, Any]


class Failure(NamedTuple):
    """Image that cannot be read."""

    offset: int  # in the batch
    where: str
    reason: str


class Fetched(NamedTuple):
    """Samples of one step, uint8 [n, H, W, 3], black at failures.

    ``pixels`` holds them if there are no slots; otherwise they are in slot number ``slot``.
    """

    pixels: Tensor | None
    slot: int | None
    failures: list[Failure]


def _shared_slots(slots: int, samples: int, height: int, width: int) -> Tensor:
    """Allocate memory that forked workers write and this process reads: uint8 [slots, samples, H, W, 3].

    Reusing this memory is nearly twice as fast as PyTorch's sharing, which allocates anew for each batch, and does not
    use ``/dev/shm``, which is small in containers. Batches for an accelerator are pinned by PyTorch instead.
    """
    if not slots:
        return torch.empty(0, samples, height, width, 3, dtype=torch.uint8)
    memory = mmap.mmap(-1, slots * samples * height * width * 3)
    return torch.frombuffer(memory, dtype=torch.uint8).view(slots, samples, height, width, 3)


def _check_shared_memory(workers: int, samples: int, height: int, width: int, place: Path = SHARED_MEMORY) -> None:
    """Refuse a run whose workers would be killed by SIGBUS once PyTorch's shared memory is used up.

    Raises:
        UserError: the batches that can wait at once are larger than the free space there.
    """
    if not place.is_dir():  # other systems than Linux share memory differently
        return
    needed, free = (PREFETCHED * workers + 1) * samples * height * width * 3, shutil.disk_usage(place).free
    needed += QUEUE_BYTES * (workers + 1)
    if needed > free:
        raise UserError(
            f"dataset.workers={workers} can have {needed / 1e6:,.1f} MB of images and queues in {place}, which has "
            f"{free / 1e6:,.1f} MB free: set fewer dataset.workers, or give the container more (docker run --shm-size)"
        )


class _Requests:
    """Sampler of a ``DataLoader`` that yields the requests of one epoch; ``of_epoch`` sets them."""

    def __init__(self, slots: int) -> None:
        self._slots, self._free = slots, deque(range(slots))
        self._made: Callable[[], Iterator[list[Request]]] = lambda: iter(())

    def give_back(self, slot: int | None) -> None:
        """Mark a slot as free: its pixels are no longer needed."""
        if slot is not None:
            self._free.append(slot)

    def of_epoch(self, epoch: int, plan: Plan, first_step: int) -> None:
        def made() -> Iterator[list[Request]]:
            self._free = deque(range(self._slots))  # an epoch that was abandoned did not give its slots back
            for step in range(first_step, len(plan.starts) - 1):
                batch = slice(plan.starts[step], plan.starts[step + 1])
                natural = np.arange(batch.start, batch.stop)
                positions = natural if plan.positions is None else plan.positions[batch].numpy()
                images = natural if plan.images is None else plan.images[batch].numpy()
                yield [Request(epoch, self._free.popleft() if self._slots else None, positions, images)]

        self._made = made

    def __iter__(self) -> Iterator[list[Request]]:
        return self._made()


class _Fetcher(Dataset[Any]):
    """Data set that runs in the workers: reads, decodes and crops the samples of a request."""

    def __init__(self, split: StoredSplit, crop: Crop, seed: int, slots: Tensor) -> None:
        self._split, self._crop, self._seed, self._slots = split, crop, seed, slots

    def __getitems__(self, requests: list[Request]) -> Fetched:
        """Fetch the samples of one request, which PyTorch passes as a list."""
        (request,) = requests
        height, width = self._split.image_size
        generator = torch.Generator()
        if request.slot is None:
            pixels = _shared_pixels(len(request.images), height, width)
        else:
            pixels = self._slots[request.slot]
        failures = []
        for offset, (position, index) in enumerate(
            zip(request.positions.tolist(), request.images.tolist(), strict=True)
        ):
            generator.manual_seed(stream_seed(self._seed, "crop", request.epoch, position))
            try:
                pixels[offset] = self._crop(decoded(self._split.read(index)), generator)
            except (UnreadableError, OSError) as error:
                pixels[offset] = 0
                failures.append(Failure(offset, self._split.where(index), one_line(unreadable_because(error))))
        return Fetched(pixels if request.slot is None else None, request.slot, failures)


def _shared_pixels(samples: int, height: int, width: int) -> Tensor:
    """Allocate uint8 [n, H, W, 3]; in a worker, in shared memory that the main process reads without a copy."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(samples, height, width, 3, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(samples * height * width * 3, device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(samples, height, width, 3)


def _as_it_is(fetched: Any) -> Any:
    return fetched
