"""Semantic directions: moving features at random (equation 1) or along principal directions, and their neighbours.

Shapes: N images, M draws for each, C classes, P directions, K steps along each, R real images, A features.
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
    """Return ``draws`` samples of ``N(a_i, lambda Sigma_y)`` for each feature (equation 1), [N, M, A].

    The samples are not restricted to the range of the features: a sample can be negative even where the network ends in
    a ReLU.

    Args:
        features: a_i, [N, A].
        labels: y, int64 [N].
        covariance: class -> Sigma, [A, A].
        strength: lambda.
        draws: M.
        seed: seed of all draws.
        numbers: int64 [N], a number for each image, which selects its random stream. So the draws of an image do not
            depend on the rest of the batch.
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


TINY = torch.finfo(torch.float64).tiny  # avoids 0 / 0: a class that was seen once has no variance


class Directions(NamedTuple):
    """Principal directions of a covariance, in descending order of variance."""

    vectors: Tensor  # [P, A], of length 1, with a positive largest component
    variances: Tensor  # [P], the variance along each
    share: Tensor  # [P], the share of each in the total variance


class Neighbours(NamedTuple):
    """Nearest real images to the feature of one image, moved along its directions."""

    directions: Directions
    indices: Tensor  # [P, K], the nearest real image
    distances: Tensor  # [P, K], from its feature to the moved feature
    moved: Tensor  # [P, K], how far the feature was moved


def principal_directions(covariance: Tensor, count: int) -> Directions:
    """Return the ``count`` eigenvectors of Sigma [A, A] with the largest eigenvalues, in float64.

    Raises:
        ValueError: count is not in 1 to A.
    """
    if not 1 <= count <= len(covariance):
        raise ValueError(f"count={count} must be from 1 to {len(covariance)}, the number of features")
    values, columns = torch.linalg.eigh(covariance.double())
    values, vectors = values.clamp(min=0).flip(0), columns.T.flip(0)[:count]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return Directions(vectors * largest.sign(), values[:count], (values / values.sum().clamp(min=TINY))[:count])


def moved_along(feature: Tensor, directions: Directions, steps: Sequence[float], strength: float) -> Tensor:
    """Return ``a + k sqrt(lambda) sqrt(variance) v``, [P, K, A] in float64.

    So k counts standard deviations of ISDA's N(a, lambda Sigma).

    Args:
        feature: a, [A].
        directions: v and their variances.
        steps: the K values of k.
        strength: lambda.
    """
    steps_K = torch.tensor(list(steps)).to(directions.variances)
    length_PK = (strength * directions.variances).sqrt()[:, None] * steps_K
    return feature.double() + length_PK[:, :, None] * directions.vectors[:, None]


def nearest(points: Tensor, features: Tensor, *, without: int) -> tuple[Tensor, Tensor]:
    """Return the index of the real image whose feature is nearest to each of ``points``, and the distance.

    Args:
        points: moved features, [..., A].
        features: features of the real images, [R, A], R at least 2.
        without: index of the image whose feature was moved, which is excluded.
    """
    distances = torch.cdist(points.double().flatten(0, -2), features.double())
    distances[:, without] = torch.inf
    values, indices = distances.min(1)
    return indices.reshape(points.shape[:-1]), values.reshape(points.shape[:-1])


def neighbours(
    index: int, features: Tensor, covariance: Tensor, *, directions: int, steps: Sequence[float], strength: float
) -> Neighbours:
    """Return the nearest real images to where ISDA may move the feature of one image.

    Args:
        index: index of the image.
        features: features of all real images, [R, A].
        covariance: Sigma of the image's class, [A, A].
        directions: number of directions, P.
        steps: the K values of k, see ``moved_along``.
        strength: lambda.
    """
    along = principal_directions(covariance, directions)
    points = moved_along(features[index], along, steps, strength)
    indices, distances = nearest(points, features, without=index)
    return Neighbours(along, indices, distances, (points - features[index].double()).norm(dim=2))
