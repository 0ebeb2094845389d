"""Small networks in float64 that an inversion can be followed through, and real images of digits."""

import torch
from torch import nn

from isda_repro.gan import ImageGenerator, Shape, Wgan
from isda_repro.inversion import FeatureMap, Reversal
from isda_repro.models import Network

SHAPE = Shape(num_classes=3, image_size=8, channels=3)
FEATURES, NOISE = 5, 12
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
LABELS = torch.tensor([2, 0, 1, 0])


class SmoothNetwork(Network):
    """A network that is differentiable everywhere, so that gradients can be checked by finite differences."""

    def __init__(self):
        super().__init__(FEATURES, SHAPE.num_classes)
        self.first = nn.Conv2d(3, FEATURES, 3)
        self.normalise = nn.BatchNorm2d(FEATURES)

    def forward_features(self, images):
        return self.pool(self.normalise(torch.tanh(self.first(images))))


def network(seed=0):
    torch.manual_seed(seed)
    made = SmoothNetwork().double()
    made.normalise.running_mean.uniform_(-1, 1)
    made.normalise.running_var.uniform_(0.5, 2)
    return made


def generator(game=None, seed=0, **more):
    torch.manual_seed(seed)
    game = game or Wgan(width=8, noise_dim=NOISE)
    networks = [game.generator(SHAPE).double() for _ in range(SHAPE.num_classes if game.one_for_each_class else 1)]
    for one in networks:
        one.requires_grad_(False)
        for module in one.modules():  # DCGAN's small initial weights would give images without contrast
            if isinstance(module, nn.ConvTranspose2d):
                module.weight.normal_(0, 0.3)
    return ImageGenerator(game, networks, SHAPE, **more)


def reversal(game=None):
    return Reversal(generator(game), FeatureMap(network(), MEAN, STD))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels_at_random(count, seed=0):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=draws(seed))


def noise(count, seed=0):
    return torch.randn(count, NOISE, generator=draws(seed), dtype=torch.float64)


def mosaic(picture, size, columns):
    """Return the images of a picture on white, [rows, columns, 3, size, size], for any gaps and enlargement."""
    inked = (picture != 255).any(0)
    tight = picture[:, inked.any(1)][:, :, inked.any(0)]
    factor = tight.shape[2] // (columns * size)
    small = tight[:, ::factor, ::factor]
    assert torch.equal(small.repeat_interleave(factor, 1).repeat_interleave(factor, 2), tight)
    return small.unflatten(2, (columns, size)).unflatten(1, (-1, size)).permute(1, 3, 0, 2, 4)
