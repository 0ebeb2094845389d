"""One training step on storage that stays: on a CUDA device it is captured as a graph and replayed.

A small network is limited by the host, which launches hundreds of kernels a step. A CUDA graph launches all of them at
once. It repeats the same kernels on the same memory, so everything that changes from step to step is written into
tensors that stay: which images the batch has and how they are augmented, the training progress, the step's number, and
the learning rate (in the optimizer). Random draws follow the generators, which are seeded before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isda_repro.data import InMemoryLoader, Loader
from isda_repro.errors import UserError, is_out_of_memory
from isda_repro.losses import Criterion
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import Processes

WARM_UP_STEPS = 3
"""Steps before the capture: libraries choose their algorithms and the optimizer makes its momentum buffers."""

Learn = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Images [N, 3, H, W], targets [N], progress [] and step []; takes a whole optimizer step on the device."""


def reason_for_eager(loader: Loader, criterion: Criterion, compute: Compute, processes: Processes) -> str | None:
    """Return why steps cannot be static, or None if they can."""
    if not compute.cuda_graph:
        return "compute.cuda_graph=false" if compute.device.type == "cuda" else "there is no GPU"
    if processes.is_distributed:
        return "several processes exchange gradients in each step"
    if compute.micro_batch is not None:
        return "compute.micro_batch splits the batch"
    if criterion.waits_for_device:
        return f"{type(criterion).__name__} waits for the device"
    if not isinstance(loader, InMemoryLoader):
        return "the images are read from files"
    if not loader.has_static_batches:
        return "batches are made from generated images, or augmented many at a time"
    return None


class StaticStep:
    """Take training steps on full batches, from a graph where there is a GPU.

    The first ``WARM_UP_STEPS`` steps on a GPU, and every step on a CPU, run the same operations one by one.

    Args:
        loader: makes a batch from the numbers of its samples.
        learn: what a step does with its batch; see ``Learn``. It must not ask the device for a value.
        generators: those that ``learn`` draws from, PyTorch's default one excepted; seeded before ``take``.
        device: of all of this.
    """

    def __init__(
        self, loader: InMemoryLoader, learn: Learn, generators: Sequence[torch.Generator], device: torch.device
    ) -> None:
        self._loader, self._learn, self._generators, self._device = loader, learn, generators, device
        self._numbers: Tensor | None = None
        self._progress = torch.zeros((), dtype=torch.float64, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None  # of the warm-up and of the capture: each keeps memory of its own
        self._taken = 0

    def take(self, numbers: Tensor, progress: float, step: int) -> None:
        """Take a step on the batch that ``numbers`` int64 [K, N] describe, of the loader's batch size N.

        Raises:
            UserError: the step cannot be captured.
        """
        if self._numbers is None:
            self._numbers = torch.empty_like(numbers, memory_format=torch.contiguous_format)
        self._numbers.copy_(numbers)
        self._progress.fill_(progress)
        self._step.fill_(step)
        if self._device.type != "cuda":
            self._run()
            return
        if self._taken < WARM_UP_STEPS:
            self._warm_up()
        else:
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()
        self._taken += 1

    def _run(self) -> None:
        assert self._numbers is not None
        self._learn(*self._loader.batch_from(self._numbers), self._progress, self._step)

    def _warm_up(self) -> None:
        """Run on another stream, as a capture does."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run()
        current.wait_stream(self._stream)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Record what a step does; nothing is computed. Threads that save checkpoints or pin memory may go on."""
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._run()
        except RuntimeError as error:
            cause: BaseException = error  # the end of a capture that has failed raises too, and does not say why
            while cause.__context__ is not None:
                cause = cause.__context__
            if is_out_of_memory(cause):
                raise cause from None
            reason = (str(cause) or type(cause).__name__).splitlines()[0]
            raise UserError(
                f"the training step cannot be captured as a CUDA graph ({reason}): set compute.cuda_graph=false; the "
                "same command goes on from the last checkpoint"
            ) from error
        return graph
