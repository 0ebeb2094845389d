"""The error of a network on images that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.training.compute import Compute
from isda_repro.training.processes import ALONE, Processes


class Evaluation(NamedTuple):
    """Over all samples: mean cross-entropy, and the share of wrong classes in percent."""

    loss: float
    error: float


@torch.inference_mode()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute, processes: Processes = ALONE
) -> Evaluation:
    """Plain cross-entropy and error of ``network``, each sample counted once; the network's mode is left as it was.

    ``batches`` yields images [N, 3, H, W] and targets [N] on the device, of each process its own share; the result is
    that of all. The host waits for the device once, at the end.
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=compute.device)
    for images, targets in batches:
        if not len(targets):  # a share may be empty, which not every network can be given
            continue
        with compute.autocast():
            logits = network(images).logits
        totals[0] += F.cross_entropy(logits.double(), targets, reduction="sum")
        totals[1] += (logits.argmax(1) != targets).sum()
        totals[2] += len(targets)
    network.train(was_training)
    loss, errors, samples = processes.add_up(totals).tolist()
    return Evaluation(loss / samples, 100 * errors / samples)
