"""The error of a network on images that it has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.training.compute import Compute


class Evaluation(NamedTuple):
    """Over all samples: mean cross-entropy, and the share of wrong classes in percent."""

    loss: float
    error: float


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute) -> Evaluation:
    """Plain cross-entropy and error of ``network``, each sample counted once; the network's mode is left as it was.

    ``batches`` yields images [N, 3, H, W] and targets [N] on the device. The host waits for it once, at the end.
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=compute.device)
    samples = 0
    for images, targets in batches:
        with compute.autocast():
            logits = network(images).logits
        totals[0] += F.cross_entropy(logits.double(), targets, reduction="sum")
        totals[1] += (logits.argmax(1) != targets).sum()
        samples += len(targets)
    network.train(was_training)
    loss, errors = totals.tolist()
    return Evaluation(loss / samples, 100 * errors / samples)
