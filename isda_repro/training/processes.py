"""The processes of one run: which of them this is, what they agree on, what they tell each other.

Tensors on a GPU travel by NCCL, everything else by gloo. With one process there is no group, and nothing here costs
anything.

Knows nothing of classification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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
