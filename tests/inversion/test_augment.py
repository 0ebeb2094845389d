"""Features that are translated along directions of their class."""

import pytest
import torch
from toys import draws

from isda_repro.inversion import augmented

CLASSES, WIDTH = 3, 4
MANY = 20_000


def covariances():
    factor = torch.randn(CLASSES, WIDTH, 2, generator=draws(), dtype=torch.float64)
    return factor @ factor.mT  # rank 2, like covariances of few samples


def several(**more):
    features = torch.randn(3, WIDTH, generator=draws(1), dtype=torch.float64)
    options = {"strength": 0.5, "draws": 2, "seed": 0, "numbers": torch.tensor([7, 3, 12]), **more}
    labels = torch.tensor([2, 0, 2])
    covariance = covariances()
    return features, labels, augmented(features, labels, covariance.__getitem__, **options)


@pytest.mark.parametrize("strength", [0.1, 0.5, 4.0])
def test_draws_have_the_mean_and_the_covariance_asked_for(strength):
    """The covariance of each class is lambda times its Sigma; the tolerance is five standard errors."""
    features, labels, found = several(strength=strength, draws=MANY)
    for row, label in enumerate(labels.tolist()):
        wanted = strength * covariances()[label]
        deviations = wanted.diagonal().sqrt()
        assert ((found[row].mean(0) - features[row]).abs() < 5 * deviations / MANY**0.5 + 1e-6).all()
        error = (wanted.diagonal()[:, None] * wanted.diagonal() + wanted**2).div(MANY).sqrt()
        assert ((torch.cov(found[row].T) - wanted).abs() < 5 * error + 1e-6 * wanted.trace()).all()


def test_lambda_scales_the_move_along_the_same_direction():
    features, _, near = several(strength=0.5)
    torch.testing.assert_close(2 * (near - features[:, None]), several(strength=2.0)[2] - features[:, None])
    still = several(strength=0.0)[2]
    assert torch.equal(still, features[:, None].expand_as(still))


def test_draws_for_an_image_follow_from_its_number_and_the_seed_alone():
    features, labels, found = several()
    alone = augmented(
        features[1:2], labels[1:2], covariances().__getitem__, 0.5, draws=2, seed=0, numbers=torch.tensor([3])
    )
    assert torch.equal(found[1:2], alone)
    assert not torch.equal(found, several(seed=1)[2])
    assert not torch.equal(found[0, 0], found[0, 1])
