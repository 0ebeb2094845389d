"""Semantic directions: features moved along random directions (equation 1) or principal ones, and their neighbours.

Shapes: N images or samples, M draws for each, C classes, P directions, K steps along each, R real images, A features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


TINY = torch.finfo(torch.float64).tiny  # a class that has been seen once has no variance


class Directions(NamedTuple):
    """Principal directions of a covariance, the widest first."""

    vectors: Tensor  # [P, A]: of length 1, the largest component positive
    variances: Tensor  # [P]: along each
    share: Tensor  # [P]: of the variance in all directions


class Neighbours(NamedTuple):
    """Of one image, moved along its directions."""

    directions: Directions
    indices: Tensor  # [P, K]: which real image is nearest
    distances: Tensor  # [P, K]: of its feature to the moved one
    moved: Tensor  # [P, K]: how far the feature was moved


def principal_directions(covariance: Tensor, count: int) -> Directions:
    """Of Sigma [A, A] the ``count`` eigenvectors with the largest eigenvalues, in float64.

    Raises:
        ValueError: there are fewer.
    """
    if not 1 <= count <= len(covariance):
        raise ValueError(f"count={count} must be from 1 to {len(covariance)}, the number of features")
    values, columns = torch.linalg.eigh(covariance.double())
    values, vectors = values.clamp(min=0).flip(0), columns.T.flip(0)[:count]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return Directions(vectors * largest.sign(), values[:count], (values / values.sum().clamp(min=TINY))[:count])


def moved_along(feature: Tensor, directions: Directions, steps: Sequence[float], strength: float) -> Tensor:
    """``a + k sqrt(lambda) sqrt(variance) v``, [P, K, A] in float64: k counts deviations of ISDA's N(a, lambda Sigma).

    Args:
        feature: a, [A].
        directions: v and their variances.
        steps: the ks.
        strength: lambda.
    """
    steps_K = torch.tensor(list(steps)).to(directions.variances)
    length_PK = (strength * directions.variances).sqrt()[:, None] * steps_K
    return feature.double() + length_PK[:, :, None] * directions.vectors[:, None]


def nearest(points: Tensor, features: Tensor, *, without: int) -> tuple[Tensor, Tensor]:
    """The real image whose feature is nearest to each of ``points`` [..., A]: its index, and the distance.

    Args:
        points: where features were moved to.
        features: of the real images, [R, A], R at least 2.
        without: the index of the image that was moved, which does not count.
    """
    distances = torch.cdist(points.double().flatten(0, -2), features.double())
    distances[:, without] = torch.inf
    values, indices = distances.min(1)
    return indices.reshape(points.shape[:-1]), values.reshape(points.shape[:-1])


def neighbours(
    index: int, features: Tensor, covariance: Tensor, *, directions: int, steps: Sequence[float], strength: float
) -> Neighbours:
    """The nearest real images to where ISDA may move the feature of one of them.

    Args:
        index: of the image.
        features: of all real images, [R, A].
        covariance: Sigma of its class, [A, A].
        directions: P, how many.
        steps: the ks of ``moved_along``.
        strength: lambda.
    """
    along = principal_directions(covariance, directions)
    points = moved_along(features[index], along, steps, strength)
    indices, distances = nearest(points, features, without=index)
    return Neighbours(along, indices, distances, (points - features[index].double()).norm(dim=2))
