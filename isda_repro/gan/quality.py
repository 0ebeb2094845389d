"""Quality of generated images, measured by a classifier of this project that was trained on real images.

There are two measures. The first is the share of generated images that the classifier assigns to the requested class.
The second is the Frechet distance between generated and real images in the classifier's features. It is computed as
the Frechet Inception Distance is (Heusel et al. 2017) but in other features, so its values are comparable only with
each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isda_repro.gan.sampling import IMAGES_AT_ONCE, ImageGenerator
from isda_repro.models import Network


@dataclass(frozen=True)
class Moments:
    """Mean [A] and covariance [A, A] of features, in float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Judged:
    """Accuracy of a classifier on images of known classes, and the moments of their features."""

    accuracy: float  # in percent, as is accuracy_by_class
    accuracy_by_class: tuple[float | None, ...]  # None for a class without images
    moments: Moments


@dataclass(frozen=True)
class Quality:
    """Measures of generated images, beside the same measures of real images.

    Attributes:
        generated: accuracy and moments on generated images.
        real: accuracy and moments on real images that the classifier was not trained on.
        distance: Frechet distance between ``generated`` and ``real``.
        real_distance: Frechet distance between real images that the classifier was trained on and ``real``; a generator
            that repeats the training images would have it.
    """

    generated: Judged
    real: Judged
    distance: float
    real_distance: float


def quality(
    generator: ImageGenerator,
    judge: Callable[[Tensor], tuple[Tensor, Tensor]],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    count: int,
    seed: int,
) -> Quality:
    """Return both measures of a generator.

    Args:
        generator: makes the images.
        judge: uint8 images -> features [N, A] and logits [N, C], see ``judge_by``.
        train: real training images uint8 and their labels; the labels of generated images are drawn from these.
        test: real images and labels that the classifier was not trained on.
        count: number of images to generate.
        seed: seed of the labels and the noise.
    """
    draws = torch.Generator().manual_seed(seed)
    labels = train[1][torch.randint(len(train[1]), (count,), generator=draws)]
    made = (
        (generator.sample(part, torch.Generator().manual_seed(seed + 1 + index)), part)
        for index, part in enumerate(labels.split(IMAGES_AT_ONCE))
    )
    classes = generator.num_classes
    generated = judged(judge, made, classes)
    known, unknown = (judged(judge, _in_parts(*part), classes) for part in (train, test))
    return Quality(
        generated=generated,
        real=unknown,
        distance=frechet_distance(generated.moments, unknown.moments),
        real_distance=frechet_distance(known.moments, unknown.moments),
    )


def judge_by(network: Network, normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the ``judge`` of ``quality`` for a trained classifier.

    Args:
        network: the classifier, which is set to evaluation mode.
        normalise: uint8 images -> the network's input.
    """
    network.eval()

    @torch.no_grad()
    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        output = network(normalise(images))
        return output.features, output.logits

    return judge


def judged(
    judge: Callable[[Tensor], tuple[Tensor, Tensor]], batches: Iterator[tuple[Tensor, Tensor]], num_classes: int
) -> Judged:
    """Return the accuracy, and the moments of the features, on batches of uint8 images and labels."""
    features, right, labels = [], [], []
    for images, targets in batches:
        of_images, logits = judge(images)
        features.append(of_images.double().cpu())
        right.append((logits.argmax(1).cpu() == targets.cpu()).double())
        labels.append(targets.cpu())
    hits, all_labels = torch.cat(right), torch.cat(labels)
    counts = torch.bincount(all_labels, minlength=num_classes)
    by_class = 100 * torch.bincount(all_labels, weights=hits, minlength=num_classes) / counts
    return Judged(
        accuracy=100 * float(hits.mean()),
        accuracy_by_class=tuple(None if math.isnan(share) else share for share in by_class.tolist()),
        moments=moments_of(torch.cat(features)),
    )


def moments_of(features_NA: Tensor) -> Moments:
    """Return mean and covariance (divisor N - 1) of features [N, A]; N must be at least 2."""
    features = features_NA.double()
    return Moments(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the Frechet distance of two normal distributions, at least 0.

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is the sum of the roots of the eigenvalues of ``S_a^(1/2) S_b S_a^(1/2)``, which is symmetric.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * middle
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _in_parts(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True)
