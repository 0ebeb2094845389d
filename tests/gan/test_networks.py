"""Generator and discriminator: sizes of their layers, the function they compute, initial weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isda_repro.errors import UserError
from isda_repro.gan import Acgan, Cgan, Discriminator, Generator, InfoGan, Shape, Wgan


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("kind", [Wgan, Cgan, Acgan, InfoGan])
def test_each_game_makes_and_judges_images_of_the_shape_asked_for(kind, size):
    game, shape = kind(width=32, dropout=0.25), Shape(num_classes=5, image_size=size, channels=3)
    noise, codes = game.draw(6, torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 5
    generator, discriminator = game.generator(shape), game.discriminator(shape)
    images = generator(game.inputs(noise, targets, codes, 5))
    assert images.shape == (6, 3, size, size)
    judged = discriminator(images, targets)
    assert judged.source.shape == (6,)
    assert (None if judged.classes is None else judged.classes.shape) == ((6, 5) if kind is Acgan else None)
    assert (None if judged.codes is None else judged.codes.shape) == ((6, 2) if kind is InfoGan else None)
    assert discriminator.source.in_features == generator.layers[0].out_channels * 16 == 32 * 16
    dropouts = [module.p for module in discriminator.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.25] * {8: 1, 16: 2, 64: 4}[size], "one after each of its convolutions"


@pytest.mark.parametrize("pixels", [2, 4, 12])
def test_images_that_no_doubling_gives_are_refused(pixels):
    with pytest.raises(UserError, match=f"images of {pixels} pixels"):
        Generator(100, pixels)


def test_layers_at_32_pixels_have_the_sizes_of_the_released_wasserstein_gan():
    """The reference is DCGAN_G and DCGAN_D of martinarjovsky/WassersteinGAN.

    Its arguments are isize 32, nz 100, nc 3, ngf = ndf = 64.
    """
    generator, critic = (network.state_dict() for network in (Generator(100, 32), Discriminator(32)))
    convolutions = [tuple(weight.shape) for weight in generator.values() if weight.dim() == 4]
    assert convolutions == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
    convolutions = [tuple(weight.shape) for weight in critic.values() if weight.dim() == 4]
    assert convolutions == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert critic["source.weight"].shape == (1, 256 * 4 * 4), "a convolution of 4 x 4 that leaves one pixel"


def parts(network, convolution):
    """Return the weights of a network's convolutions and its batch normalisations, in order."""
    modules = list(network.modules())
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    return [module.weight for module in modules if isinstance(module, convolution)], norms


def by_hand(x, norm):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (one[:, None, None] for one in (norm.weight, norm.bias))
    return scale * (x - mean) / (variance + 1e-5).sqrt() + shift


def test_both_networks_compute_the_layers_of_dcgan():
    """Radford et al. 2016: strided convolutions, no normalisation in the layer next to the images.

    Activations are ReLU and tanh in the generator, leaky ReLU with slope 0.2 in the discriminator.
    """
    torch.manual_seed(0)
    generator, discriminator = Generator(7, 32, width=16), Discriminator(32, told_classes=3, named_classes=3, codes=2)
    inputs, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([2, 0, 1, 1, 0])
    weights, norms = parts(generator.double(), nn.ConvTranspose2d)
    x = F.conv_transpose2d(inputs[:, :, None, None], weights[0])
    for norm, weight in zip(norms, weights[1:], strict=True):
        x = F.conv_transpose2d(by_hand(x, norm).clamp(min=0), weight, stride=2, padding=1)
    images = generator(inputs)
    torch.testing.assert_close(images, x.tanh())

    weights, norms = parts(discriminator.double(), nn.Conv2d)
    maps = torch.eye(3).double()[targets][:, :, None, None].expand(-1, -1, 32, 32)
    x = F.conv2d(torch.cat([images, maps], 1), weights[0], stride=2, padding=1)
    for norm, weight in zip(norms, weights[1:], strict=True):
        x = by_hand(F.conv2d(torch.where(x > 0, x, 0.2 * x), weight, stride=2, padding=1), norm)
    features = torch.where(x > 0, x, 0.2 * x).flatten(1)
    judged = discriminator(images, targets)
    torch.testing.assert_close(judged.source, features @ discriminator.source.weight[0])
    for found, layer in ((judged.classes, discriminator.classes), (judged.codes, discriminator.codes)):
        torch.testing.assert_close(found, features @ layer.weight.T + layer.bias)
    with pytest.raises(ValueError, match="class"):
        discriminator(images)


def test_weights_are_drawn_as_dcgan_draws_them():
    """Weights are normal with standard deviation 0.02; those of batch normalisation have mean 1."""
    torch.manual_seed(0)
    networks = [Generator(100, 32), Discriminator(32, named_classes=10)]
    for name, weight in (both for network in networks for both in network.state_dict().items()):
        if weight.dim() > 1:
            assert abs(weight.mean()) < 0.02 * 5 / weight.numel() ** 0.5, name
        if weight.numel() > 1000:
            assert float(weight.std()) == pytest.approx(0.02, rel=0.1), name
    for norm in (module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        assert float(norm.weight.detach().mean()) == pytest.approx(1, abs=0.02)
        assert float(norm.weight.detach().std()) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        *((lambda size=size: Generator(10, size), str(size)) for size in (4, 12, 28, 33)),
        (lambda: Discriminator(32, width=6), r"gan\.game\.width=6"),
        (lambda: Generator(10, 32, width=2), r"gan\.game\.width=2"),
    ],
)
def test_sizes_and_widths_that_no_halving_leads_to_are_named(make, named):
    with pytest.raises(UserError, match=named):
        make()
