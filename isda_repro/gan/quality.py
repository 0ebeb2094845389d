"""How good generated images are, by a classifier of ours that has been trained on real ones.

Two figures. The share of generated images that the classifier takes for the class they were asked for; and the Frechet
distance between generated and real images in the classifier's features. The latter is computed as the Frechet
Inception Distance is (Heusel et al. 2017), in other features: its values compare with each other alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isda_repro.gan.sampling import ImageGenerator
from isda_repro.models import Network

IMAGES_AT_ONCE = 500


@dataclass(frozen=True)
class Moments:
    """Mean [A] and covariance [A, A] of features, float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Judged:
    """What a classifier says of images of known classes."""

    accuracy: float  # per cent
    accuracy_by_class: tuple[float, ...]
    moments: Moments


@dataclass(frozen=True)
class Quality:
    """Of generated images, with what the same figures are of real ones.

    Attributes:
        generated: what the classifier says of them.
        real: and of real images that it was not trained on.
        distance: between those two.
        real_distance: between real images that it was trained on and those that it was not: what a generator that
            repeats the training images would have.
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
    """Both figures.

    Args:
        generator: makes the images.
        judge: uint8 images -> features [N, A] and logits [N, C], see ``judge_by``.
        train: real images uint8 and their labels, as many as there are: the labels are drawn from these.
        test: likewise, those that the classifier has not been trained on.
        count: of the images that are made.
        seed: of the labels and the noise.
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
    """What ``quality`` asks: a trained classifier, and how images are normalised for it."""
    network.eval()

    @torch.no_grad()
    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        output = network(normalise(images))
        return output.features, output.logits

    return judge


def judged(
    judge: Callable[[Tensor], tuple[Tensor, Tensor]], batches: Iterator[tuple[Tensor, Tensor]], num_classes: int
) -> Judged:
    """Accuracy, and the moments of the features, of images uint8 and labels that come in parts."""
    features, right, labels = [], [], []
    for images, targets in batches:
        of_images, logits = judge(images)
        features.append(of_images.double().cpu())
        right.append((logits.argmax(1).cpu() == targets.cpu()).double())
        labels.append(targets.cpu())
    hits, all_labels = torch.cat(right), torch.cat(labels)
    counts = torch.bincount(all_labels, minlength=num_classes)
    by_class = torch.bincount(all_labels, weights=hits, minlength=num_classes) / counts.clamp(min=1)
    return Judged(
        accuracy=100 * float(hits.mean()),
        accuracy_by_class=tuple((100 * by_class).tolist()),
        moments=moments_of(torch.cat(features)),
    )


def moments_of(features_NA: Tensor) -> Moments:
    """Mean and covariance (divisor N - 1) of features [N, A], N at least 2."""
    features = features_NA.double()
    return Moments(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``, of two normal distributions; at least 0.

    The trace of the root is the sum of the roots of the eigenvalues of ``S_a^(1/2) S_b S_a^(1/2)``, which is symmetric.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * middle
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _in_parts(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.split(IMAGES_AT_ONCE), labels.split(IMAGES_AT_ONCE), strict=True)
