"""One batch of all processes, so that each can update the same statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isda_repro.losses.batch_classes import is_asynchronous


def check_group(process_group: Any) -> None:
    """Whether it can be the ``process_group`` of a loss.

    Raises:
        ValueError: it cannot.
    """
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise ValueError(f"process_group={process_group} must be a torch.distributed.ProcessGroup, or None")


def of_all_processes(features: Tensor, targets: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """``gathered``, or where there is no group what was given; without a graph."""
    return (features.detach(), targets) if group is None else gathered(features.detach(), targets, group)


def gathered(features: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The features [N, A] and targets [N] of all processes of ``group``, in the order of their ranks.

    On a CPU each may have another number of samples. On an accelerator, whose host is not to wait, all must have the
    same: a process with fewer fills up with samples that ``ignore_index`` marks.
    """
    world = dist.get_world_size(group)
    if is_asynchronous(targets):
        return _all(features, group, world), _all(targets, group, world)
    counts = _all(torch.tensor([len(targets)]), group, world).tolist()
    longest = max(counts)
    padded = features.new_zeros(longest, features.shape[1]), targets.new_zeros(longest)
    for room, own in zip(padded, (features, targets), strict=True):
        room[: len(own)] = own
    everything = (_all(room, group, world).split(longest) for room in padded)
    features, targets = (
        torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]) for parts in everything
    )
    return features, targets


def _all(own: Tensor, group: dist.ProcessGroup, world: int) -> Tensor:
    everything = own.new_empty(world * len(own), *own.shape[1:])
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its newer name
    gather(everything, own.contiguous(), group=group)
    return everything
