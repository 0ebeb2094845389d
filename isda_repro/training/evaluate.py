"""The error of a network on images that it has not seen."""

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
    """Over all samples: mean cross-entropy, and the share of wrong classes in percent.

    ``top5_error``: the share of samples whose class is not among the five likeliest; None of five classes or fewer.
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
    """Plain cross-entropy and error of ``network``, each sample counted once; the network's mode is left as it was.

    ``batches`` yields images [N, 3, H, W] and targets [N] on the device, of each process its own share; the result is
    that of all. The host waits for the device once, at the end.
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=compute.device)
    for images, targets in batches:
        if not len(targets):  # a share may be empty, which not every network can be given
            continue
        with compute.autocast():
            logits = network(images).logits
        totals[0] += F.cross_entropy(logits.double(), targets, reduction="sum")
        totals[1] += (logits.argmax(1) != targets).sum()
        totals[2] += len(targets)
        if logits.shape[1] > LIKELIEST:
            likeliest = logits.topk(LIKELIEST, dim=1).indices
            totals[3] += (likeliest != targets[:, None]).all(1).sum()
            totals[4] += len(targets)  # told to a process whose share is empty, which saw no logits
    network.train(was_training)
    loss, errors, samples, top5_errors, ranked = processes.all_reduce_sum(totals).tolist()
    return Evaluation(loss / samples, 100 * errors / samples, 100 * top5_errors / ranked if ranked else None)
