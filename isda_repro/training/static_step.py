"""Training steps on fixed storage, which a CUDA device captures as a graph and replays.

A small network is limited by the host, which launches hundreds of kernels in each step. A CUDA graph launches all of
them at once. It repeats the same kernels on the same memory, so everything that changes from step to step is written
into fixed tensors: the images of the batch and their augmentation, the training progress, the number of the step, and
the learning rate (in the optimizer). Random draws come from the generators, which are seeded before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isda_repro.data import InMemoryLoader, Loader
from isda_repro.errors import UserError, first_line, is_out_of_memory
from isda_repro.losses import Criterion
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import Processes

WARM_UP_STEPS = 3
"""Steps before the capture, in which libraries choose their algorithms and the optimizer makes momentum buffers."""

Learn = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Takes images [N, 3, H, W], targets [N] or [N, C], progress [] and step [], and does one optimizer step."""


def reason_for_eager(loader: Loader, criterion: Criterion, compute: Compute, processes: Processes) -> str | None:
    """Return the reason why steps cannot be static, or None if they can."""
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
    """Training steps on full batches, replayed from a CUDA graph where there is a GPU.

    The first ``WARM_UP_STEPS`` steps on a GPU, and every step on a CPU, run the same operations one by one.

    Args:
        loader: makes a batch from the numbers of its samples.
        learn: does one step on a batch, see ``Learn``. It must not read a value back from the device.
        generators: the generators that ``learn`` draws from, except PyTorch's default one. Seed them before ``take``.
        device: the device of the batches and of the graph.
    """

    def __init__(
        self, loader: InMemoryLoader, learn: Learn, generators: Sequence[torch.Generator], device: torch.device
    ) -> None:
        self._loader, self._learn, self._generators, self._device = loader, learn, generators, device
        self._numbers: Tensor | None = None
        self._progress = torch.zeros((), dtype=torch.float64, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None  # one for warm-up and capture: each has its own memory
        self._taken = 0

    def take(self, numbers: Tensor, progress: float, step: int) -> None:
        """Take one training step.

        Args:
            numbers: int64 [K, N], the description of the samples of a batch; N is the loader's batch size.
            progress: the share of training that is over, in [0, 1].
            step: number of the step.

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
        """Take a step on a side stream, as the capture does."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run()
        current.wait_stream(self._stream)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture one step as a graph without computing it.

        Threads that save checkpoints or pin memory may go on meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._run()
        except RuntimeError as error:
            cause: BaseException = error  # ending a failed capture raises another error, which hides the reason
            while cause.__context__ is not None:
                cause = cause.__context__
            if is_out_of_memory(cause):
                raise cause from None
            reason = first_line(cause)
            raise UserError(
                f"the training step cannot be captured as a CUDA graph ({reason}): set compute.cuda_graph=false; the "
                "same command goes on from the last checkpoint"
            ) from error
        return graph
