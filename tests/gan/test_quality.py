import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from isda_repro.gan import Cgan, ImageGenerator, Shape
from isda_repro.gan.quality import Moments, frechet_distance, judged, moments_of, quality


def random_moments(seed, size=6):
    draws = torch.Generator().manual_seed(seed)
    return moments_of(torch.randn(50, size, generator=draws, dtype=torch.float64) * (1 + torch.arange(size)) + seed)


def test_frechet_distance_is_that_of_the_formula():
    a, b = random_moments(0), random_moments(1)
    root = sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = float((a.mean - b.mean).square().sum()) + np.trace(
        a.covariance.numpy() + b.covariance.numpy() - 2 * root
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_by_hand():
    """Independent numbers: the sum of the squared differences of means and of standard deviations."""
    a = Moments(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    b = Moments(torch.tensor([0.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 25.0]).double()))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_of_fewer_features_than_dimensions_it_is_a_number():
    few = moments_of(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    assert 0 <= frechet_distance(few, random_moments(2, 8)) < float("inf")


def test_accuracy_by_class():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2])]
    batches = iter([(torch.arange(5), torch.tensor([0, 0, 1, 0, 1]))])
    said = judged(lambda images: (logits[images].repeat(1, 2), logits[images]), batches, 3)
    assert said.accuracy == pytest.approx(60)
    assert said.accuracy_by_class == pytest.approx((200 / 3, 50, 0))


def test_images_that_are_real_are_at_no_distance_and_others_are():
    """A generator that is not trained, judged by brightness."""
    torch.manual_seed(0)
    game, shape = Cgan(width=16), Shape(2, 8, 3)
    generator = ImageGenerator(game, [game.generator(shape)], shape)
    dark = torch.randint(0, 100, (60, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(60) % 2

    def judge(images):
        features = images.float().mean((2, 3))
        return features, torch.stack([128 - features.mean(1), features.mean(1) - 128], dim=1)

    found = quality(generator, judge, (dark, labels), (dark, labels), count=40, seed=0)
    assert found.real_distance == pytest.approx(0, abs=1e-6)
    assert found.distance > 100
    assert found.real.accuracy_by_class == (100.0, 0.0), "all of them are dark"
