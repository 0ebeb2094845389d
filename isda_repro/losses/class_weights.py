"""Weights of classes for training sets in which some classes have far fewer samples than others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETA = 0.9999  # of Cui et al.'s long-tailed CIFAR, also in the code of Cao et al. (2019)


def class_balanced_weights(counts: Sequence[int] | Tensor, beta: float = BETA) -> Tensor:
    """Return weights in inverse proportion to the effective number of samples of each class, as ``weight=`` takes them.

    The effective number of n samples is (1 - beta^n) / (1 - beta), equation 2 of Cui et al. (2019), "Class-Balanced
    Loss Based on Effective Number of Samples". The weights are scaled to the sum C, as in their code.

    Args:
        counts: number of training samples of each class, C numbers.
        beta: 0 gives equal weights; towards 1 the weights become proportional to 1 / n.

    Returns:
        float64 [C] on the CPU.

    Raises:
        ValueError: a class has no sample, or ``beta`` is outside [0, 1).
    """
    samples = torch.as_tensor(counts, dtype=torch.float64).cpu()
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} must be in [0, 1)")
    if samples.dim() != 1 or not len(samples) or not (samples >= 1).all():
        raise ValueError("counts must be the number of samples of each class, and every class needs one at least")
    weights = (1 - beta) / (1 - beta**samples)
    return weights * (len(weights) / weights.sum())
