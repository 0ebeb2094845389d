"""AutoAugment (Cubuk et al., 2019) on many images at once: images that get the same operation are processed together.

The sub-policies and the operations are torchvision's. This module adds the draws, which are functions of (seed, epoch,
position), and the grouping. Sizes: N images; a *stage* is the first or the second operation of a sub-policy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from isda_repro.data.augmentation.augment import Augmentation, Draws
from isda_repro.errors import UserError

LEVELS = 10
STAGES = ("autoaugment_first", "autoaugment_second")
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
POLICIES = {"cifar10": "CIFAR10", "imagenet": "IMAGENET"}


@dataclass(frozen=True)
class Operation:
    """AutoAugment operation at one of its ten levels; ``level`` is None for operations without a magnitude."""

    name: str
    level: int | None = None
    negative: bool = False


IDENTITY = Operation("Identity")
Numbers = tuple[int, ...]  # per sign, the operation's index in `AutoAugment.operations`


@dataclass(frozen=True)
class AutoAugment(Augmentation):
    """AutoAugment policy: each image gets one of 25 sub-policies, drawn uniformly.

    A sub-policy is two operations, each applied with its own probability, at a fixed level and with a random sign.

    Args:
        policy: ``cifar10`` (which its authors also use for CIFAR-100) or ``imagenet``, as listed by torchvision.
        interpolation: mode for shear and rotation; ``nearest`` (torchvision's default) or ``bilinear``.
        fill: grey level of pixels that come from outside of the image; torchvision uses 0, the ISDA authors 128.
        one_way_rotation: always rotate counter-clockwise, as the ISDA authors' code does, instead of drawing the sign.
        official_policy: CIFAR-10's policy as in the ISDA authors' code: the second equalize of sub-policy 17 has
            probability 0.8 instead of 0.6, and thresholds of solarize fall from 256 instead of 255.

    Raises:
        UserError: an unknown policy or interpolation, or a fill outside [0, 255].
    """

    policy: Literal["cifar10", "imagenet"] = "cifar10"
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: int = 0
    one_way_rotation: bool = False
    official_policy: bool | None = None

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
        if self.official_policy not in (None, False, True):
            raise UserError(f"AutoAugment's official_policy={self.official_policy!r} must be true, false or null.")

    def draw(self, num_samples: int, image_size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draw for each stage the index in ``operations``, int64 [N]; 0, the identity, where it is not applied."""
        numbers, probabilities = self._places
        policy = torch.randint(len(numbers), (num_samples,), generator=generator)
        chance = torch.rand(len(STAGES), num_samples, generator=generator)
        sign = torch.randint(2, (len(STAGES), num_samples), generator=generator)
        return {
            stage: torch.where(chance[i] < probabilities[policy, i], numbers[policy, i, sign[i]], 0)
            for i, stage in enumerate(STAGES)
        }

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply the stages in turn, with one call for all images that get the same operation.

        Raises:
            UserError: the images have neither 1 nor 3 channels.
        """
        if images.shape[-3] not in (1, 3):
            raise UserError(f"AutoAugment needs grey or coloured images, but these have {images.shape[-3]} channels.")
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        # torchvision's operations are fast on contiguous planes.
        images = images.contiguous(memory_format=torch.contiguous_format)
        place = torch.arange(len(images))  # index of each image in the input
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
        """Apply operation 0 to the first ``counts[0]`` images, 1 to the next ``counts[1]``, and so on, in place."""
        height, width = images.shape[-2:]
        end = 0
        for operation, count in zip(self.operations, counts, strict=False):
            begin, end = end, end + count
            if count and operation != IDENTITY:
                group = images[begin:end]
                group.copy_(function(operation, height, width, self.interpolation, self.fill)(group))

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations of the policy, the identity first."""
        return self._table[0]

    @cached_property
    def _table(self) -> tuple[tuple[Operation, ...], list[list[tuple[float, Numbers]]]]:
        """All operations and, for each sub-policy and stage, the probability and the index for each sign."""
        operations = [IDENTITY]

        def number(operation: Operation) -> int:
            if operation not in operations:
                operations.append(operation)
            return operations.index(operation)

        sub_policies = []
        for sub_policy in published_sub_policies(self.policy, official=bool(self.official_policy)):
            stages = []
            for name, probability, level in sub_policy:
                both = name in SIGNED and not (name == "Rotate" and self.one_way_rotation)
                numbers = tuple(number(Operation(name, level, negative=both and minus)) for minus in (False, True))
                stages.append((probability, numbers))
            sub_policies.append(stages)
        return tuple(operations), sub_policies

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Operation indices, int64 [sub-policy, stage, sign], and probabilities, float32 [sub-policy, stage]."""
        sub_policies = self._table[1]
        numbers = torch.tensor([[numbers for _, numbers in stages] for stages in sub_policies])
        return numbers, torch.tensor([[probability for probability, _ in stages] for stages in sub_policies])


def published_sub_policies(policy: str, official: bool = False) -> list[tuple[tuple[str, float, int | None], ...]]:
    """Return the 25 sub-policies of torchvision, or of the ISDA authors' code for CIFAR-10.

    Each is two tuples (operation, probability, level).
    """
    from torchvision import transforms

    listed = list(transforms.AutoAugment(transforms.AutoAugmentPolicy[POLICIES[policy]]).policies)
    if official and policy == "cifar10":
        listed[16] = (("Equalize", 0.2, None), ("Equalize", 0.8, None))
        renamed = {"Solarize": "SolarizeFrom256"}
        listed = [tuple((renamed.get(name, name), *rest) for name, *rest in stages) for stages in listed]
    return listed


def magnitude(operation: Operation, height: int, width: int) -> float:
    """Return the magnitude of an operation on images of this size, in the unit that torchvision's function takes.

    It is 0 for operations without a level. The ten levels are the same fp32 numbers as torchvision's, because other
    roundings of them change some pixels.
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
        "SolarizeFrom256": (1.0, 0.0),
    }.get(operation.name, (0.0, 0.9))
    value = float(torch.linspace(lowest, highest, LEVELS)[operation.level])
    return -value if operation.negative else value


def function(
    operation: Operation, height: int, width: int, interpolation: str, fill: int
) -> Callable[[Tensor], Tensor]:
    """Return a function that applies an operation to uint8 [n, C, H, W]: torchvision's, with its arguments bound."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    value = magnitude(operation, height, width)
    outside: dict[str, Any] = {"interpolation": InterpolationMode(interpolation), "fill": [float(fill)]}

    def sheared(x: float, y: float) -> Any:
        """Shear about the top left corner by x (y) pixels per row (column); torchvision takes angles in degrees."""
        angles = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
        return partial(
            functional.affine, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0.0, 0.0], **outside
        )

    functions: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "Identity": lambda: lambda images: images,
        "ShearX": lambda: sheared(value, 0.0),
        "ShearY": lambda: sheared(0.0, value),
        # Translate by whole pixels to the right or down: pad on one side, crop (negative padding) on the other.
        "TranslateX": lambda: partial(functional.pad, padding=[int(value), 0, -int(value), 0], fill=outside["fill"]),
        "TranslateY": lambda: partial(functional.pad, padding=[0, int(value), 0, -int(value)], fill=outside["fill"]),
        "Rotate": lambda: partial(functional.rotate, angle=value, **outside),
        "Brightness": lambda: partial(functional.adjust_brightness, brightness_factor=1 + value),
        "Color": lambda: partial(functional.adjust_saturation, saturation_factor=1 + value),
        "Contrast": lambda: partial(functional.adjust_contrast, contrast_factor=1 + value),
        "Sharpness": lambda: partial(functional.adjust_sharpness, sharpness_factor=1 + value),
        "Posterize": lambda: partial(functional.posterize, bits=int(value)),
        "Solarize": lambda: partial(functional.solarize, threshold=255 * value),
        "SolarizeFrom256": lambda: partial(functional.solarize, threshold=256 * value),
        "AutoContrast": lambda: functional.autocontrast,
        "Equalize": lambda: functional.equalize,
        "Invert": lambda: functional.invert,
    }
    return functions[operation.name]()
