"""Wrapping a network in DistributedDataParallel, for processes that each have a share of every batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isda_repro.errors import UserError
from isda_repro.models import Network, NetworkOutput
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import Processes


def convert_sync_batchnorm(network: Network, processes: Processes, compute: Compute) -> Network:
    """Return the network with batch normalisation over the batch of all processes (SyncBatchNorm).

    Raises:
        UserError: the device is not a GPU, which SyncBatchNorm needs, or ``compute.micro_batch`` is set.
    """
    if compute.device.type != "cuda":
        raise UserError("compute.sync_bn=true needs GPUs (PyTorch's SyncBatchNorm has no other form): leave it out")
    if compute.micro_batch is not None:
        raise UserError("compute.sync_bn=true and compute.micro_batch= exclude each other: leave one out")
    # PyTorch's own function drops the activations within layers of timm.
    from timm.layers import convert_sync_batchnorm as convert  # type: ignore[attr-defined]

    converted: Network = convert(network, processes.group)
    return converted


def wrap_ddp(network: Network, processes: Processes, compute: Compute) -> nn.Module:
    """Return the DDP module to call in training.

    Its backward pass averages the gradients over all processes. Before each forward pass the buffers (the running
    statistics of batch normalisation) are overwritten with the main process's.
    """
    device_ids = [compute.device] if compute.device.type == "cuda" else None
    return DistributedDataParallel(
        _AcceptsEmptyBatch(network), device_ids=device_ids, process_group=processes.group, gradient_as_bucket_view=True
    )


def no_sync_unless_last(network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return a context in which gradients are not exchanged between processes, except for the last micro-batch.

    Until then gradients accumulate on each process alone. Has no effect on a network without DDP.
    """
    if is_last or not hasattr(network, "no_sync"):
        return nullcontext()
    return network.no_sync()  # type: ignore[operator, no-any-return]


class _AcceptsEmptyBatch(nn.Module):
    """Network wrapper that also takes an empty batch.

    A process without samples then still takes part in the exchange of gradients, with zeros.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network: Network = network
        self._normalises_together = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())

    def forward(self, images: Tensor) -> NetworkOutput:
        """Return features [N, A] and logits [N, C] of images [N, 3, H, W]; N may be 0."""
        if len(images):
            return self.network(images)  # type: ignore[no-any-return]
        if self._normalises_together:  # SyncBatchNorm sends zeros of the input's dtype, and statistics in float32
            with torch.autocast(images.device.type, enabled=False):
                return self.network(images)  # type: ignore[no-any-return]
        head = self.network.head
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        nothing = torch.stack([parameter.reshape(-1)[0].to(head.weight.dtype) for parameter in trained]).sum()
        return NetworkOutput(nothing.expand(0, head.in_features), nothing.expand(0, head.out_features))
