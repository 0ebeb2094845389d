"""What generator and discriminator play for: Table 4's four games, and the networks that each of them needs.

All are played in the same way: the discriminator takes one or several steps on real images and on generated ones of the
same classes, then the generator one. Losses are means over the images given, and are minimised.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.errors import UserError
from isda_repro.gan.networks import Discriminator, Generator, Judgement

Losses = dict[str, Tensor]
"""Scalars by name. ``loss`` is minimised; the others are looked at."""


@dataclass(frozen=True)
class Shape:
    """Of the images that are to be made."""

    num_classes: int
    image_size: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Game(ABC):
    """Which networks, which losses.

    Args:
        noise_dim: Appendix B: 100, standard normal.
        width: feature maps at 4 x 4 pixels, of both networks.
        dropout: of the discriminator.
    """

    codes: ClassVar[int] = 0
    """Further inputs of the generator, uniform in [-1, 1]."""

    noise_dim: int = 100
    width: int = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_counts("noise_dim", "width")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise UserError(f"gan.game.dropout={self.dropout} must be a number in [0, 1)")

    @property
    def one_for_each_class(self) -> bool:
        """Whether each class has a generator and a discriminator of its own."""
        return False

    @property
    def tells_class(self) -> bool:
        """Whether a generator is told of which class its image is to be."""
        return True

    def _check_counts(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"gan.game.{name}={value} must be a whole number from {least} on")

    def _check_weight(self, name: str) -> None:
        if not _is_number(value := getattr(self, name)) or value < 0:
            raise UserError(f"gan.game.{name}={value} must be a number from 0 on")

    def generator(self, shape: Shape) -> Generator:
        """With weights drawn anew."""
        told = shape.num_classes if self.tells_class else 0
        return Generator(self.noise_dim + told + self.codes, shape.image_size, shape.channels, self.width)

    @abstractmethod
    def discriminator(self, shape: Shape) -> Discriminator:
        """Likewise."""

    def inputs(self, noise: Tensor, targets: Tensor, codes: Tensor, num_classes: int) -> Tensor:
        """What a generator is given: float [N, D]."""
        if not self.tells_class:
            return noise
        return torch.cat([noise, F.one_hot(targets, num_classes).to(noise.dtype), codes], dim=1)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise [count, noise_dim] and codes [count, K], on the generator's device."""
        device = generator.device
        noise = torch.randn(count, self.noise_dim, generator=generator, device=device)
        codes = 2 * torch.rand(count, self.codes, generator=generator, device=device) - 1
        return noise, codes

    @abstractmethod
    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Of as many generated images as real ones, of the same classes, made from ``codes``."""

    @abstractmethod
    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Of generated images."""

    def discriminator_steps(self, generator_steps: int) -> int:
        """That the discriminator takes before the generator's next, which has taken so many."""
        return 1

    def after_discriminator_step(self, discriminator: nn.Module) -> None:  # noqa: B027 - most games have nothing to do
        """Whatever keeps it within bounds."""


@dataclass(frozen=True, kw_only=True)
class Wgan(Game):
    """Wasserstein GAN (Arjovsky et al. 2017, Algorithm 1): critics with clipped weights, one for each class.

    Args:
        clip: of each of the critic's weights, after each of its steps; the algorithm's c.
        critic_steps: for each of the generator's; its n_critic.
        settling_steps: the critic takes instead before each of the generator's first ``settling_for`` steps and before
            each ``settling_every``-th, as in the authors' code: a critic that is far from its optimum tells nothing.
        one_for_all: one generator and one critic for all classes together; its images are then of no class that could
            be asked for, and serve Appendix C alone.
    """

    clip: float = 0.01
    critic_steps: int = 5
    settling_steps: int = 100
    settling_for: int = 25
    settling_every: int = 500
    one_for_all: bool | None = None

    @property
    def one_for_each_class(self) -> bool:
        """Appendix B: "a generator is trained for each class"."""
        return not self.one_for_all

    @property
    def tells_class(self) -> bool:
        """Each knows its own class alone."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_number(self.clip) or self.clip <= 0:
            raise UserError(f"gan.game.clip={self.clip} must be a number above 0")
        self._check_counts("critic_steps", "settling_steps", "settling_every")
        self._check_counts("settling_for", least=0)
        if self.one_for_all not in (None, True, False):
            raise UserError(f"gan.game.one_for_all={self.one_for_all} must be true, false or null")

    def discriminator(self, shape: Shape) -> Discriminator:
        """The critic."""
        return Discriminator(shape.image_size, shape.channels, width=self.width, dropout=self.dropout)

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Its negative is the estimate of the distance, up to a factor."""
        real_score, fake_score = real.source.mean(), fake.source.mean()
        return {"loss": fake_score - real_score, "real_score": real_score, "fake_score": fake_score}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """The critic's value of them, negative."""
        return {"loss": -fake.source.mean()}

    def discriminator_steps(self, generator_steps: int) -> int:
        """n_critic, or more."""
        settles = generator_steps < self.settling_for or generator_steps % self.settling_every == 0
        return self.settling_steps if settles else self.critic_steps

    @torch.no_grad()
    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Clip all of its weights, as the authors' code does, those of batch normalisation among them."""
        for weight in discriminator.parameters():
            weight.clamp_(-self.clip, self.clip)


class _Binary(Game):
    """Goodfellow et al. 2014, with the loss for the generator that does not saturate."""

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Half the sum of both cross-entropies; the scores are the mean probabilities of being real."""
        real_loss = F.binary_cross_entropy_with_logits(real.source, torch.ones_like(real.source))
        fake_loss = F.binary_cross_entropy_with_logits(fake.source, torch.zeros_like(fake.source))
        scores = {"real_score": real.source.sigmoid().mean(), "fake_score": fake.source.sigmoid().mean()}
        return {"loss": (real_loss + fake_loss) / 2, **scores}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """To be taken for real."""
        return {"loss": F.binary_cross_entropy_with_logits(fake.source, torch.ones_like(fake.source))}


@dataclass(frozen=True, kw_only=True)
class Cgan(_Binary):
    """Conditional GAN (Mirza and Osindero 2014): both are told the class."""

    def discriminator(self, shape: Shape) -> Discriminator:
        """It is told, and says how real."""
        return Discriminator(
            shape.image_size, shape.channels, told_classes=shape.num_classes, width=self.width, dropout=self.dropout
        )


@dataclass(frozen=True, kw_only=True)
class Acgan(_Binary):
    """Auxiliary classifier GAN (Odena et al. 2017): the discriminator is not told the class, and names it.

    Args:
        class_weight: of the class's cross-entropy, on real and on generated images, beside the source's.
    """

    class_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_weight("class_weight")

    def discriminator(self, shape: Shape) -> Discriminator:
        """It says how real, and which class."""
        return Discriminator(
            shape.image_size, shape.channels, named_classes=shape.num_classes, width=self.width, dropout=self.dropout
        )

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """L_S and L_C of the paper; the latter on both kinds of images."""
        losses = super().discriminator_losses(real, fake, targets, codes)
        real_class, fake_class = (_cross_entropy(one, targets) for one in (real, fake))
        losses["loss"] = losses["loss"] + self.class_weight * (real_class + fake_class) / 2
        return {**losses, "real_class_loss": real_class, "fake_class_loss": fake_class}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """To be taken for real, and for the class that was asked for."""
        losses = super().generator_losses(fake, targets, codes)
        return {"loss": losses["loss"] + self.class_weight * _cross_entropy(fake, targets)}


@dataclass(frozen=True, kw_only=True)
class InfoGan(Cgan):
    """infoGAN (Chen et al. 2016) as Appendix B has it: the class as condition, and two codes that stay recognisable.

    The codes are uniform in [-1, 1]. Q, which shares all but its last layer with the discriminator, is a Gaussian of
    fixed variance around its guess, so that the bound on the mutual information is the squared error.

    Args:
        code_weight: of the mean of that error over the codes, which for two of them and a variance of 1 is their
            negative log-likelihood up to a constant; the paper's lambda for continuous codes.
    """

    codes: ClassVar[int] = 2

    code_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_weight("code_weight")

    def discriminator(self, shape: Shape) -> Discriminator:
        """It is told the class, says how real, and guesses the codes."""
        return Discriminator(
            shape.image_size,
            shape.channels,
            told_classes=shape.num_classes,
            codes=self.codes,
            width=self.width,
            dropout=self.dropout,
        )

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """That of CGAN, and the codes of the generated images; half of both, as all of the discriminator's."""
        losses, guess = super().discriminator_losses(real, fake, targets, codes), _code_loss(fake, codes)
        return {**losses, "loss": losses["loss"] + self.code_weight * guess / 2, "code_loss": guess}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Likewise."""
        losses = super().generator_losses(fake, targets, codes)
        return {"loss": losses["loss"] + self.code_weight * _code_loss(fake, codes)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cross_entropy(judged: Judgement, targets: Tensor) -> Tensor:
    if judged.classes is None:
        raise ValueError("this discriminator names no class")
    return F.cross_entropy(judged.classes, targets)


def _code_loss(judged: Judgement, codes: Tensor) -> Tensor:
    if judged.codes is None:
        raise ValueError("this discriminator guesses no codes")
    return F.mse_loss(judged.codes, codes)
