"""The processes of one run: how they find each other, what they agree on, and what they tell each other.

Tensors on a GPU travel by NCCL, everything else by gloo. With one process there is no group, and nothing here costs
anything.
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
    """What has been asked of all processes and not been looked at yet."""

    largest: Tensor
    work: dist.Work


@dataclass(eq=False)
class Processes:
    """This process among those of its run.

    Attributes:
        rank: which one, counted from 0; the first alone writes files and talks to people.
        world_size: how many.
        local_rank: which one on this host, and which of its GPUs.
        local_world_size: how many on this host.
        group: of all of them; None where there is one.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: dist.ProcessGroup | None = None
    _pending: _Pending | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this one writes and talks."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.group is not None

    def agreed(self, *wishes: int) -> tuple[int, ...]:
        """The largest of each wish, from 0 on, over all processes, as of the call before; alone, as of this one.

        So all of them learn of a wish in the same call, and none waits: what the others said then has come meanwhile.
        """
        if not self.are_several:
            return wishes
        before = self._pending
        largest = torch.tensor(wishes, dtype=torch.int64)
        self._pending = _Pending(largest, dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group, async_op=True))
        if before is None:
            return (0,) * len(wishes)
        before.work.wait()
        return tuple(before.largest.tolist())

    def largest(self, value: int) -> int:
        """Over all processes, now."""
        if not self.are_several:
            return value
        largest = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Make ``tensor``, on any device, the sum of those of all processes."""
        if self.are_several:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Make each tensor that of the first process: one message for each type of number."""
        if not self.are_several:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_type.values():
            message = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            dist.broadcast(message, 0, group=self.group)
            for tensor, part in zip(alike, message.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def told_by_first(self, make: Callable[[], Thing]) -> Thing:
        """What ``make`` gives in the first process, which alone calls it; tensors in it must be on the CPU."""
        if not self.are_several:
            return make()
        thing = make() if self.is_first else None
        tensors: list[Tensor] = []
        told = [_without_tensors(thing, tensors) if self.is_first else None]
        dist.broadcast_object_list(told, 0, group=self.group)
        received: Thing = _with_tensors(told[0], self._each_from_first(iter(tensors)))
        return received

    def _each_from_first(self, tensors: Iterator[Tensor]) -> Callable[[_Shape], Tensor]:
        def receive(shape: _Shape) -> Tensor:
            tensor = next(tensors).contiguous() if self.is_first else torch.empty(shape.size, dtype=shape.dtype)
            dist.broadcast(tensor, 0, group=self.group)
            return tensor

        return receive

    def told_to_first(self, thing: Thing) -> list[Thing] | None:
        """Those of all processes, in the order of their ranks, in the first; None in the others."""
        if not self.are_several:
            return [thing]
        told: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(thing, told, 0, group=self.group)
        return told

    def told_to_all(self, thing: Thing) -> list[Thing]:
        """Those of all processes, in the order of their ranks."""
        if not self.are_several:
            return [thing]
        told: list[Any] = [None] * self.world_size
        dist.all_gather_object(told, thing, group=self.group)
        return told

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The block is run by the first process, and when it is through with it by the others at once."""
        if self.are_several and not self.is_first:
            self.largest(0)
        yield
        if self.are_several and self.is_first:
            self.largest(0)


ALONE = Processes()


class _Shape(NamedTuple):
    """What stands for a tensor in a message; the tensor follows."""

    size: tuple[int, ...]
    dtype: torch.dtype


def _without_tensors(thing: Any, tensors: list[Tensor]) -> Any:
    """``thing`` with a shape for each tensor, and these in ``tensors``: a pickle of them would be another copy."""
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
MISUSED = ("Duplicate GPU", "ncclInvalidUsage", "ncclInvalidArgument")  # NCCL's words for what the command got wrong
LOOK_SECONDS = 0.02


class LostContactError(UserError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def joined(timeout_minutes: float) -> Iterator[Processes]:
    """This process among those that were started with it.

    Args:
        timeout_minutes: how long one waits for another before it takes it for hung.

    Raises:
        LostContactError: one has ended, or does not answer in time.
        UserError: the environment variables of torchrun are there, but not all, or name more GPUs than there are.
    """
    here = _environment()
    if here is None:
        yield ALONE
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
        dist.destroy_process_group()  # not after an error: NCCL would wait for those that are gone


def _environment() -> Processes | None:
    """What torchrun says; None where it has started one process, or none of this."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world_size}, but {', '.join(missing)} is not set: start several processes by torchrun "
            "--nproc_per_node=N train.py ..., or unset WORLD_SIZE"
        )
    rank, world, local_rank = (int(os.environ[name]) for name in names[:3])
    return Processes(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def _meet(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that those who have been started together share, and nobody before them had.

    torchrun starts them anew after a failure, with the store as they left it: addresses of processes that are dead, in
    which PyTorch would look for its peers (pytorch issue 135712). So the first one makes up a name; each other answers
    under that name with one of its own, and goes ahead when the first has read just that.
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
    """When torchrun is killed, its processes would train on, unseen; so they are asked to save and stop."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _explained(here: Processes, timeout_minutes: float) -> Iterator[None]:
    """What PyTorch says of a peer that has gone is several lines of C++."""
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
        if isinstance(error, dist.DistError) or any(word in reason for word in LOST):
            raise LostContactError(
                f"{who} has lost contact to another rank, whose own error stands before this one or in its node's log "
                "(none, if it was killed): the same command goes on from the last checkpoint"
            ) from error
        raise
