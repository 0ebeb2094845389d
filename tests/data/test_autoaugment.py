"""AutoAugment of grouped images against torchvision's class on single images; its draws against the policy."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, autoaugment, v2
from torchvision.transforms.v2 import functional

from isda_repro.data import AutoAugment
from isda_repro.data.augmentation.autoaugment import (
    IDENTITY,
    SIGNED,
    STAGES,
    Operation,
    function,
    magnitude,
    published_sub_policies,
)

NAMES = sorted(set(v2.AutoAugment._AUGMENTATION_SPACE))
HEIGHT, WIDTH = 32, 28
EXACT_ON_PIL = {"Invert", "Equalize", "Posterize", "Brightness", "TranslateX", "TranslateY"}
# Pixels that may take another neighbour because they lie exactly between two, which happens at two levels of a shear.
TIES_ON_PIL = {"ShearX": 100, "ShearY": 100, "Rotate": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n):
    """Return uint8 images: noisy and smooth ones, a dark one, and one of a single colour."""
    noise = torch.randint(0, 256, (n, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator())
    smooth = functional.gaussian_blur(noise, [9, 9], [3.0])
    images = torch.cat([noise[: n // 3], smooth[n // 3 :]])
    images[-1] = 77
    images[-2] = images[-2] // 4
    return images


def of_torchvision(image, operation, interpolation="nearest", fill=0):
    """Apply the operation with its level and sign by torchvision's class, to a tensor or a PIL image."""
    levels, signed = v2.AutoAugment._AUGMENTATION_SPACE[operation.name]
    height, width = functional.get_size(image)
    values = levels(10, height, width)
    value = 0.0 if values is None else float(values[operation.level])
    assert signed or not operation.negative
    return v2.AutoAugment()._apply_image_or_video_transform(
        image,
        operation.name,
        -value if operation.negative else value,
        interpolation=InterpolationMode(interpolation),
        fill={type(image): [float(fill)]},
    )


def every_operation(name):
    has_levels = v2.AutoAugment._AUGMENTATION_SPACE[name][0](10, HEIGHT, WIDTH) is not None
    levels = range(10) if has_levels else [None]
    return [Operation(name, level, sign) for level in levels for sign in ([False, True] if name in SIGNED else [False])]


def test_signed_operations_are_torchvisions():
    assert {name for name in NAMES if v2.AutoAugment._AUGMENTATION_SPACE[name][1]} == SIGNED


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_on_a_batch_is_torchvisions_on_each_image(name):
    images = pictures(6)
    geometric = name.startswith(("Shear", "Translate", "Rotate"))
    for interpolation, fill in [("nearest", 0), ("nearest", 128), ("bilinear", 128)][: 3 if geometric else 1]:
        for operation in every_operation(name):
            done = function(operation, HEIGHT, WIDTH, interpolation, fill)(images)
            for image, ours in zip(images, done, strict=True):
                theirs = of_torchvision(image[None], operation, interpolation, fill)[0]
                assert torch.equal(ours, theirs), (operation, interpolation, fill)


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_within_a_grey_level_of_the_one_on_pil_images(name):
    """Colour arithmetic rounds differently, by at most one grey level.

    Solarize may or may not invert the threshold itself, and of two neighbours at equal distance either may be chosen.
    """
    images = pictures(6)
    for operation in every_operation(name):
        done = function(operation, HEIGHT, WIDTH, "nearest", 0)(images)
        for image, ours in zip(images, done, strict=True):
            pil = functional.pil_to_tensor(of_torchvision(functional.to_pil_image(image), operation))
            if name == "Solarize":
                differing = image[(ours != pil)].unique()
                assert len(differing) <= 1, operation
                assert all(abs(int(level) - 255 * magnitude(operation, HEIGHT, WIDTH)) < 1 for level in differing)
            elif name in TIES_ON_PIL:
                assert int((ours != pil).any(0).sum()) <= TIES_ON_PIL[name], operation
            else:
                largest = int((ours.int() - pil.int()).abs().max())
                assert largest <= (0 if name in EXACT_ON_PIL else 1), operation


@pytest.mark.parametrize(
    ("options", "memory_format"),
    [
        ({}, torch.contiguous_format),
        ({"policy": "imagenet", "interpolation": "bilinear", "fill": 128}, torch.channels_last),
        ({"one_way_rotation": True, "fill": 200}, torch.channels_last),
    ],
)
def test_groups_are_the_same_as_one_image_after_another(options, memory_format):
    augmentation, n = AutoAugment(**options), 200
    images = pictures(n).contiguous(memory_format=memory_format)
    before = images.clone()
    draws = augmentation.draw(n, (HEIGHT, WIDTH), generator())
    together = augmentation.apply(images, draws)
    assert together.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    outside = {"interpolation": options.get("interpolation", "nearest"), "fill": options.get("fill", 0)}
    for i in range(n):
        image = images[i][None].contiguous()
        for stage in STAGES:
            operation = augmentation.operations[int(draws[stage][i])]
            image = image if operation == IDENTITY else of_torchvision(image, operation, **outside)
        assert torch.equal(together[i], image[0]), i


def test_grey_images_are_done_like_coloured_ones_of_three_equal_channels():
    augmentation = AutoAugment()
    draws = augmentation.draw(40, (HEIGHT, WIDTH), generator(2))
    grey = pictures(40)[:, :1]
    coloured = augmentation.apply(grey.expand(-1, 3, -1, -1), draws)
    found = augmentation.apply(grey, draws)
    assert found.shape == grey.shape
    assert int((found.int() - coloured.int()).abs().max()) <= 2  # each of the two operations rounds


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_operations_are_drawn_as_often_as_the_policy_says(policy):
    n = 400_000
    augmentation = AutoAugment(policy)
    draws = augmentation.draw(n, (32, 32), generator(5))
    expected = {}
    for sub_policy in autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy[policy.upper()]).policies:
        pair = []
        for name, probability, level in sub_policy:
            signs = [False, True] if name in SIGNED else [False]
            done = {Operation(name, level, sign): probability / len(signs) for sign in signs}
            pair.append({IDENTITY: 1 - probability, **done})
        for first, p in pair[0].items():
            for second, q in pair[1].items():
                expected[first, second] = expected.get((first, second), 0.0) + p * q / 25
    operations = augmentation.operations
    joint = torch.bincount(draws[STAGES[0]] * len(operations) + draws[STAGES[1]], minlength=len(operations) ** 2)
    shares = n * torch.tensor([[expected.get((a, b), 0.0) for b in operations] for a in operations]).flatten()
    possible = shares > 0
    assert int(joint[~possible].sum()) == 0
    chi_squared = float(((joint - shares)[possible] ** 2 / shares[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert freedom > 50
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_one_way_rotation_is_counter_clockwise_and_the_rest_stays():
    both, one_way = AutoAugment(), AutoAugment(one_way_rotation=True)
    assert any(operation.negative for operation in both.operations if operation.name == "Rotate")
    rotations = [operation for operation in one_way.operations if operation.name == "Rotate"]
    assert rotations
    assert not any(operation.negative for operation in rotations)
    draws = [augmentation.draw(500, (32, 32), generator()) for augmentation in (both, one_way)]
    for stage in STAGES:
        for ours, other in zip(draws[0][stage].tolist(), draws[1][stage].tolist(), strict=True):
            first, second = both.operations[ours], one_way.operations[other]
            assert second == (Operation("Rotate", first.level) if first.name == "Rotate" else first)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 16, 28] = 255  # right of the centre, so that a counter-clockwise rotation moves it up
    turned = function(Operation("Rotate", 9), 32, 32, "nearest", 0)(image)
    assert int(turned[0, 0].nonzero()[0, 0]) < 12


def test_official_policy_differs_in_one_probability_and_in_solarize():
    theirs, ours = published_sub_policies("cifar10", official=True), published_sub_policies("cifar10")
    differing = [number for number, (one, other) in enumerate(zip(theirs, ours, strict=True), start=1) if one != other]
    assert differing == [15, 17, 19, 21, 23]
    assert theirs[16] == (("Equalize", 0.2, None), ("Equalize", 0.8, None))
    assert published_sub_policies("imagenet", official=True) == published_sub_policies("imagenet")
    ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256).contiguous()
    solarized = function(Operation("SolarizeFrom256", 5), 1, 256, "nearest", 0)(ramp.clone())[0, 0, 0]
    assert int((solarized == ramp[0, 0, 0]).sum()) == 114  # 0 to 113: the threshold is 256 * 4 / 9 = 113.8
    augmentation = AutoAugment(official_policy=True)
    assert {"SolarizeFrom256"} == {one.name for one in augmentation.operations} - {*NAMES, "Identity"}
    draws = augmentation.draw(200, (32, 32), torch.Generator().manual_seed(0))
    images = torch.randint(256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert augmentation.apply(images, draws).shape == images.shape
