import pytest
import torch
from toys import FEATURES, LABELS, MEAN, NOISE, SHAPE, STD, generator, network, noise, pixels_at_random, reversal

from isda_repro.data import Normalise
from isda_repro.gan import Acgan, InfoGan
from isda_repro.inversion.features import FeatureMap, in_unit_range
from isda_repro.inversion.objectives import Reversal, normalised

ETA = 0.3


def reference(z, label, features, image):
    """Equations 15 and 16 of one image, written from the paper; (|f - a|^2, |G - x|^2)."""
    mean = sum(float(one) for one in z) / len(z)
    deviation = (sum((one - mean) ** 2 for one in z) / (len(z) - 1)) ** 0.5
    z_hat = (z - mean) / deviation
    made = generator().generators[label](z_hat[None])[0]
    mean_C11, std_C11 = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (MEAN, STD))
    of_made = network().eval()((((made + 1) / 2 - mean_C11) / std_C11)[None]).features[0]
    return ((of_made - features) ** 2).sum(), ((made - image) ** 2).sum()


def test_numbers_are_normalised_one_image_at_a_time():
    z = 7 + 3 * noise(4)
    found = normalised(z)
    torch.testing.assert_close(found.mean(1), torch.zeros(4).double())
    torch.testing.assert_close(found.std(1), torch.ones(4).double())
    torch.testing.assert_close(found, normalised(5 * z - 2), msg="neither shift nor scale matters")
    torch.testing.assert_close(found[:1], normalised(z[:1]))


def test_objectives_are_equations_15_and_16():
    case, z, images = reversal(), noise(4), in_unit_range(pixels_at_random(4)).double()
    features = torch.randn(4, FEATURES, dtype=torch.float64)
    first = case.first_objective(z, LABELS, features, images, ETA)
    second = case.second_objective(z, LABELS, features)
    for row, label in enumerate(LABELS.tolist()):
        of_features, of_pixels = reference(z[row], label, features[row], images[row])
        torch.testing.assert_close(first[row], of_features + ETA * of_pixels, rtol=1e-12, atol=0)
        torch.testing.assert_close(second[row], of_features, rtol=1e-12, atol=0)


def test_each_image_can_have_an_eta_of_its_own():
    case, z, images = reversal(), noise(4), in_unit_range(pixels_at_random(4)).double()
    features, etas = torch.zeros(4, FEATURES).double(), torch.tensor([0.0, 0.1, 1.0, 10.0]).double()
    together = case.first_objective(z, LABELS, features, images, etas)
    for row, eta in enumerate(etas.tolist()):
        alone = case.first_objective(z, LABELS, features, images, eta)[row]
        torch.testing.assert_close(together[row], alone)


def test_gradients_of_equations_15_and_16():
    case, images = reversal(), in_unit_range(pixels_at_random(2)).double()
    labels, features = LABELS[:2], torch.randn(2, FEATURES, dtype=torch.float64)
    z = noise(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: case.first_objective(z, labels, features, images, ETA), z)
    assert torch.autograd.gradcheck(lambda z: case.second_objective(z, labels, features), z)


def test_gradients_have_no_part_along_what_is_normalised_away():
    case, labels, features = reversal(), LABELS, torch.randn(4, FEATURES, dtype=torch.float64)
    z = noise(4).requires_grad_()
    (gradient,) = torch.autograd.grad(case.second_objective(z, labels, features).sum(), z)
    assert gradient.norm() > 1e-3
    for direction in (torch.ones(4, NOISE).double(), z.detach() - z.detach().mean(1, keepdim=True)):
        assert ((gradient * direction).sum(1).abs() < 1e-10 * gradient.norm()).all()


@pytest.mark.parametrize("game", [Acgan(width=8, noise_dim=NOISE), InfoGan(width=8, noise_dim=NOISE)])
def test_generators_that_are_told_the_class_are_told_it(game):
    case, z = reversal(game), noise(4)
    told = torch.cat([normalised(z), torch.eye(3).double()[LABELS], torch.zeros(4, game.codes).double()], 1)
    torch.testing.assert_close(case.images(z, LABELS), case.generator.generators[0](told))


def test_an_image_s_objective_does_not_depend_on_the_others():
    case, z, features = reversal(), noise(4), torch.randn(4, FEATURES, dtype=torch.float64)
    together = case.second_objective(z, LABELS, features)
    for row in range(4):
        alone = case.second_objective(z[row : row + 1], LABELS[row : row + 1], features[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=0)


def test_features_of_pixels_are_those_that_the_network_was_trained_on():
    """(pixel / 255 - mean) / std, as every loader gives them to it."""
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
