"""Generator and discriminator for small images (DCGAN, Radford et al. 2016).

The image size must be 4 times a power of two. For 32 x 32 pixels and ``width`` 256 the generator goes from noise to
256 x 4 x 4, 128 x 8 x 8, 64 x 16 x 16 and the image, and the discriminator back, as in Wasserstein GAN's released code
(Arjovsky et al. 2017). Shapes: N images, D inputs, C classes, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.errors import UserError

SMALLEST = 4  # height and width in pixels of the generator's first and the discriminator's last maps
SLOPE = 0.2  # of the discriminator's leaky ReLUs
INITIAL_DEVIATION = 0.02


class Judgement(NamedTuple):
    """Output of a discriminator."""

    source: Tensor  # [N], higher for more realistic images; a logit, or the value of Wasserstein's critic
    classes: Tensor | None  # logits [N, C]; None unless the discriminator predicts the class
    codes: Tensor | None  # [N, K]; None unless it predicts infoGAN's codes


class Generator(nn.Module):
    """Network from noise, and optionally class and codes, to images.

    Args:
        inputs: D, the number of inputs: noise, one-hot class and codes.
        image_size: height and width of the images in pixels.
        channels: channels of the images.
        width: feature maps at 4 x 4 pixels; each doubling of the size halves them.

    Raises:
        UserError: image_size or width has an impossible value.
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
        """Return images [N, channels, H, W] in [-1, 1] of inputs float [N, D]."""
        images: Tensor = self.layers(inputs[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Network from images to a realism score and, if asked for, predictions of their class and codes.

    Args:
        image_size: height and width of the images in pixels.
        channels: channels of the images.
        told_classes: number of classes of a conditional discriminator, which gets one constant map for each; 0: it is
            not given the class.
        named_classes: number of classes that it predicts; 0: none.
        codes: number of codes that it predicts, K; 0: none.
        width: feature maps at 4 x 4 pixels.
        dropout: probability of zeroing an activation after each leaky ReLU.

    Raises:
        UserError: image_size or width has an impossible value.
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
        """Judge a batch of images.

        Args:
            images: float [N, channels, H, W] in [-1, 1].
            targets: classes int64 [N], required by a conditional discriminator and ignored otherwise.

        Raises:
            ValueError: a conditional discriminator got no targets.
        """
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
    """Return how often 4 has to be doubled to give ``image_size``.

    Raises:
        UserError: no number of doublings gives it, or ``width`` cannot be halved that often.
    """
    doublings = (image_size // SMALLEST).bit_length() - 1
    if doublings < 1 or image_size != SMALLEST << doublings:
        raise UserError(f"images of {image_size} pixels: generators are for 8, 16, 32, 64 and so on")
    if width % (1 << (doublings - 1)) or width < 1 << (doublings - 1):
        raise UserError(f"gan.game.width={width} must be a multiple of {1 << (doublings - 1)} for {image_size} pixels")
    return doublings


def _normalised(maps: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]


def _draw(module: nn.Module) -> None:
    """Initialise a layer as DCGAN does."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, INITIAL_DEVIATION)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, INITIAL_DEVIATION)
