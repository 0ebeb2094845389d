"""State that survives what is done to a whole model: casts, copies, pickles, half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _GroupReference:
    """A process group that copies share. It cannot be pickled: an unpickled reference has lost it and holds None."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _GroupReference:
        return self

    def __reduce__(self) -> tuple[type[_GroupReference], tuple[()]]:
        return type(self), ()


class StatefulModule(nn.Module):
    """Module whose state survives what is done to a whole model: casts, copies, pickles.

    - Casts leave parameters and buffers at least in fp32: a running mean in half precision soon stops changing.
      Integers stay integers, and what ``exact`` names stays float64.
    - Copies share the ``process_group``. A pickle does not hold it.
    """

    exact: ClassVar[tuple[str, ...]] = ()
    """Buffers that stay in float64, as a count that float32 would stop at 2^24."""

    _group: _GroupReference | None = None

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The processes whose batches count as one; None: this process alone."""
        return None if self._group is None else self._group.group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self._check_group(group)
        for child in self.children():
            if isinstance(child, StatefulModule):
                child.process_group = group
        self._group = None if group is None else _GroupReference(group)

    def _check_group(self, group: dist.ProcessGroup | None) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise ValueError(f"process_group={group} must be a torch.distributed.ProcessGroup, or None")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: self._buffers[name] for name in self.exact}
        super()._apply(lambda tensor: _in_full_precision(_moved(fn, tensor), tensor), recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is None or moved is None or moved.device.type == "mps":
                continue
            if moved.dtype != torch.float64:
                self._buffers[name] = buffer.to(moved.device, torch.float64)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {prefix + name for name in (*self._parameters, *self._buffers)} & state_dict.keys()
        loaded = {key: _in_full_precision(state_dict[key]) for key in own if isinstance(state_dict[key], Tensor)}
        counts = {prefix + name for name in self.exact} & loaded.keys()
        # int64 in older files; Apple's MPS has no float64
        loaded |= {key: loaded[key].double() for key in counts if loaded[key].device.type != "mps"}
        super()._load_from_state_dict({**state_dict, **loaded}, prefix, *rest)


def state_dtype() -> torch.dtype:
    """Return the dtype of new state: PyTorch's default, and at least fp32."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def _moved(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Return ``fn(tensor)``, in float32 where the device has no float64 (Apple's MPS)."""
    try:
        return fn(tensor)
    except TypeError:
        if tensor.dtype != torch.float64:
            raise
        return fn(tensor.float())


def _in_full_precision(tensor: Tensor, before: Tensor | None = None) -> Tensor:
    """Return ``tensor`` at least in fp32.

    Args:
        tensor: the result of a cast or a move.
        before: what was cast; its values are used if the cast has lost digits, and its dtype if it was an integer.
    """
    before = tensor if before is None else before
    if not before.is_floating_point():
        dtype = before.dtype
    elif tensor.is_floating_point():
        dtype = torch.promote_types(tensor.dtype, torch.float32)
    else:
        return tensor
    return tensor if tensor.dtype == dtype else before.to(tensor.device, dtype)
