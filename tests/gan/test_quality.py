"""Quality of generated images: the Frechet distance, and the accuracy of a classifier on them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from toys import MEAN, STD, network, pixels_at_random

from isda_repro.data import Normalise
from isda_repro.gan.quality import Moments, frechet_distance, judge_by, judged, moments_of, quality


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
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_independent_numbers():
    """For diagonal covariances it is the sum of squared differences of means and of standard deviations."""
    a = Moments(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    b = Moments(torch.tensor([0.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 25.0]).double()))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a) >= 0


def test_moments_are_the_mean_and_the_covariance_of_a_sample():
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    found = moments_of(features)
    np.testing.assert_allclose(found.mean, features.double().numpy().mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features.double().numpy().T))
    assert moments_of(features[:, :1]).covariance.shape == (1, 1)
    assert 0 <= frechet_distance(found, random_moments(2, 8)) < float("inf"), "of fewer samples than dimensions"


def test_accuracy_is_a_share_of_the_images_and_of_each_class():
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2])]
    batches = iter([(torch.arange(3), torch.tensor([0, 0, 1])), (torch.arange(3, 5), torch.tensor([0, 1]))])
    said = judged(lambda images: (logits[images].repeat(1, 2), logits[images]), batches, 4)
    assert said.accuracy == pytest.approx(60)
    assert said.accuracy_by_class == (pytest.approx(200 / 3), 50, None, None)
    assert torch.equal(said.moments.mean, logits.repeat(1, 2).double().mean(0))


def test_classifier_judges_normalised_images_in_evaluation_mode():
    net, images = network().float().train(), pixels_at_random(4)
    normalise = Normalise(MEAN, STD, image_width=8, device=torch.device("cpu"))
    features, logits = judge_by(net, normalise)(images)
    expected = network().float().eval()(normalise(images))
    assert torch.equal(features, expected.features)
    assert torch.equal(logits, expected.logits)
    assert not logits.requires_grad


def test_quality_compares_generated_with_unknown_and_known_with_unknown_images():
    """Each image is two numbers, its label and noise, so that the distances are known."""

    def sample(labels, draws):
        noise.append(torch.randn(len(labels), generator=draws).double())
        return torch.stack([labels.double(), 3 * noise[-1]], dim=1)

    def judge(images):
        return images, torch.eye(3)[(images[:, 0].long() + (images[:, 1] > 100)) % 3]

    def real(count, spread, seed):
        labels = torch.arange(count) % 4 // 2  # equally many of two classes
        made = spread * torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()
        return torch.stack([labels.double(), made], dim=1), labels

    noise, generator = [], SimpleNamespace(num_classes=3, sample=sample)
    train, test = real(1600, 1, 1), real(600, 2, 2)
    test[0][:150, 1] += 1000  # the classifier errs on a quarter of them
    found = quality(generator, judge, train, test, count=1400, seed=0)
    assert len(torch.cat(noise).unique()) == 1400, "each has noise of its own"
    assert found.generated.accuracy == 100
    assert found.generated.moments.mean[0] == pytest.approx(0.5, abs=0.05), "labels are drawn from the training images'"
    assert found.generated.moments.covariance[1, 1] == pytest.approx(9, rel=0.15)
    assert found.real.accuracy == 75
    unknown = moments_of(test[0])
    assert found.distance == frechet_distance(found.generated.moments, unknown)
    assert found.real_distance == pytest.approx(frechet_distance(moments_of(train[0]), unknown))
    again, other = (quality(generator, judge, train, test, count=1400, seed=seed).distance for seed in (0, 1))
    assert again == found.distance != other
