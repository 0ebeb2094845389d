"""Training steps of generator and discriminator, their optimizers, and the running means of an epoch.

With several processes each has a share of the batch, and random numbers are drawn for the whole batch. Gradients are
summed over the processes, weighted by the shares. Batch normalisation sees the share only, as with classifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isda_repro.gan.networks import Discriminator, Generator, Judgement
from isda_repro.gan.objectives import Game, Losses
from isda_repro.randomness import stream_seed
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes


@dataclass
class Pair:
    """A generator and its discriminator, with their optimizers and step counts.

    Args:
        generator, discriminator: the networks, on their device.
        generator_optimizer, discriminator_optimizer: the optimizer of each network.
        generator_steps: steps of the generator so far.
        since: steps of the discriminator since the generator's last step.
    """

    generator: Generator
    discriminator: Discriminator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    generator_steps: int = 0
    since: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizers and the step counts, without the weights."""
        return {
            "generator": self.generator_optimizer.state_dict(),
            "discriminator": self.discriminator_optimizer.state_dict(),
            "generator_steps": self.generator_steps,
            "since": self.since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that ``state_dict`` returned."""
        self.generator_optimizer.load_state_dict(state["generator"])
        self.discriminator_optimizer.load_state_dict(state["discriminator"])
        self.generator_steps, self.since = state["generator_steps"], state["since"]


class Totals:
    """Sums of named losses and scores over this process's images, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}  # each [2]: sum weighted by images, number of images

    @torch.no_grad()
    def add(self, who: str, losses: Mapping[str, Tensor], samples: int) -> None:
        """Add the losses of a step, each a mean over ``samples`` images, under the names ``who/name``."""
        for name, value in losses.items():
            if (key := f"{who}/{name}") not in self._sums:
                self._sums[key] = torch.zeros(2, dtype=torch.float64, device=self._device)
            self._sums[key][0] += value.double() * samples
            self._sums[key][1] += samples

    def is_bad(self, processes: Processes = SINGLE_PROCESS) -> bool:
        """Return True if a loss of any process was not finite. Waits for the device and for all processes."""
        finite = all(bool(sums.isfinite().all()) for sums in self._sums.values())
        return bool(processes.all_reduce_max(int(not finite)))

    def means(self, processes: Processes = SINGLE_PROCESS) -> dict[str, float]:
        """Return the means by name over these processes. Waits for the device and for all processes."""
        return {name: total / images for name, (total, images) in self.of_all(processes).items()}

    def of_all(self, processes: Processes) -> dict[str, Any]:
        """Return the sums and numbers of images by name, over these processes."""
        added: dict[str, list[float]] = {}
        for own in processes.all_gather({name: sums.tolist() for name, sums in self._sums.items()}):
            for name, (total, images) in own.items():
                before = added.get(name, [0.0, 0.0])
                added[name] = [before[0] + total, before[1] + images]
        return dict(sorted(added.items()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from sums that ``of_all`` returned."""
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=self._device) for name, sums in state.items()
        }


Part = tuple[int, int]
"""First of this process's images in the global batch, and the size of the global batch."""


@dataclass
class Steps:
    """Takes the training steps of a pair.

    Args:
        game: computes the losses.
        num_classes: number of classes of the data set.
        compute: device and precision.
        seed: seed of the run, from which every random stream derives its own.
        processes: the processes that train together.
    """

    game: Game
    num_classes: int
    compute: Compute
    seed: int
    processes: Processes

    def __post_init__(self) -> None:
        self._draws = torch.Generator(self.compute.device)

    def take(self, pair: Pair, images: Tensor, targets: Tensor, part: Part, step: int, totals: Totals) -> None:
        """Take a step of the discriminator, and one of the generator if it is due.

        Args:
            pair: the networks to train.
            images: this process's share of the real images.
            targets: the classes of the images.
            part: where the share begins in the global batch, and the size of that batch.
            step: number of the step in the run, which seeds the random draws.
            totals: takes the losses.
        """
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
        """Return the generator's input for these classes, and its codes.

        Numbers are drawn for the global batch, and this process takes its share.
        """
        self._draws.manual_seed(stream_seed(self.seed, stream, step))
        begin, total = part
        noise, codes = (drawn[begin : begin + len(targets)] for drawn in self.game.draw(total, self._draws))
        return self.game.inputs(noise, targets, codes, self.num_classes), codes

    def _generated(self, pair: Pair, inputs: Tensor) -> Tensor:
        with self.compute.autocast():
            images: Tensor = pair.generator(inputs)
        return images

    def _judged(self, pair: Pair, images: Tensor, targets: Tensor) -> Judgement:
        """Return the discriminator's judgement in fp32, whatever the precision of the networks."""
        with self.compute.autocast():
            said = pair.discriminator(images, targets)
        classes, codes = (None if one is None else one.float() for one in (said.classes, said.codes))
        return Judgement(said.source.float(), classes, codes)

    def _descend(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, losses: Callable[[], Losses], share: float
    ) -> None:
        """Take an optimizer step of one network, without gradients for the other network.

        ``share`` is this process's share of the global batch, which weights the loss.
        """
        weights = list(network.parameters())
        gradients = tuple(torch.zeros_like(weight) for weight in weights)
        if share:
            gradients = torch.autograd.grad(losses()["loss"] * share, weights)
        if self.processes.is_distributed:
            message = torch.cat([gradient.reshape(-1) for gradient in gradients])
            parts = self.processes.all_reduce_sum(message).split([weight.numel() for weight in weights])
            gradients = tuple(part.view_as(weight) for part, weight in zip(parts, weights, strict=True))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
