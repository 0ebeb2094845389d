"""Equation 1: features translated along random directions of their class.

Shapes: N samples, M draws for each, C classes, A features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isda_repro.losses import covariance_root
from isda_repro.randomness import stream_seed


def augmented(
    features: Tensor,
    labels: Tensor,
    covariance: Callable[[int], Tensor],
    strength: float,
    *,
    draws: int,
    seed: int,
    numbers: Tensor,
) -> Tensor:
    """``draws`` from ``N(a_i, lambda Sigma_y)`` for each feature: [N, M, A].

    Nothing keeps them within the features' range: those of a network that ends in a rectifier are never negative, and a
    draw can be.

    Args:
        features: a_i, [N, A].
        labels: y, int64 [N].
        covariance: class -> Sigma, [A, A].
        strength: lambda.
        draws: M.
        seed: of all of them.
        numbers: int64 [N], by which each sample has a stream of its own: its draws do not depend on the others.
    """
    shape = draws, features.shape[1]
    standard = torch.stack([_standard(shape, seed, int(number)) for number in numbers]).to(features)
    moved = torch.empty_like(standard)
    for label in labels.unique().tolist():
        root_AA = covariance_root(covariance(label)[None])[0].to(features)
        here = (labels == label).to(features.device)
        moved[here] = standard[here] @ root_AA.T
    found: Tensor = features[:, None] + strength**0.5 * moved
    return found


def _standard(shape: tuple[int, int], seed: int, number: int) -> Tensor:
    draws = torch.Generator().manual_seed(stream_seed(seed, "inversion_augmentation", number))
    return torch.randn(shape, generator=draws)
