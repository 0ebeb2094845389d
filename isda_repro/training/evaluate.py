"""Evaluation of a network on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.training.compute import Compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes

LIKELIEST = 5


class Evaluation(NamedTuple):
    """Metrics over all samples.

    Attributes:
        loss: mean cross-entropy.
        error: share of wrongly classified samples, in percent.
        top5_error: share of samples whose class is not among the five likeliest, in percent; None with five classes or
            fewer.
    """

    loss: float
    error: float
    top5_error: float | None = None


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    compute: Compute,
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Return the cross-entropy and error of ``network``, counting each sample once.

    The network's training mode is restored afterwards. The host waits for the device once, at the end.

    Args:
        network: maps images to features and logits.
        batches: images [N, 3, H, W] and int64 targets [N] on the device, on each process its own share.
        compute: device and precision.
        processes: the result is over the samples of all of them.
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=compute.device)
    for images, targets in batches:
        if not len(targets):  # a process's share may be empty, which not every network accepts
            continue
        with compute.autocast():
            logits = network(images).logits
        totals[0] += F.cross_entropy(logits.double(), targets, reduction="sum")
        totals[1] += (logits.argmax(1) != targets).sum()
        totals[2] += len(targets)
        if logits.shape[1] > LIKELIEST:
            likeliest = logits.topk(LIKELIEST, dim=1).indices
            totals[3] += (likeliest != targets[:, None]).all(1).sum()
            totals[4] += len(targets)  # summed over processes: one with an empty share saw no logits
    network.train(was_training)
    loss, errors, samples, top5_errors, ranked = processes.all_reduce_sum(totals).tolist()
    return Evaluation(loss / samples, 100 * errors / samples, 100 * top5_errors / ranked if ranked else None)
