import pytest
import torch

from isda_repro.errors import UserError
from isda_repro.gan import Acgan, Cgan, Discriminator, Generator, InfoGan, Shape, Wgan


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("game", [Wgan(width=32), Cgan(width=32), Acgan(width=32), InfoGan(width=32)])
def test_images_come_out_and_are_judged(game, size):
    shape = Shape(num_classes=5, image_size=size, channels=3)
    noise, codes = game.draw(6, torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 5
    images = game.generator(shape)(game.inputs(noise, targets, codes, 5))
    assert images.shape == (6, 3, size, size)
    assert images.abs().max() <= 1
    judged = game.discriminator(shape)(images, targets)
    assert judged.source.shape == (6,)
    assert (None if judged.classes is None else judged.classes.shape) == ((6, 5) if isinstance(game, Acgan) else None)
    assert (None if judged.codes is None else judged.codes.shape) == ((6, 2) if isinstance(game, InfoGan) else None)


def test_sizes_at_32_pixels_are_those_of_the_released_wasserstein_gan():
    """martinarjovsky/WassersteinGAN, DCGAN_G and DCGAN_D with isize 32, nz 100, nc 3, ngf = ndf = 64."""
    generator, critic = (network.state_dict() for network in (Generator(100, 32), Discriminator(32)))
    convolutions = [tuple(weight.shape) for weight in generator.values() if weight.dim() == 4]
    assert convolutions == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
    convolutions = [tuple(weight.shape) for weight in critic.values() if weight.dim() == 4]
    assert convolutions == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert critic["source.weight"].shape == (1, 256 * 4 * 4), "a convolution of 4 x 4 that leaves one pixel"


def test_a_discriminator_that_is_told_the_class_heeds_it():
    torch.manual_seed(0)
    network = Discriminator(8, told_classes=3, width=16).eval()
    image = torch.rand(1, 3, 8, 8).repeat(2, 1, 1, 1)
    first, second = network(image, torch.tensor([0, 2])).source
    assert first != second
    with pytest.raises(ValueError, match="told the class"):
        network(image)


@pytest.mark.parametrize("size", [4, 12, 28, 33])
def test_sizes_that_no_doubling_leads_to(size):
    with pytest.raises(UserError, match=f"images of {size} pixels: generators are for 8, 16, 32"):
        Generator(10, size)


def test_widths_that_cannot_be_halved():
    with pytest.raises(UserError, match=r"gan\.game\.width=6 must be a multiple of 4 for 32 pixels"):
        Discriminator(32, width=6)
