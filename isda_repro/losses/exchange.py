"""One batch of all processes, so that each can update the same statistics."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from isda_repro.losses.batch_classes import is_asynchronous


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
    dist.all_gather_into_tensor(everything, own.contiguous(), group=group)
    return everything
