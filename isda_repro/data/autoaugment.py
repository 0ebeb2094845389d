"""AutoAugment (Cubuk et al., 2019) for many images at once: those that get the same operation get it together.

The sub-policies and the operations are torchvision's; what is added here is the drawing, a function of the position in
the epoch alone, and the grouping. Sizes: N images; a *stage* is the first or the second operation of a sub-policy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from isda_repro.data.augment import Augmentation, Draws
from isda_repro.errors import UserError

LEVELS = 10
STAGES = ("autoaugment_first", "autoaugment_second")
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
POLICIES = {"cifar10": "CIFAR10", "imagenet": "IMAGENET"}


@dataclass(frozen=True)
class Operation:
    """One of the operations at one of its ten levels; ``level`` is None where there is nothing to measure."""

    name: str
    level: int | None = None
    negative: bool = False


IDENTITY = Operation("Identity")
Numbers = tuple[int, ...]  # per sign, the operation's place in the table


@dataclass(frozen=True)
class AutoAugment(Augmentation):
    """One of 25 sub-policies per image: two operations, each carried out with a probability, at a level, with a sign.

    Args:
        policy: ``cifar10`` (which its authors use for CIFAR-100 too) or ``imagenet``: the lists that torchvision has.
        interpolation: of shear, translation and rotation; ``nearest`` (torchvision's) or ``bilinear``.
        fill: grey level of what these bring in from outside of the image; torchvision's is 0, the ISDA authors' 128.
        one_way_rotation: always rotate counter-clockwise, as the ISDA authors' code does; else the sign is drawn.

    Raises:
        UserError: a policy, interpolation or fill that there is not.
    """

    policy: Literal["cifar10", "imagenet"] = "cifar10"
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: int = 0
    one_way_rotation: bool = False

    wants_many = True
    host_draws = frozenset(STAGES)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"AutoAugment's policy={self.policy!r} must be {' or '.join(POLICIES)}.")
        if self.interpolation not in ("nearest", "bilinear"):
            raise UserError(f"AutoAugment's interpolation={self.interpolation!r} must be 'nearest' or 'bilinear'.")
        if isinstance(self.fill, bool) or not isinstance(self.fill, int) or not 0 <= self.fill <= 255:
            raise UserError(f"AutoAugment's fill={self.fill!r} must be a grey level from 0 to 255.")
        if not isinstance(self.one_way_rotation, bool):
            raise UserError(f"AutoAugment's one_way_rotation={self.one_way_rotation!r} must be true or false.")

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Per stage the operation's place in ``operations``, int64 [N]; 0, the identity, where none is carried out."""
        numbers, probabilities = self._places
        policy = torch.randint(len(numbers), (num_samples,), generator=generator)
        chance = torch.rand(len(STAGES), num_samples, generator=generator)
        sign = torch.randint(2, (len(STAGES), num_samples), generator=generator)
        return {
            stage: torch.where(chance[i] < probabilities[policy, i], numbers[policy, i, sign[i]], 0)
            for i, stage in enumerate(STAGES)
        }

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Stage by stage, one call for all the images that get the same operation."""
        if images.shape[-3] not in (1, 3):
            raise UserError(f"AutoAugment needs grey or coloured images, but these have {images.shape[-3]} channels.")
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        # Planes one below the other are what torchvision's operations are fast on.
        images = images.contiguous(memory_format=torch.contiguous_format)
        place = torch.arange(len(images))  # of each image in the given order
        for stage in STAGES:
            operation = draws[stage][place]
            order = operation.argsort(stable=True)
            images, place = images.index_select(0, order.to(images.device)), place[order]
            self._carry_out(images, torch.bincount(operation).tolist())
        back = torch.empty_like(place)
        back[place] = torch.arange(len(place))
        images = images.index_select(0, back.to(images.device))
        return images if layout is None else images.contiguous(memory_format=layout)

    def _carry_out(self, images: Tensor, counts: list[int]) -> None:
        """In place: the first ``counts[0]`` images get operation 0, the next ``counts[1]`` operation 1, and so on."""
        height, width = images.shape[-2:]
        end = 0
        for operation, count in zip(self.operations, counts, strict=False):
            begin, end = end, end + count
            if count and operation != IDENTITY:
                group = images[begin:end]
                group.copy_(function(operation, height, width, self.interpolation, self.fill)(group))

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All that occur in the policy, the identity first."""
        return self._table[0]

    @cached_property
    def _table(self) -> tuple[tuple[Operation, ...], list[list[tuple[float, Numbers]]]]:
        """The operations, and for each sub-policy and stage the probability and, per sign, which of them."""
        operations = [IDENTITY]

        def number(operation: Operation) -> int:
            if operation not in operations:
                operations.append(operation)
            return operations.index(operation)

        sub_policies = []
        for sub_policy in published_sub_policies(self.policy):
            stages = []
            for name, probability, level in sub_policy:
                both = name in SIGNED and not (name == "Rotate" and self.one_way_rotation)
                numbers = tuple(number(Operation(name, level, negative=both and minus)) for minus in (False, True))
                stages.append((probability, numbers))
            sub_policies.append(stages)
        return tuple(operations), sub_policies

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """The places of operations, int64 [sub-policy, stage, sign], and the probabilities, [sub-policy, stage]."""
        sub_policies = self._table[1]
        numbers = torch.tensor([[numbers for _, numbers in stages] for stages in sub_policies])
        return numbers, torch.tensor([[probability for probability, _ in stages] for stages in sub_policies])


def published_sub_policies(policy: str) -> list[tuple[tuple[str, float, int | None], ...]]:
    """torchvision's list of 25: two of (operation, probability, level)."""
    from torchvision import transforms

    return list(transforms.AutoAugment(transforms.AutoAugmentPolicy[POLICIES[policy]]).policies)


def magnitude(operation: Operation, height: int, width: int) -> float:
    """What its level means for images of this size, in the unit of torchvision's function; 0 where there is none.

    The ten levels are the same fp32 numbers as torchvision's, because some pixels are rounded otherwise with others.
    """
    if operation.level is None:
        return 0.0
    if operation.name == "Posterize":
        return round(8 - 4 * operation.level / (LEVELS - 1))
    lowest, highest = {
        "ShearX": (0.0, 0.3),
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150 / 331 * width),
        "TranslateY": (0.0, 150 / 331 * height),
        "Rotate": (0.0, 30.0),
        "Solarize": (1.0, 0.0),
    }.get(operation.name, (0.0, 0.9))
    value = float(torch.linspace(lowest, highest, LEVELS)[operation.level])
    return -value if operation.negative else value


def function(
    operation: Operation, height: int, width: int, interpolation: str, fill: int
) -> Callable[[Tensor], Tensor]:
    """uint8 [n, C, H, W] -> the same with the operation carried out: torchvision's function, with its arguments."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    value = magnitude(operation, height, width)
    outside: dict[str, Any] = {"interpolation": InterpolationMode(interpolation), "fill": [float(fill)]}

    def sheared(x: float, y: float) -> Any:
        """About the corner by so many pixels a row or column, which torchvision wants as angles."""
        angles = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
        return partial(
            functional.affine, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0.0, 0.0], **outside
        )

    functions: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "Identity": lambda: lambda images: images,
        "ShearX": lambda: sheared(value, 0.0),
        "ShearY": lambda: sheared(0.0, value),
        # Whole pixels to the right or down: what comes in at one side, and goes out at the other.
        "TranslateX": lambda: partial(functional.pad, padding=[int(value), 0, -int(value), 0], fill=outside["fill"]),
        "TranslateY": lambda: partial(functional.pad, padding=[0, int(value), 0, -int(value)], fill=outside["fill"]),
        "Rotate": lambda: partial(functional.rotate, angle=value, **outside),
        "Brightness": lambda: partial(functional.adjust_brightness, brightness_factor=1 + value),
        "Color": lambda: partial(functional.adjust_saturation, saturation_factor=1 + value),
        "Contrast": lambda: partial(functional.adjust_contrast, contrast_factor=1 + value),
        "Sharpness": lambda: partial(functional.adjust_sharpness, sharpness_factor=1 + value),
        "Posterize": lambda: partial(functional.posterize, bits=int(value)),
        "Solarize": lambda: partial(functional.solarize, threshold=255 * value),
        "AutoContrast": lambda: functional.autocontrast,
        "Equalize": lambda: functional.equalize,
        "Invert": lambda: functional.invert,
    }
    return functions[operation.name]()
