"""Worker processes that read images."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

PARENT_DEATH_SIGNAL = 1  # Linux's prctl option
AT_ONCE = 8  # indices that a worker takes at a time
Found = TypeVar("Found")


class _Tasks(Dataset[Found], Generic[Found]):
    """Data set whose item is what the task returns for an index."""

    def __init__(self, task: Callable[[int], Found]) -> None:
        self._task = task

    def __getitem__(self, index: int) -> Found:
        return self._task(index)


def in_processes(workers: int, task: Callable[[int], Found], indices: range) -> Generator[Found]:
    """Do ``task`` for each index in ``workers`` processes, and yield what it returns, in order.

    Close the iterator to end the processes before it is exhausted. PyTorch's loader notices a worker that was killed,
    for which multiprocessing's pool waits for ever.

    Raises:
        RuntimeError: a worker was killed.
    """
    if workers < 2:
        yield from map(task, indices)
        return
    loader = DataLoader(
        _Tasks(task),
        batch_size=AT_ONCE,
        sampler=indices,
        collate_fn=list,
        num_workers=workers,
        prefetch_factor=4,
        worker_init_fn=belong_to_parent,
    )
    batches: Any = iter(loader)
    try:
        for batch in batches:
            yield from batch
    finally:
        batches._shutdown_workers()  # when a loader is garbage in a cycle, PyTorch waits 10 s for its workers


def belong_to_parent(worker: int) -> None:
    """Shield a worker from signals that are meant for the run, and make it die with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)  # drop the run's handlers, which fork has inherited
    os.setsid()  # signals that a terminal or SLURM sends to the process group are for the run
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if parent == 1 or os.getppid() != parent:  # the parent has already died
            os._exit(1)
