"""Table 4's generators: trained on the images of a data set, then a source of labelled images."""

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
