"""Augmentations one after another."""

from collections import Counter

import torch
from torch import Tensor

from isda_repro.data.augment import Augmentation, Draws
from isda_repro.errors import UserError


class Chain(Augmentation):
    """Several augmentations, applied in the order in which they are given by name.

    The numbers are drawn in that order too, so leaving the last ones out leaves the draws of the others as they were.

    Args:
        steps: name=augmentation; one that is None or false is left out.

    Raises:
        UserError: a step that is neither an augmentation nor left out.
        ValueError: two steps that draw numbers of the same name.
    """

    def __init__(self, **steps: Augmentation | bool | None) -> None:
        self.steps: list[Augmentation] = []
        for name, step in steps.items():
            if isinstance(step, Augmentation):
                self.steps.append(step)
            elif step is not None and step is not False:
                raise UserError(
                    f"augmentation.{name}={step} must be false, which leaves it out, or settings of its own."
                )
        self.wants_many = any(step.wants_many for step in self.steps)
        self.host_draws = frozenset().union(*(step.host_draws for step in self.steps))

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """The numbers of all steps."""
        drawn = [step.draw(num_samples, image_size, generator) for step in self.steps]
        repeated = [name for name, times in Counter(name for draws in drawn for name in draws).items() if times > 1]
        if repeated:
            raise ValueError(f"two augmentations of one chain draw {', '.join(repeated)}")
        return {name: numbers for draws in drawn for name, numbers in draws.items()}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each step's, in turn."""
        for step in self.steps:
            images = step.apply(images, draws)
        return images

    def apply_normalised(self, images: Tensor, draws: Draws) -> Tensor:
        """Each step's, in turn."""
        for step in self.steps:
            images = step.apply_normalised(images, draws)
        return images
