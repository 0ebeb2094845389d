"""Gradients of one batch, whole or in micro-batches that fit into memory.

The graph is cut where the criterion begins: first its value and its gradients for features, logits and weights, then
one backward pass through the network. So the loss is always that of the whole batch, ISDA's statistics included,
whatever the size of the micro-batches; and the criterion's time is measured apart, its backward pass included.

With micro-batches the features of all are computed first, without a graph, and each is run a second time for its
backward pass. That costs a third more time, and is exact for every criterion; batch normalisation alone sees the
micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isda_repro.training.compute import Compute
from isda_repro.training.timing import Stopwatch


class StepResult(NamedTuple):
    """Of one batch: the criterion's loss [] and the network's logits [N, C], both detached."""

    loss: Tensor
    logits: Tensor


def compute_gradients(
    network: nn.Module,
    criterion: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear,
    progress: float,
    compute: Compute,
    seed_micro_batch: Callable[[int], None],
    stopwatch: Stopwatch,
) -> StepResult:
    """Add the gradients of ``criterion`` on a batch to ``.grad`` of the network's and the criterion's parameters.

    Args:
        network: images [N, 3, H, W] -> features [N, A] and logits [N, C].
        criterion: see ``isda_repro.losses.Criterion``.
        images: [N, 3, H, W].
        targets: int64 [N].
        head: the network's last layer.
        progress: the share of training that is over, in [0, 1].
        compute: precision, and the size of micro-batches if there are any.
        seed_micro_batch: seeds the network's random draws (dropout) for the micro-batch with the index given; called
            with the same index before both passes.
        stopwatch: adds the criterion's time under "criterion".
    """
    parts = images.split(compute.micro_batch or len(images))
    if len(parts) == 1:
        seed_micro_batch(0)
        with compute.autocast():
            features, logits = network(images)
        loss, gradients = _criterion(
            criterion, features.detach(), logits.detach(), targets, head=head, progress=progress, stopwatch=stopwatch
        )
        gradients.backward(features, logits)
        return StepResult(loss, logits.detach())

    features, logits = _without_graph(network, parts, compute, seed_micro_batch)
    loss, gradients = _criterion(
        criterion, features, logits, targets, head=head, progress=progress, stopwatch=stopwatch
    )
    for index, (part, share) in enumerate(zip(parts, gradients.split(len(parts[0])), strict=True)):
        seed_micro_batch(index)
        with compute.autocast():
            output = network(part)
        share.backward(output.features, output.logits)
    return StepResult(loss, logits)


class _Gradients(NamedTuple):
    """Of the loss, for features [N, A] and logits [N, C] (None: it does not depend on them), and for weights."""

    features: Tensor | None
    logits: Tensor | None
    weights: Sequence[tuple[Tensor, Tensor]]

    def split(self, size: int) -> list[_Gradients]:
        """One for each micro-batch; the weights' own go with the first."""
        rows = self.logits if self.logits is not None else self.features
        assert rows is not None
        count = len(rows.split(size))
        features = self.features.split(size) if self.features is not None else [None] * count
        logits = self.logits.split(size) if self.logits is not None else [None] * count
        weights = [self.weights, *([[]] * (count - 1))]
        return [_Gradients(*parts) for parts in zip(features, logits, weights, strict=True)]

    def backward(self, features: Tensor, logits: Tensor) -> None:
        """One backward pass from everything the loss depends on, so that each parameter gets its gradient once."""
        outputs = ((features, self.features), (logits, self.logits))
        pairs = [*self.weights, *((output, gradient) for output, gradient in outputs if gradient is not None)]
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])


def _criterion(
    criterion: nn.Module,
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear,
    progress: float,
    stopwatch: Stopwatch,
) -> tuple[Tensor, _Gradients]:
    """The loss and its gradients, without touching the network or any ``.grad``."""
    with stopwatch.device("criterion"):
        features.requires_grad_()
        logits.requires_grad_()
        weights = [weight for weight in (*head.parameters(), *criterion.parameters()) if weight.requires_grad]
        loss = criterion(features, logits, targets, head=head, progress=progress)
        wanted = [features, logits, *weights]
        of_features, of_logits, *of_weights = torch.autograd.grad(loss, wanted, allow_unused=True)
    own = [(weight, gradient) for weight, gradient in zip(weights, of_weights, strict=True) if gradient is not None]
    return loss.detach(), _Gradients(of_features, of_logits, own)


@torch.no_grad()
def _without_graph(
    network: nn.Module, parts: tuple[Tensor, ...], compute: Compute, seed_micro_batch: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Features and logits of the whole batch. The network's buffers stay as they were: the second pass updates them."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    outputs = []
    for index, part in enumerate(parts):
        seed_micro_batch(index)
        with compute.autocast():
            outputs.append(network(part))
    for buffer, value in before:
        buffer.copy_(value)
    return torch.cat([output.features for output in outputs]), torch.cat([output.logits for output in outputs])
