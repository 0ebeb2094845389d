"""Steps I and II of Appendix C: gradient descent on the inputs of a generator until its images have given features.

Shapes: N images, M augmentations of each, D noise inputs of the generator (the vector z), A features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isda_repro.errors import UserError
from isda_repro.gan.sampling import pixels
from isda_repro.inversion.directions import augmented
from isda_repro.inversion.objectives import Distances, Reversal, in_unit_range
from isda_repro.randomness import stream_seed

DROPS = 4  # parts of a descent; the learning rate falls to a tenth after each
LOOK_ITERATIONS = 100  # between two checks of the objective, which make the host wait for a GPU


@dataclass(frozen=True)
class Descent:
    """Settings of a gradient descent. The defaults are those of Appendix C, which has another rate for each step.

    Args:
        lr: initial learning rate, divided by 10 after each quarter of the iterations (every 2,500 of 10,000).
        iterations: number of iterations.
        momentum: momentum, without Nesterov's variant ("a standard gradient descent").
        weight_decay: L2 weight decay on z.

    Raises:
        UserError: iterations or lr is out of range.
    """

    lr: float
    iterations: int = 10_000
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < DROPS:
            raise UserError(f"iterations={self.iterations} must be a whole number from {DROPS} on")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"the rate of a descent must be a number above 0, and not {self.lr}")


STEP_ONE, STEP_TWO = Descent(lr=10.0), Descent(lr=1.0)

Advance = Callable[[int, Tensor], None]
"""Called at intervals with the number of iterations since the last call, and the current objective [N]."""


def descend(start: Tensor, objective: Callable[[Tensor], Tensor], settings: Descent, advance: Advance) -> Tensor:
    """Minimise N independent objectives at once by gradient descent, and return the final z [N, D].

    Args:
        start: initial z, [N, D].
        objective: z [N, D] -> the values to minimise, [N], each a function of its own row only.
        settings: settings of the descent.
        advance: called at intervals to show progress, see ``Advance``.

    Raises:
        UserError: an objective is NaN or infinite.
    """
    found = start.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([found], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    drop = torch.optim.lr_scheduler.StepLR(optimizer, -(-settings.iterations // DROPS), gamma=0.1)
    looked = 0
    for iteration in range(1, settings.iterations + 1):
        values = objective(found)
        (found.grad,) = torch.autograd.grad(values.sum(), found)
        optimizer.step()
        drop.step()
        if iteration % LOOK_ITERATIONS == 0 or iteration == settings.iterations:
            if not values.isfinite().all():
                raise UserError(f"an objective is no longer finite at iteration {iteration}: lower eta= or lambda=")
            advance(iteration - looked, values.detach())
            looked = iteration
    return found.detach()


@dataclass(frozen=True)
class Settings:
    """Settings of an inversion: those that Appendix C leaves open, and the two descents.

    Args:
        eta: weight of the pixel distance in equation 15.
        strength: lambda of equation 1.
        augmentations: augmented features of each image, M.
        seed: seed of the starting points of Step I and of the augmentations.
        first, second: descents of Steps I and II.
        at_once: number of images that are optimised together; it changes the result by rounding only.

    Raises:
        UserError: a value is out of range.
    """

    eta: float
    strength: float
    augmentations: int = 5
    seed: int = 0
    first: Descent = STEP_ONE
    second: Descent = STEP_TWO
    at_once: int = 64

    def __post_init__(self) -> None:
        for name, value in (("eta", self.eta), ("lambda", self.strength)):
            if not 0 <= value < float("inf"):
                raise UserError(f"{name}={value} must be a number from 0 on")
        for name, least in (("augmentations", 1), ("at_once", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be a whole number from {least} on")

    def iterations(self, images: int) -> int:
        """Return the number of iterations over all images and both steps, which a progress bar counts."""
        return images * (self.first.iterations + self.augmentations * self.second.iterations)


@dataclass(frozen=True)
class Inversion:
    """Result for N images with M augmented features each; all tensors are on the CPU.

    Attributes:
        reconstructions: images G(z^) that Step I found, uint8 [N, 3, H, W].
        augmentations: images G(z^) that Step II found, uint8 [N, M, 3, H, W].
        start, found: both distances before and after Step I, each [N].
        moved: ``|a~ - a|^2``, the squared distance that a feature was moved by, [N, M].
        before, after: equation 16 before and after Step II, [N, M].
    """

    reconstructions: Tensor
    augmentations: Tensor
    start: Distances
    found: Distances
    moved: Tensor
    before: Tensor
    after: Tensor


def start_of(numbers: Tensor, noise_dim: int, seed: int) -> Tensor:
    """Return the starting points of Step I, standard normal [N, D].

    The number of each image, int64 [N], selects its random stream.
    """
    draws = (torch.Generator().manual_seed(stream_seed(seed, "inversion_start", int(number))) for number in numbers)
    return torch.stack([torch.randn(noise_dim, generator=one) for one in draws])


def step_one(
    reversal: Reversal,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    eta: float | Tensor,
    descent: Descent,
    at_once: int,
    advance: Advance,
) -> Tensor:
    """Return z_i of equation 15, [N, D], on the device (Step I).

    Args:
        reversal: G and f.
        images: x_i, uint8 [N, 3, H, W].
        labels: int64 [N].
        start: initial z, [N, D].
        eta: weight of the pixel distance; one for all images, or [N].
        descent: settings of the descent.
        at_once: number of images that are optimised together.
        advance: called at intervals to show progress.

    Raises:
        UserError: an objective is NaN or infinite.
    """
    device = reversal.features.device
    etas = torch.as_tensor(eta).expand(len(images)).to(start.dtype).to(device)

    def found(z: Tensor, labels: Tensor, images: Tensor, etas: Tensor) -> Tensor:
        wanted, real = reversal.features.of_pixels(images), in_unit_range(images).to(device)
        return descend(z, lambda z: reversal.first_objective(z, labels, wanted, real, etas), descent, advance)

    return in_parts(at_once, found, start.to(device), labels, images, etas)


def step_two(
    reversal: Reversal,
    features: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    descent: Descent,
    at_once: int,
    advance: Advance,
) -> Tensor:
    """Return z'_i of equation 16, [N, D], on the device (Step II).

    Args:
        features: the augmented features to reach, [N, A].
        start: initial z, which Step I found, [N, D].
        reversal, labels, descent, at_once, advance: as in ``step_one``.

    Raises:
        UserError: an objective is NaN or infinite.
    """

    def found(z: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        return descend(z, lambda z: reversal.second_objective(z, labels, features), descent, advance)

    return in_parts(at_once, found, start, labels, features)


def invert(
    reversal: Reversal,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    covariance: Callable[[int], Tensor],
    settings: Settings,
    advance: Advance,
) -> Inversion:
    """Run Steps I and II on a batch of images.

    Args:
        reversal: G and f.
        images: x_i, uint8 [N, 3, H, W].
        labels: int64 [N].
        numbers: int64 [N], a number for each image, which selects its random streams. So an image's draws do not depend
            on the rest of the batch.
        covariance: class -> Sigma, [A, A].
        settings: settings of both steps.
        advance: called at intervals to show progress.

    Raises:
        UserError: an objective is NaN or infinite.
    """
    draws = settings.augmentations
    how: dict[str, Any] = {"at_once": settings.at_once, "advance": advance}
    start = start_of(numbers, reversal.generator.game.noise_dim, settings.seed).to(reversal.features.device)
    found = step_one(reversal, images, labels, start, eta=settings.eta, descent=settings.first, **how)
    features = reversal.features.of_pixels(images)
    moved = augmented(features, labels, covariance, settings.strength, draws=draws, seed=settings.seed, numbers=numbers)
    many, of_all = labels.repeat_interleave(draws), moved.flatten(0, 1)
    begin = found.repeat_interleave(draws, 0)
    ended = step_two(reversal, of_all, many, begin, descent=settings.second, **how)

    def left(z: Tensor) -> Tensor:
        return in_parts(settings.at_once, reversal.second_objective, z, many, of_all).cpu().view(-1, draws)

    with torch.no_grad():
        return Inversion(
            reconstructions=pixels_of(reversal, found, labels, settings.at_once),
            augmentations=pixels_of(reversal, ended, many, settings.at_once).unflatten(0, (-1, draws)),
            start=distances_of(reversal, start, labels, images, settings.at_once),
            found=distances_of(reversal, found, labels, images, settings.at_once),
            moved=(moved - features[:, None]).square().sum(2).cpu(),
            before=left(begin),
            after=left(ended),
        )


@torch.no_grad()
def pixels_of(reversal: Reversal, z: Tensor, labels: Tensor, at_once: int) -> Tensor:
    """Return G(z^) as uint8 [N, 3, H, W] on the CPU."""

    def made(z: Tensor, labels: Tensor) -> Tensor:
        return pixels(reversal.images(z, labels)).cpu()

    return in_parts(at_once, made, z, labels)


@torch.no_grad()
def distances_of(reversal: Reversal, z: Tensor, labels: Tensor, images: Tensor, at_once: int) -> Distances:
    """Return both distances of G(z^) from uint8 images, on the CPU."""

    def both(z: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        real = in_unit_range(images).to(z.device)
        return torch.stack(reversal.distances(z, labels, reversal.features.of_pixels(images), real), dim=1)

    of_features, of_pixels = in_parts(at_once, both, z, labels, images).cpu().unbind(1)
    return Distances(of_features, of_pixels)


def in_parts(at_once: int, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Apply ``function`` to ``at_once`` rows at a time, and return the concatenated results."""
    return torch.cat([function(*part) for part in zip(*(one.split(at_once) for one in rows), strict=True)])
