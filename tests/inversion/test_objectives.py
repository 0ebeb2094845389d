"""Equations 15 and 16, their gradients, and the features of a fixed network."""

import pytest
import torch
from toys import FEATURES, LABELS, MEAN, NOISE, SHAPE, STD, generator, network, noise, pixels_at_random, reversal

from isda_repro.data import Normalise
from isda_repro.gan import Acgan, InfoGan
from isda_repro.inversion.objectives import FeatureMap, Reversal, in_unit_range, normalised

ETA = 0.3


def reference(z, label, features, image):
    """Return both terms of equation 15 for one image, |f - a|^2 and |G - x|^2, written from the paper."""
    mean = sum(float(one) for one in z) / len(z)
    deviation = (sum((one - mean) ** 2 for one in z) / (len(z) - 1)) ** 0.5
    z_hat = (z - mean) / deviation
    made = generator().generators[label](z_hat[None])[0]
    mean_C11, std_C11 = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (MEAN, STD))
    of_made = network().eval()((((made + 1) / 2 - mean_C11) / std_C11)[None]).features[0]
    return ((of_made - features) ** 2).sum(), ((made - image) ** 2).sum()


@pytest.mark.parametrize("etas", [ETA, torch.tensor([0.0, 0.1, 1.0, 10.0]).double()])
def test_objectives_are_equations_15_and_16(etas):
    """Each image has its own objective; eta may be one number or one for each image."""
    case, z, images = reversal(), 7 + 3 * noise(4), in_unit_range(pixels_at_random(4)).double()
    features = torch.randn(4, FEATURES, dtype=torch.float64)
    first = case.first_objective(z, LABELS, features, images, etas)
    second = case.second_objective(z, LABELS, features)
    for row, label in enumerate(LABELS.tolist()):
        of_features, of_pixels = reference(z[row], label, features[row], images[row])
        eta = etas if isinstance(etas, float) else etas[row]
        torch.testing.assert_close(first[row], of_features + eta * of_pixels, rtol=1e-12, atol=0)
        torch.testing.assert_close(second[row], of_features, rtol=1e-12, atol=0)


def test_gradients_are_those_of_equations_15_and_16():
    case, images = reversal(), in_unit_range(pixels_at_random(2)).double()
    labels, features = LABELS[:2], torch.randn(2, FEATURES, dtype=torch.float64)
    z = noise(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: case.first_objective(z, labels, features, images, ETA), z)
    assert torch.autograd.gradcheck(lambda z: case.second_objective(z, labels, features), z)


@pytest.mark.parametrize("game", [Acgan(width=8, noise_dim=NOISE), InfoGan(width=8, noise_dim=NOISE)])
def test_generator_is_told_the_class_and_codes_of_zero(game):
    case, z = reversal(game), noise(4)
    told = torch.cat([normalised(z), torch.eye(3).double()[LABELS], torch.zeros(4, game.codes).double()], 1)
    torch.testing.assert_close(case.images(z, LABELS), case.generator.generators[0](told))


def test_features_of_pixels_are_those_that_the_network_was_trained_on():
    """The loaders give (pixel / 255 - mean) / std to the network, and inversion must do the same."""
    images, net = pixels_at_random(4), network()
    found = FeatureMap(net, MEAN, STD).of_pixels(images)
    as_trained = Normalise(MEAN, STD, image_width=8, device=torch.device("cpu"))(images).double()
    torch.testing.assert_close(found, net(as_trained).features, rtol=1e-5, atol=1e-6)


def test_both_networks_stay_as_they_are():
    net = network().train()
    before = {name: one.clone() for name, one in net.state_dict().items()}
    case = Reversal(generator(), FeatureMap(net, MEAN, STD))
    z = noise(4).requires_grad_()
    case.second_objective(z, LABELS, torch.zeros(4, FEATURES).double()).sum().backward()
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert all(one.grad is None for one in net.parameters())
    assert SHAPE.num_classes == len(case.generator.generators)
    assert all(one.grad is None for network in case.generator.generators for one in network.parameters())
