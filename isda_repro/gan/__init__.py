"""The generators of Table 4: training them on a data set, and sampling labelled images from them."""

from isda_repro.gan.networks import Discriminator, Generator, Judgement
from isda_repro.gan.objectives import Acgan, Cgan, Game, InfoGan, Shape, Wgan
from isda_repro.gan.sampling import ImageGenerator, load_generator, trained_generator

__all__ = [
    "Acgan",
    "Cgan",
    "Discriminator",
    "Game",
    "Generator",
    "ImageGenerator",
    "InfoGan",
    "Judgement",
    "Shape",
    "Wgan",
    "load_generator",
    "trained_generator",
]
