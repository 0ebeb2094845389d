"""The processes of one run: how they start together, and the collectives that they use.

Tensors on a GPU travel by NCCL, everything else by gloo. With a single process there is no process group, and every
method here returns at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from isda_repro.errors import UserError

Thing = TypeVar("Thing")


class _Pending(NamedTuple):
    """A reduction that has been started and whose result has not been read yet."""

    largest: Tensor
    work: dist.Work


@dataclass(eq=False)
class Processes:
    """This process among the processes of its run.

    Attributes:
        rank: number of this process, from 0; the main process has 0.
        world_size: the number of processes.
        local_rank: number of this process on its host, and of the GPU that it uses.
        local_world_size: the number of processes on this host.
        group: the process group of the run; None with a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: dist.ProcessGroup | None = None
    _pending: _Pending | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the process with rank 0, which alone writes files and prints."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """True if the run has several processes."""
        return self.group is not None

    def agreed(self, *wishes: int) -> tuple[int, ...]:
        """Return the maximum of each wish (an integer >= 0) over all processes, from their previous call.

        The answer is one call late so that nobody waits: the reduction that the previous call started has ended in the
        meantime. All processes get the same answer in the same call. A single process gets its own wishes at once.
        """
        if not self.is_distributed:
            return wishes
        before = self._pending
        largest = torch.tensor(wishes, dtype=torch.int64)
        self._pending = _Pending(largest, dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group, async_op=True))
        if before is None:
            return (0,) * len(wishes)
        before.work.wait()
        return tuple(before.largest.tolist())

    def all_reduce_max(self, value: int) -> int:
        """Return the maximum of an integer >= 0 over all processes."""
        if not self.is_distributed:
            return value
        largest = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor``, on any device, by its sum over all processes, and return it."""
        if self.is_distributed:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with the main process's values, using one message for each dtype."""
        if not self.is_distributed:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_type.values():
            message = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            dist.broadcast(message, 0, group=self.group)
            for tensor, part in zip(alike, message.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def broadcast_from_main(self, make: Callable[[], Thing]) -> Thing:
        """Call ``make`` on the main process only, and return its result on all processes.

        Tensors in the result must be on the CPU. They are sent apart from the pickled rest.
        """
        if not self.is_distributed:
            return make()
        thing = make() if self.is_main else None
        tensors: list[Tensor] = []
        objects = [_without_tensors(thing, tensors) if self.is_main else None]
        dist.broadcast_object_list(objects, 0, group=self.group)
        received: Thing = _with_tensors(objects[0], self._receive_from_main(iter(tensors)))
        return received

    def _receive_from_main(self, tensors: Iterator[Tensor]) -> Callable[[_Shape], Tensor]:
        def receive(shape: _Shape) -> Tensor:
            tensor = next(tensors).contiguous() if self.is_main else torch.empty(shape.size, dtype=shape.dtype)
            dist.broadcast(tensor, 0, group=self.group)
            return tensor

        return receive

    def gather_to_main(self, thing: Thing) -> list[Thing] | None:
        """Return a list of every process's object, ordered by rank, on the main process, and None elsewhere."""
        if not self.is_distributed:
            return [thing]
        objects: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(thing, objects, 0, group=self.group)
        return objects

    def all_gather(self, thing: Thing) -> list[Thing]:
        """Return a list of every process's object, ordered by rank, on all processes."""
        if not self.is_distributed:
            return [thing]
        objects: list[Any] = [None] * self.world_size
        dist.all_gather_object(objects, thing, group=self.group)
        return objects

    def first_difference(self, values: Mapping[str, Any]) -> Difference | None:
        """Compare a mapping on all processes with the main process's; return the first difference, on all processes."""
        first, *others = self.all_gather(dict(values))
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other.get(name) != value:
                    return Difference(rank, name, value, other.get(name))
        return None

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on the main process first, then on all remaining processes at the same time."""
        if self.is_distributed and not self.is_main:
            self.all_reduce_max(0)
        yield
        if self.is_distributed and self.is_main:
            self.all_reduce_max(0)


SINGLE_PROCESS = Processes()


class Difference(NamedTuple):
    """A value in which a process differs from the main process."""

    rank: int
    name: str
    on_main: Any
    there: Any


class _Shape(NamedTuple):
    """Placeholder for a tensor in a message; the tensor itself is sent afterwards."""

    size: tuple[int, ...]
    dtype: torch.dtype


def _without_tensors(thing: Any, tensors: list[Tensor]) -> Any:
    """Return ``thing`` with a ``_Shape`` in place of each tensor, and append the tensors to ``tensors``.

    Pickling the tensors would copy them once more.
    """
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return _Shape(tuple(thing.shape), thing.dtype)
    if isinstance(thing, Mapping):
        return {key: _without_tensors(value, tensors) for key, value in thing.items()}
    if type(thing) in (list, tuple):
        return type(thing)(_without_tensors(value, tensors) for value in thing)
    return thing


def _with_tensors(thing: Any, receive: Callable[[_Shape], Tensor]) -> Any:
    if isinstance(thing, _Shape):
        return receive(thing)
    if isinstance(thing, Mapping):
        return {key: _with_tensors(value, receive) for key, value in thing.items()}
    if type(thing) in (list, tuple):
        return type(thing)(_with_tensors(value, receive) for value in thing)
    return thing


PARENT_DEATH_SIGNAL = 1  # Linux's prctl option
LATE = ("Timed out waiting", "wait timeout after", "operation timeout")
LOST = ("closed by peer", "reset by peer", "Broken pipe", "pair closure", "failed to recv", "connect", "Socket")
MISUSED = ("Duplicate GPU", "ncclInvalidUsage", "ncclInvalidArgument")  # NCCL's words for errors of the command line
OF_OTHERS = "ncclRemoteError"
LAST_ERROR = "Last error:"  # NCCL's heading of what it has to say
LOOK_SECONDS = 0.02


class LostContactError(UserError):
    """Raised when another process of the run has ended or does not answer."""


@contextmanager
def init_distributed(timeout_minutes: float) -> Iterator[Processes]:
    """Join the processes that torchrun, or another launcher with its environment variables, started with this one.

    Yields ``SINGLE_PROCESS`` if this process was started alone.

    Args:
        timeout_minutes: how long a process waits for another before it considers it hung.

    Raises:
        LostContactError: another process has ended, or does not answer in time.
        UserError: some of torchrun's environment variables are missing, or two processes share a GPU.
    """
    here = _environment()
    if here is None:
        yield SINGLE_PROCESS
        return
    _end_with_launcher()
    gpus = torch.cuda.is_available()
    if gpus and here.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(here.local_rank)
    with _explained(here, timeout_minutes):
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        store, *_ = next(rendezvous("env://", timeout=timeout))
        own = PrefixStore(_meet(store, here.rank, here.world_size, timeout), store)
        dist.init_process_group(backend, store=own, rank=here.rank, world_size=here.world_size, timeout=timeout)
        here.group = dist.group.WORLD
        yield here
        dist.destroy_process_group()  # not after an error: NCCL would wait for dead processes


def _environment() -> Processes | None:
    """Read torchrun's variables; return None if there is only one process or no launcher."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world_size}, but {', '.join(missing)} is not set: start several processes by torchrun "
            "--nproc_per_node=N train.py ..., or unset WORLD_SIZE"
        )
    try:
        rank, world, local_rank = (int(os.environ[name]) for name in names[:3])
        return Processes(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    except ValueError as error:
        raise UserError(
            f"RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be whole numbers ({error}): torchrun sets them"
        ) from error


def _meet(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Agree on a name that all processes of this launch share and that no earlier launch used.

    After a failure torchrun restarts the processes with the same store. It still holds the addresses of dead processes,
    to which PyTorch would try to connect (pytorch issue 135712). So rank 0 makes up a name, every other rank answers
    under that name with a name of its own, and goes on when rank 0 has confirmed that answer.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank == 0:
        store.set("name", own)
        answers = [f"{own}/{other}" for other in range(1, world_size)]
        _until(lambda: store.check(answers), deadline)
        store.set(f"{own}/complete", " ".join(store.get(answer).decode() for answer in answers))
        return own
    name = ""

    def complete() -> bool:
        nonlocal name
        if store.check(["name"]) and (now := store.get("name").decode()) != name:
            name = now
            store.set(f"{name}/{rank}", own)
        return store.check([f"{name}/complete"]) and own in store.get(f"{name}/complete").decode().split()

    _until(complete, deadline)
    return name


def _until(is_so: Callable[[], bool], deadline: float) -> None:
    while not is_so():
        if time.monotonic() > deadline:
            raise dist.DistError(f"{LATE[0]} for all processes to start")
        time.sleep(LOOK_SECONDS)


def _end_with_launcher() -> None:
    """Have Linux send SIGTERM to this process when torchrun is killed, so that it saves and stops.

    Otherwise it would go on training without a launcher.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _explained(here: Processes, timeout_minutes: float) -> Iterator[None]:
    """Turn PyTorch's errors about a lost peer, several lines of C++, into one sentence."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        reason = str(error)
        who = f"rank {here.rank} of {here.world_size}"
        if any(word in reason for word in MISUSED):
            raise UserError(
                f"{who}: NCCL refuses its GPU ({reason.splitlines()[0]}): each process needs one of its own "
                "(torchrun --nproc_per_node=gpu), or compute=cpu"
            ) from error
        if any(word in reason for word in LATE):
            raise LostContactError(
                f"{who} has waited {timeout_minutes:g} minutes for another rank, which hangs (a stopped process, a "
                "file system that does not answer): the same command goes on from the last checkpoint; "
                "compute.timeout_minutes= is how long to wait"
            ) from error
        own = reason.partition(LAST_ERROR)[2].strip()
        if own and OF_OTHERS not in reason and not any(word.lower() in own.lower() for word in LOST):
            raise UserError(
                f"{who}: NCCL has failed here: {own}; if it names /dev/shm, the container needs more of it (docker run "
                "--shm-size); if memory, choose a smaller recipe.batch_size or compute.micro_batch"
            ) from error
        if isinstance(error, dist.DistError) or any(word in reason for word in LOST):
            raise LostContactError(
                f"{who} has lost contact to another rank, whose own error stands before this one or in its node's log "
                "(none, if it was killed): the same command goes on from the last checkpoint"
            ) from error
        raise
