"""The four games of Table 4 (WGAN, CGAN, ACGAN, infoGAN): their losses, and the networks that each of them needs.

All are trained in the same way: the discriminator takes one or several steps on real images and on generated images of
the same classes, then the generator takes one step. Losses are means over the given images, and are minimised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.config.checks import is_number
from isda_repro.errors import UserError
from isda_repro.gan.networks import Discriminator, Generator, Judgement

Losses = dict[str, Tensor]
"""Named scalar losses. Only ``loss`` is minimised; the rest are logged."""


@dataclass(frozen=True)
class Shape:
    """Size and classes of the images that a generator produces."""

    num_classes: int
    image_size: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Game(ABC):
    """Base class of a game: builds its networks and computes their losses.

    Args:
        noise_dim: dimensions of the standard normal noise; 100 in Appendix B.
        width: feature maps at 4 x 4 pixels, in both networks.
        dropout: dropout of the discriminator.

    Raises:
        UserError: an argument is out of range.
    """

    codes: ClassVar[int] = 0
    """Number of codes: further inputs of the generator, uniform in [-1, 1]."""

    noise_dim: int = 100
    width: int = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_counts("noise_dim", "width")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise UserError(f"gan.game.dropout={self.dropout} must be a number in [0, 1)")

    @property
    def one_for_each_class(self) -> bool:
        """True if every class trains its own generator and discriminator."""
        return False

    @property
    def tells_class(self) -> bool:
        """True if the class of the image is an input of the generator."""
        return True

    def _check_counts(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"gan.game.{name}={value} must be a whole number from {least} on")

    def _check_weight(self, name: str) -> None:
        if not is_number(value := getattr(self, name)) or value < 0:
            raise UserError(f"gan.game.{name}={value} must be a number from 0 on")

    def generator(self, shape: Shape) -> Generator:
        """Return a newly initialised generator."""
        told = shape.num_classes if self.tells_class else 0
        return Generator(self.noise_dim + told + self.codes, shape.image_size, shape.channels, self.width)

    @abstractmethod
    def discriminator(self, shape: Shape) -> Discriminator:
        """Return a newly initialised discriminator."""

    def inputs(self, noise: Tensor, targets: Tensor, codes: Tensor, num_classes: int) -> Tensor:
        """Return the generator's input, float [N, D]: noise, or noise, one-hot class and codes."""
        if not self.tells_class:
            return noise
        return torch.cat([noise, F.one_hot(targets, num_classes).to(noise.dtype), codes], dim=1)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noise [count, noise_dim] and codes [count, K], on the generator's device."""
        device = generator.device
        noise = torch.randn(count, self.noise_dim, generator=generator, device=device)
        codes = 2 * torch.rand(count, self.codes, generator=generator, device=device) - 1
        return noise, codes

    @abstractmethod
    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the discriminator's losses on equally many real and generated images.

        Args:
            real: judgement of the real images.
            fake: judgement of the generated images.
            targets: classes of both, int64 [N].
            codes: codes of the generated images, [N, K].
        """

    @abstractmethod
    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the generator's losses on images that were generated from ``targets`` and ``codes``."""

    def discriminator_steps(self, generator_steps: int) -> int:
        """Return how many steps the discriminator takes before the generator's next step.

        Args:
            generator_steps: steps that the generator has taken so far.
        """
        return 1

    def after_discriminator_step(self, discriminator: nn.Module) -> None:  # noqa: B027 - most games have nothing to do
        """Constrain the discriminator's weights after a step; does nothing by default."""


@dataclass(frozen=True, kw_only=True)
class Wgan(Game):
    """Wasserstein GAN (Arjovsky et al. 2017, Algorithm 1): critics with clipped weights, one for each class.

    Args:
        clip: largest absolute value of each of the critic's weights after a step; the algorithm's c.
        critic_steps: steps of the critic for each step of the generator; the algorithm's n_critic.
        settling_steps: steps of the critic before each of the generator's first ``settling_for`` steps and before every
            ``settling_every``-th, as in the authors' code: a critic far from its optimum gives useless gradients.
        settling_for: number of the generator's first steps with ``settling_steps``.
        settling_every: period, in steps of the generator, of ``settling_steps``.
        one_for_all: True: one generator and one critic for all classes together. Its images have no given class, so
            they serve Appendix C only.

    Raises:
        UserError: an argument is out of range.
    """

    clip: float = 0.01
    critic_steps: int = 5
    settling_steps: int = 100
    settling_for: int = 25
    settling_every: int = 500
    one_for_all: bool | None = None

    @property
    def one_for_each_class(self) -> bool:
        """True unless ``one_for_all`` is set; Appendix B: "a generator is trained for each class"."""
        return not self.one_for_all

    @property
    def tells_class(self) -> bool:
        """False: each generator knows its own class only."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.clip) or self.clip <= 0:
            raise UserError(f"gan.game.clip={self.clip} must be a number above 0")
        self._check_counts("critic_steps", "settling_steps", "settling_every")
        self._check_counts("settling_for", least=0)
        if self.one_for_all is not None and self.one_for_all is not True:
            raise UserError(f"gan.game.one_for_all={self.one_for_all} must be true or null")

    def discriminator(self, shape: Shape) -> Discriminator:
        """Return a newly initialised critic."""
        return Discriminator(shape.image_size, shape.channels, width=self.width, dropout=self.dropout)

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the critic's losses; ``-loss`` estimates the Wasserstein distance up to a factor."""
        real_score, fake_score = real.source.mean(), fake.source.mean()
        return {"loss": fake_score - real_score, "real_score": real_score, "fake_score": fake_score}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the negative mean of the critic's values."""
        return {"loss": -fake.source.mean()}

    def discriminator_steps(self, generator_steps: int) -> int:
        """Return ``critic_steps``, or ``settling_steps`` at the start and at each ``settling_every``-th step."""
        settles = generator_steps < self.settling_for or generator_steps % self.settling_every == 0
        return self.settling_steps if settles else self.critic_steps

    @torch.no_grad()
    def after_discriminator_step(self, discriminator: nn.Module) -> None:
        """Clip all weights of the critic, those of batch normalisation included, as the authors' code does."""
        for weight in discriminator.parameters():
            weight.clamp_(-self.clip, self.clip)


class _Binary(Game):
    """Base class of games with binary cross-entropy and the non-saturating generator loss (Goodfellow et al. 2014)."""

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return half the sum of both cross-entropies, and mean probabilities of being real as scores."""
        real_loss = F.binary_cross_entropy_with_logits(real.source, torch.ones_like(real.source))
        fake_loss = F.binary_cross_entropy_with_logits(fake.source, torch.zeros_like(fake.source))
        scores = {"real_score": real.source.sigmoid().mean(), "fake_score": fake.source.sigmoid().mean()}
        return {"loss": (real_loss + fake_loss) / 2, **scores}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the cross-entropy of generated images against the label "real"."""
        return {"loss": F.binary_cross_entropy_with_logits(fake.source, torch.ones_like(fake.source))}


@dataclass(frozen=True, kw_only=True)
class Cgan(_Binary):
    """Conditional GAN (Mirza and Osindero 2014): generator and discriminator both get the class."""

    def discriminator(self, shape: Shape) -> Discriminator:
        """Return a newly initialised discriminator that gets the class."""
        return Discriminator(
            shape.image_size, shape.channels, told_classes=shape.num_classes, width=self.width, dropout=self.dropout
        )


@dataclass(frozen=True, kw_only=True)
class Acgan(_Binary):
    """Auxiliary classifier GAN (Odena et al. 2017): the discriminator predicts the class instead of getting it.

    Args:
        class_weight: factor of the classes' cross-entropy on real and generated images, relative to the realism loss.

    Raises:
        UserError: an argument is out of range.
    """

    class_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_weight("class_weight")

    def discriminator(self, shape: Shape) -> Discriminator:
        """Return a newly initialised discriminator that predicts the class."""
        return Discriminator(
            shape.image_size, shape.channels, named_classes=shape.num_classes, width=self.width, dropout=self.dropout
        )

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the ACGAN paper's L_S and L_C, the latter on real and on generated images."""
        losses = super().discriminator_losses(real, fake, targets, codes)
        real_class, fake_class = (_cross_entropy(one, targets) for one in (real, fake))
        losses["loss"] = losses["loss"] + self.class_weight * (real_class + fake_class) / 2
        return {**losses, "real_class_loss": real_class, "fake_class_loss": fake_class}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return the realism loss plus the weighted cross-entropy of the requested classes."""
        losses = super().generator_losses(fake, targets, codes)
        return {"loss": losses["loss"] + self.class_weight * _cross_entropy(fake, targets)}


@dataclass(frozen=True, kw_only=True)
class InfoGan(Cgan):
    """infoGAN (Chen et al. 2016) as described in Appendix B: conditional on the class, with two recognisable codes.

    The codes are uniform in [-1, 1]. Q, which shares all but its last layer with the discriminator, is a Gaussian of
    fixed variance around its prediction, so the bound on the mutual information is a squared error.

    Args:
        code_weight: factor of the mean squared error of the codes. For two codes and variance 1 that error is their
            negative log-likelihood up to a constant, so this is the infoGAN paper's lambda for continuous codes.

    Raises:
        UserError: an argument is out of range.
    """

    codes: ClassVar[int] = 2

    code_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_weight("code_weight")

    def discriminator(self, shape: Shape) -> Discriminator:
        """Return a newly initialised discriminator that gets the class and predicts the codes."""
        return Discriminator(
            shape.image_size,
            shape.channels,
            told_classes=shape.num_classes,
            codes=self.codes,
            width=self.width,
            dropout=self.dropout,
        )

    def discriminator_losses(self, real: Judgement, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return CGAN's losses plus half the weighted error of the generated images' codes.

        All terms of the discriminator are halved.
        """
        losses, guess = super().discriminator_losses(real, fake, targets, codes), _code_loss(fake, codes)
        return {**losses, "loss": losses["loss"] + self.code_weight * guess / 2, "code_loss": guess}

    def generator_losses(self, fake: Judgement, targets: Tensor, codes: Tensor) -> Losses:
        """Return CGAN's loss plus the weighted error of the codes."""
        losses = super().generator_losses(fake, targets, codes)
        return {"loss": losses["loss"] + self.code_weight * _code_loss(fake, codes)}


def _cross_entropy(judged: Judgement, targets: Tensor) -> Tensor:
    if judged.classes is None:
        raise ValueError("this discriminator names no class")
    return F.cross_entropy(judged.classes, targets)


def _code_loss(judged: Judgement, codes: Tensor) -> Tensor:
    if judged.codes is None:
        raise ValueError("this discriminator guesses no codes")
    return F.mse_loss(judged.codes, codes)
