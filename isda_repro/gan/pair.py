"""A generator and its discriminator, with their optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from isda_repro.gan.networks import Discriminator, Generator


@dataclass
class Pair:
    """A generator and its discriminator, and how far they are.

    Args:
        generator, discriminator: on their device.
        generator_optimizer, discriminator_optimizer: of each.
        generator_steps: taken so far.
        since: steps of the discriminator since the generator's last.
    """

    generator: Generator
    discriminator: Discriminator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    generator_steps: int = 0
    since: int = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it but the weights."""
        return {
            "generator": self.generator_optimizer.state_dict(),
            "discriminator": self.discriminator_optimizer.state_dict(),
            "generator_steps": self.generator_steps,
            "since": self.since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from that."""
        self.generator_optimizer.load_state_dict(state["generator"])
        self.discriminator_optimizer.load_state_dict(state["discriminator"])
        self.generator_steps, self.since = state["generator_steps"], state["since"]
