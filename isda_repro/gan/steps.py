"""One step of the game: the discriminator's and, when it is due, the generator's.

With several processes each has its share of the batch, and draws for all of it; their gradients are added up, weighted
by the shares. Batch normalisation sees the share alone, as it does with classifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isda_repro.gan.networks import Judgement
from isda_repro.gan.objectives import Game, Losses
from isda_repro.gan.pair import Pair
from isda_repro.gan.totals import Totals
from isda_repro.randomness import stream_seed
from isda_repro.training.compute import Compute
from isda_repro.training.processes import Processes

Part = tuple[int, int]
"""Where a process's images begin in the batch of all, and how many that has."""


@dataclass
class Steps:
    """Takes them.

    Args:
        game: what is played.
        num_classes: of the data set.
        compute: device and precision.
        seed: of the run; each draw has its own stream.
        processes: that train together.
    """

    game: Game
    num_classes: int
    compute: Compute
    seed: int
    processes: Processes

    def __post_init__(self) -> None:
        self._draws = torch.Generator(self.compute.device)

    def take(self, pair: Pair, images: Tensor, targets: Tensor, part: Part, step: int, totals: Totals) -> None:
        """The ``step``-th of the run, with this process's share of real images and of their classes."""
        pair.generator.train()
        pair.discriminator.train()
        others = (self.processes.rank,) if self.processes.rank else ()
        torch.manual_seed(stream_seed(self.seed, "dropout", step, *others))
        self._of_discriminator(pair, images, targets, part, step, totals)
        pair.since += 1
        if pair.since >= self.game.discriminator_steps(pair.generator_steps):
            self._of_generator(pair, targets, part, step, totals)
            pair.generator_steps, pair.since = pair.generator_steps + 1, 0

    def _of_discriminator(
        self, pair: Pair, images: Tensor, targets: Tensor, part: Part, step: int, totals: Totals
    ) -> None:
        inputs, codes = self._drawn("for_discriminator", targets, part, step)

        def losses() -> Losses:
            with torch.no_grad():
                generated = self._generated(pair, inputs)
            real, fake = (self._judged(pair, one, targets) for one in (images, generated))
            found = self.game.discriminator_losses(real, fake, targets, codes)
            totals.add("discriminator", found, len(targets))
            return found

        self._descend(pair.discriminator, pair.discriminator_optimizer, losses, len(targets) / part[1])
        self.game.after_discriminator_step(pair.discriminator)

    def _of_generator(self, pair: Pair, targets: Tensor, part: Part, step: int, totals: Totals) -> None:
        inputs, codes = self._drawn("for_generator", targets, part, step)

        def losses() -> Losses:
            fake = self._judged(pair, self._generated(pair, inputs), targets)
            found = self.game.generator_losses(fake, targets, codes)
            totals.add("generator", found, len(targets))
            return found

        self._descend(pair.generator, pair.generator_optimizer, losses, len(targets) / part[1])

    def _drawn(self, stream: str, targets: Tensor, part: Part, step: int) -> tuple[Tensor, Tensor]:
        """What the generator is given for these classes, and its codes: this process's share of the draws for all."""
        self._draws.manual_seed(stream_seed(self.seed, stream, step))
        begin, total = part
        noise, codes = (drawn[begin : begin + len(targets)] for drawn in self.game.draw(total, self._draws))
        return self.game.inputs(noise, targets, codes, self.num_classes), codes

    def _generated(self, pair: Pair, inputs: Tensor) -> Tensor:
        with self.compute.autocast():
            images: Tensor = pair.generator(inputs)
        return images

    def _judged(self, pair: Pair, images: Tensor, targets: Tensor) -> Judgement:
        """In fp32, whatever the networks are run in: so the losses are."""
        with self.compute.autocast():
            said = pair.discriminator(images, targets)
        classes, codes = (None if one is None else one.float() for one in (said.classes, said.codes))
        return Judgement(said.source.float(), classes, codes)

    def _descend(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, losses: Callable[[], Losses], share: float
    ) -> None:
        """A step of one of the two; the other's weights take no gradient. ``share``: of the batch, that is here."""
        weights = list(network.parameters())
        gradients = tuple(torch.zeros_like(weight) for weight in weights)
        if share:
            gradients = torch.autograd.grad(losses()["loss"] * share, weights)
        if self.processes.are_several:
            message = torch.cat([gradient.reshape(-1) for gradient in gradients])
            parts = self.processes.add_up(message).split([weight.numel() for weight in weights])
            gradients = tuple(part.view_as(weight) for part, weight in zip(parts, weights, strict=True))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
