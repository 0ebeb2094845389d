"""Generator and discriminator for small images: DCGAN's (Radford et al. 2016), for any size of 4 times a power of two.

For 32 x 32 pixels and ``width`` 256: noise -> 256 x 4 x 4 -> 128 x 8 x 8 -> 64 x 16 x 16 -> image, and back, as in
Wasserstein GAN's released code (Arjovsky et al. 2017). Shapes: N images, D inputs, C classes, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.errors import UserError

SMALLEST = 4  # pixels: what noise is made into, and images are reduced to
SLOPE = 0.2  # of the discriminator's rectifiers, below zero
INITIAL_DEVIATION = 0.02


class Judgement(NamedTuple):
    """What a discriminator says of images."""

    source: Tensor  # [N]: the higher, the more real; a logit, or Wasserstein's critic
    classes: Tensor | None  # [N, C] logits, of a discriminator that names the class
    codes: Tensor | None  # [N, K]: of one that guesses infoGAN's codes


class Generator(nn.Module):
    """Numbers -> images.

    Args:
        inputs: D, noise and whatever it is told besides.
        image_size: in pixels, both ways.
        channels: of the images.
        width: feature maps where they are 4 x 4; half as many after each doubling of the size.
    """

    def __init__(self, inputs: int, image_size: int, channels: int = 3, width: int = 256) -> None:
        super().__init__()
        doublings = doublings_of(image_size, width)
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, width, SMALLEST, bias=False), *_normalised(width)]
        for _ in range(doublings - 1):
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), *_normalised(width // 2)]
            width //= 2
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh())
        self.apply(_draw)

    def forward(self, inputs: Tensor) -> Tensor:
        """float [N, D] -> [N, channels, H, W] in [-1, 1]."""
        images: Tensor = self.layers(inputs[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Images -> how real they look; and, if asked for, of which class they are and which codes made them.

    Args:
        image_size: in pixels, both ways.
        channels: of the images.
        told_classes: C of the classes it is told of, one constant map each; 0: it is told of none.
        named_classes: C of those that it names itself.
        codes: K of the numbers that it guesses.
        width: feature maps where they are 4 x 4.
        dropout: of feature maps' single values, after each rectifier.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 3,
        *,
        told_classes: int = 0,
        named_classes: int = 0,
        codes: int = 0,
        width: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.told_classes = told_classes
        doublings = doublings_of(image_size, width)
        maps = width >> (doublings - 1)
        layers = [nn.Conv2d(channels + told_classes, maps, 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE)]
        layers += [nn.Dropout(dropout)] if dropout else []
        for _ in range(doublings - 1):
            layers += [nn.Conv2d(maps, 2 * maps, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * maps), nn.LeakyReLU(SLOPE)]
            layers += [nn.Dropout(dropout)] if dropout else []
            maps *= 2
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = width * SMALLEST**2
        self.source = nn.Linear(features, 1, bias=False)
        self.classes = nn.Linear(features, named_classes) if named_classes else None
        self.codes = nn.Linear(features, codes) if codes else None
        self.apply(_draw)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Judgement:
        """float [N, channels, H, W] in [-1, 1], and int64 [N] for one that is told the class."""
        if self.told_classes:
            if targets is None:
                raise ValueError("this discriminator is told the class of each image")
            maps = F.one_hot(targets, self.told_classes).to(images.dtype)[:, :, None, None]
            images = torch.cat([images, maps.expand(-1, -1, *images.shape[2:])], dim=1)
        features = self.layers(images)
        return Judgement(
            source=self.source(features)[:, 0],
            classes=None if self.classes is None else self.classes(features),
            codes=None if self.codes is None else self.codes(features),
        )


def doublings_of(image_size: int, width: int) -> int:
    """How often 4 is doubled to give ``image_size``.

    Raises:
        UserError: it does not, or ``width`` cannot be halved as often.
    """
    doublings = (image_size // SMALLEST).bit_length() - 1
    if image_size != SMALLEST << doublings or doublings < 1:
        raise UserError(f"images of {image_size} pixels: generators are for 8, 16, 32, 64 and so on")
    if width % (1 << (doublings - 1)) or width < 1 << (doublings - 1):
        raise UserError(f"gan.game.width={width} must be a multiple of {1 << (doublings - 1)} for {image_size} pixels")
    return doublings


def _normalised(maps: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]


def _draw(module: nn.Module) -> None:
    """DCGAN's initialisation."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, INITIAL_DEVIATION)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, INITIAL_DEVIATION)
