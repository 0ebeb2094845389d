"""Gradients of one batch, computed at once or in micro-batches that fit into memory.

The graph is cut in front of the criterion: first its value and its gradients for features, logits and weights are
computed, then one backward pass goes through the network. So the loss is always that of the whole batch, ISDA's
statistics included, whatever the size of the micro-batches, and the criterion's time includes its backward pass.

With micro-batches, the features of all samples are computed first, without a graph; then each micro-batch runs forward
a second time for its backward pass. That costs a third more time and is exact for every criterion. Only batch
normalisation sees the micro-batch instead of the batch.

With several processes, each has a share of the batch, which may be empty. DDP averages the gradients of the processes,
so each share's loss is weighted such that this mean is the gradient of the whole batch. If the largest share needs
micro-batches, every process computes all features first, so that all of them communicate in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.data import Loader
from isda_repro.errors import UserError
from isda_repro.losses import IGNORED, Criterion
from isda_repro.models import Network
from isda_repro.training.compute import Compute
from isda_repro.training.ddp import no_sync_unless_last
from isda_repro.training.distributed import Processes
from isda_repro.training.running_metrics import Stopwatch


class StepResult(NamedTuple):
    """The criterion's loss [] and the network's logits [N, C] of one batch, both detached."""

    loss: Tensor
    logits: Tensor


class Weighted(NamedTuple):
    """Weight and padding of one process's share of a batch.

    Attributes:
        weight: factor on the share's loss: its samples times the number of processes, divided by the samples of the
            whole batch; or, if classes have weights, its sum of these instead of samples. A number, or a tensor [].
        padded_size: number of samples that every process passes to a collective loss; smaller shares are padded with
            samples whose target is ``IGNORED``, or whose probabilities are 0. None: no padding.
        counts_as: number of samples that the share's loss stands for in a mean over samples, if this is not the number
            that it has: because classes have weights, or because the loss is a mean that includes the padding.
        largest: number of samples of the largest share, the same on all processes; None: of the only one.
    """

    weight: float | Tensor = 1.0
    padded_size: int | None = None
    counts_as: int | Tensor | None = None
    largest: int | None = None


WHOLE_BATCH = Weighted()


def weighted(
    targets: Tensor,
    total: int,
    criterion: Criterion,
    processes: Processes,
    device: torch.device,
    *,
    may_fall_short: bool,
) -> Weighted:
    """Return weight and padding of this process's share of a batch.

    Args:
        targets: of this process's samples.
        total: samples of the whole batch, if none is missing.
        criterion: on an accelerator, a collective one gets shares that are padded to one size.
        processes: the processes that share the batch.
        device: device of the weight.
        may_fall_short: True if loaders may skip samples; then the processes add up how many they have.
    """
    largest = -(-total // processes.world_size)
    counts_are_unknown = criterion.is_collective and device.type != "cpu"  # the host does not wait for them
    padded_size = largest if counts_are_unknown else None
    counts_as: int | Tensor | None = padded_size if targets.is_floating_point() else None
    samples, own = len(targets), criterion.total_weight(targets)
    weight: float | Tensor = (counts_as or samples) * processes.world_size / total
    if own is not None:  # the loss of a share is a mean by the weights of its classes, and so is that of the batch
        everybody, of_all = processes.all_reduce_sum(torch.stack([own.new_full((), samples), own]))
        part = own / torch.where(of_all > 0, of_all, 1)
        weight, counts_as = part * processes.world_size, part * everybody
    elif may_fall_short:
        everybody = processes.all_reduce_sum(torch.full((), float(samples), device=device))
        weight = (counts_as or samples) * processes.world_size / everybody.clamp(min=1)
    return Weighted(weight, padded_size, counts_as, largest)


def compute_gradients(
    network: nn.Module,
    criterion: Criterion,
    images: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear,
    progress: float | Tensor,
    compute: Compute,
    seed_micro_batch: Callable[[int], None],
    stopwatch: Stopwatch | None,
    share: Weighted = WHOLE_BATCH,
    eval_model: nn.Module | None = None,
) -> StepResult:
    """Add the gradients of ``criterion`` on a batch to ``.grad`` of the network's and the criterion's parameters.

    Args:
        network: images [N, 3, H, W] -> features [N, A] and logits [N, C].
        criterion: see ``isda_repro.losses.Criterion``.
        images: [N, 3, H, W].
        targets: int64 [N], or probabilities of the classes, float32 [N, C].
        head: the network's last layer.
        progress: the share of training that is over, in [0, 1]; in a captured step a tensor [] on the device.
        compute: precision, and the size of micro-batches (None: the whole batch at once).
        seed_micro_batch: seeds the network's random draws (dropout) for the micro-batch with the given index; called
            with the same index before both passes.
        stopwatch: records the criterion's time under "criterion"; None where it cannot be measured, as in a CUDA graph.
        share: weight and padding of ``images`` as this process's share of a batch.
        eval_model: the network without its DDP wrapper, for forward passes without a graph; None: ``network``.
    """
    if compute.micro_batch is None or (share.largest or len(images)) <= compute.micro_batch:
        seed_micro_batch(0)
        with compute.autocast():
            features, logits = network(images)
        detached = features.detach(), logits.detach()
        loss, gradients = _criterion(
            criterion, *detached, targets, head=head, progress=progress, stopwatch=stopwatch, share=share
        )
        gradients.backward(features, logits)
        return StepResult(loss, logits.detach())

    parts = images.split(compute.micro_batch)
    features, logits = _without_graph(eval_model or network, head, parts, compute, seed_micro_batch)
    loss, gradients = _criterion(
        criterion, features, logits, targets, head=head, progress=progress, stopwatch=stopwatch, share=share
    )
    for index, (part, own) in enumerate(zip(parts, gradients.split(compute.micro_batch), strict=True)):
        seed_micro_batch(index)
        with no_sync_unless_last(network, is_last=index == len(parts) - 1):
            with compute.autocast():
                output = network(part)
            own.backward(output.features, output.logits)
    return StepResult(loss, logits)


def refuse_single_images(network: Network, loader: Loader, compute: Compute, image_shape: tuple[int, ...]) -> None:
    """Refuse a training in which some step shows the network one image alone, if its normalisation cannot take that.

    Batch normalisation of maps of 1 x 1 pixels has nothing to normalise over in a single image. Whether a network comes
    to that is found by trying, and only where a share of a batch, or a micro-batch of one, is a single image.

    Args:
        network: the network itself; its buffers and the random state stay as they are.
        loader: the loader of the training images.
        compute: device, precision and size of micro-batches.
        image_shape: (C, H, W) of an image.

    Raises:
        UserError: a step has one image, and the network cannot train on it.
    """
    at_once = compute.micro_batch or loader.batch_size
    parts = {part for size in loader.share_sizes() for part in (min(size, at_once), size % at_once)}
    if 1 not in parts:
        return
    micro = "" if compute.micro_batch is None else f", micro-batches of {at_once}"
    processes = loader.share.world_size
    among = "" if processes == 1 else f", divided among {processes} processes"
    devices = [compute.device] if compute.device.type == "cuda" else []
    image = torch.zeros(1, *image_shape, device=compute.device).contiguous(memory_format=compute.memory_format)
    with (
        torch.random.fork_rng(devices),
        explained_single_image(f"{loader.num_samples} images in batches of {loader.batch_size}{among}{micro}: a step"),
    ):
        _without_graph(network.train(), network.head, (image,), compute, lambda index: None)


@contextmanager
def explained_single_image(what: str) -> Iterator[None]:
    """Turn PyTorch's error about batch normalisation of a single value into a ``UserError`` that says what to do.

    Args:
        what: subject of the message, which ends with the step that has one image alone.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{what} has one image alone, and this network normalises over 1 x 1 pixels, which takes two images: "
            "choose another recipe.batch_size, compute.micro_batch or number of processes"
        ) from error


class _Gradients(NamedTuple):
    """Gradients of the loss.

    Attributes:
        features: gradient for the features [N, A]; None if the loss does not depend on them.
        logits: gradient for the logits [N, C]; None if the loss does not depend on them.
        weights: pairs of a parameter of head or criterion and its gradient.
    """

    features: Tensor | None
    logits: Tensor | None
    weights: Sequence[tuple[Tensor, Tensor]]

    def split(self, size: int) -> list[_Gradients]:
        """Return the gradients of each micro-batch of ``size`` samples; the first also has those of the weights."""
        rows = self.logits if self.logits is not None else self.features
        assert rows is not None
        count = len(rows.split(size))
        features = self.features.split(size) if self.features is not None else [None] * count
        logits = self.logits.split(size) if self.logits is not None else [None] * count
        weights = [self.weights, *([[]] * (count - 1))]
        return [_Gradients(*parts) for parts in zip(features, logits, weights, strict=True)]

    def backward(self, features: Tensor, logits: Tensor) -> None:
        """Run one backward pass from all outputs that the loss depends on.

        A single pass gives each parameter its gradient once.
        """
        outputs = ((features, self.features), (logits, self.logits))
        pairs = [*self.weights, *((output, gradient) for output, gradient in outputs if gradient is not None)]
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])


def _criterion(
    criterion: Criterion,
    features: Tensor,
    logits: Tensor,
    targets: Tensor,
    *,
    head: nn.Linear,
    progress: float | Tensor,
    stopwatch: Stopwatch | None,
    share: Weighted,
) -> tuple[Tensor, _Gradients]:
    """Return the loss and its gradients, without touching the network or any ``.grad``."""
    with nullcontext() if stopwatch is None else stopwatch.device("criterion"):
        features.requires_grad_()
        logits.requires_grad_()
        weights = [weight for weight in (*head.parameters(), *criterion.parameters()) if weight.requires_grad]
        shown = _shown(features, logits, targets, share.padded_size)
        loss = criterion(*shown, head=head, progress=progress)
        counted = loss if share is WHOLE_BATCH else loss * share.weight
        wanted = [features, logits, *weights]
        of_features, of_logits, *of_weights = torch.autograd.grad(counted, wanted, allow_unused=True)
    own = [(weight, gradient) for weight, gradient in zip(weights, of_weights, strict=True) if gradient is not None]
    return loss.detach(), _Gradients(of_features, of_logits, own)


def _shown(features: Tensor, logits: Tensor, targets: Tensor, padded_size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs of the criterion, padded to ``padded_size`` samples that are ignored, or have no class."""
    missing = 0 if padded_size is None else padded_size - len(targets)
    if not missing:
        return features, logits, targets
    below = (0, 0, 0, missing)
    no_class = F.pad(targets, below) if targets.is_floating_point() else F.pad(targets, (0, missing), value=IGNORED)
    return F.pad(features, below), F.pad(logits, below), no_class


@torch.no_grad()
def _without_graph(
    network: nn.Module,
    head: nn.Linear,
    parts: tuple[Tensor, ...],
    compute: Compute,
    seed_micro_batch: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Return features and logits of the whole batch, computed without a graph; the only part may be empty.

    The network's buffers are restored afterwards, because the second pass updates them.
    """
    if not len(parts[0]):
        return head.weight.new_zeros(0, head.in_features), head.weight.new_zeros(0, head.out_features)
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    outputs = []
    for index, part in enumerate(parts):
        seed_micro_batch(index)
        with compute.autocast():
            outputs.append(network(part))
    for buffer, value in before:
        buffer.copy_(value)
    return torch.cat([output.features for output in outputs]), torch.cat([output.logits for output in outputs])
