"""AutoAugment in groups, against torchvision's class on one image, and its draws against the policy."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, autoaugment, v2
from torchvision.transforms.v2 import functional

from isda_repro.data import AutoAugment, Chain, Cutout, PadCropFlip
from isda_repro.data.autoaugment import IDENTITY, SIGNED, STAGES, Operation, function, magnitude, published_sub_policies
from isda_repro.errors import UserError

NAMES = sorted(set(v2.AutoAugment._AUGMENTATION_SPACE))
EXACT_ON_PIL = {"Invert", "Equalize", "Posterize", "Brightness", "TranslateX", "TranslateY"}
# Pixels of 1,024 that take another neighbour, where one lies exactly between two: at two of the levels of a shear.
TIES_ON_PIL = {"ShearX": 100, "ShearY": 100, "Rotate": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=12, size=32, seed=0):
    """Smooth and noisy images, dark and light ones, one of a single colour."""
    noise = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator(seed))
    smooth = functional.gaussian_blur(noise, [9, 9], [3.0])
    images = torch.cat([noise[: n // 3], smooth[n // 3 :]])
    images[-1] = 77
    images[-2] = images[-2] // 4
    return images


def of_torchvision(image, operation, interpolation="nearest", fill=0):
    """The same operation, level and sign by torchvision's class: a tensor or a PIL image."""
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
    has_levels = v2.AutoAugment._AUGMENTATION_SPACE[name][0](10, 32, 32) is not None
    levels = range(10) if has_levels else [None]
    return [Operation(name, level, sign) for level in levels for sign in ([False, True] if name in SIGNED else [False])]


def test_signed_operations_are_torchvisions():
    assert {name for name in NAMES if v2.AutoAugment._AUGMENTATION_SPACE[name][1]} == SIGNED


@pytest.mark.parametrize(("interpolation", "fill"), [("nearest", 0), ("nearest", 128), ("bilinear", 128)])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_torchvisions_on_each_image(name, interpolation, fill):
    images = pictures()
    for operation in every_operation(name):
        done = function(operation, 32, 32, interpolation, fill)(images)
        for image, ours in zip(images, done, strict=True):
            theirs = of_torchvision(image[None], operation, interpolation, fill)[0]
            assert torch.equal(ours, theirs), operation


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_on_pil_images_within_a_grey_level(name):
    # What a DataLoader of PIL images would train on. Colour arithmetic rounds otherwise, by one level at most;
    # solarisation inverts the threshold itself or does not; the nearest of two neighbours at equal distance is either.
    images = pictures()
    for operation in every_operation(name):
        done = function(operation, 32, 32, "nearest", 0)(images)
        for image, ours in zip(images, done, strict=True):
            pil = functional.pil_to_tensor(of_torchvision(functional.to_pil_image(image), operation))
            if name == "Solarize":
                differing = image[(ours != pil)].unique()
                assert len(differing) <= 1, operation
                assert all(abs(int(level) - 255 * magnitude(operation, 32, 32)) < 1 for level in differing)
            elif name in TIES_ON_PIL:
                assert int((ours != pil).any(0).sum()) <= TIES_ON_PIL[name], operation
            else:
                largest = int((ours.int() - pil.int()).abs().max())
                assert largest <= (0 if name in EXACT_ON_PIL else 1), operation


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_groups_are_the_same_as_one_image_after_another(policy, memory_format):
    augmentation = AutoAugment(policy)
    images = pictures(400).contiguous(memory_format=memory_format)
    before = images.clone()
    draws = augmentation.draw(400, (32, 32), generator())
    together = augmentation.apply(images, draws)
    assert together.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    for i in range(400):
        image = images[i][None].contiguous()
        for stage in STAGES:
            operation = augmentation.operations[int(draws[stage][i])]
            image = image if operation == IDENTITY else of_torchvision(image, operation)
        assert torch.equal(together[i], image[0]), i


def test_any_part_of_the_window_is_the_same():
    chain = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=Cutout(16, "black"))
    images = pictures(300)
    draws = chain.draw(300, (32, 32), generator())
    whole = chain.apply(images, draws)
    for part in (slice(0, 1), slice(17, 19), slice(40, 300), slice(128, 256)):
        alone = chain.apply(images[part], {name: numbers[part] for name, numbers in draws.items()})
        assert torch.equal(alone, whole[part])


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_drawn_as_often_as_the_policy_says(policy):
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
    chi_squared, freedom = 0.0, -1
    for i, first in enumerate(operations):
        for j, second in enumerate(operations):
            found, share = int(joint[i * len(operations) + j]), n * expected.get((first, second), 0.0)
            assert (found == 0) if share == 0 else True, (first, second)
            if share:
                chi_squared += (found - share) ** 2 / share
                freedom += 1
    assert freedom > 50
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_one_way_rotation_is_counter_clockwise_and_the_rest_stays():
    both, one_way = AutoAugment(), AutoAugment(one_way_rotation=True)
    rotations = [operation for operation in one_way.operations if operation.name == "Rotate"]
    assert rotations
    assert not any(operation.negative for operation in rotations)
    assert any(operation.negative for operation in both.operations if operation.name == "Rotate")
    assert any(operation.negative for operation in one_way.operations if operation.name == "TranslateX")
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 16, 28] = 255  # right of the middle: counter-clockwise moves it up
    turned = function(Operation("Rotate", 9), 32, 32, "nearest", 0)(image)
    assert int(turned[0, 0].nonzero()[0, 0]) < 12


def test_fill_is_what_comes_from_outside():
    image = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    for fill in (0, 128):
        moved = function(Operation("TranslateX", 9), 32, 32, "nearest", fill)(image)
        assert moved[0, 0, 0].tolist() == [fill] * 14 + [200] * 18  # 150/331 of 32 is 14.5


def test_policies_are_lists_of_25():
    for policy in ("cifar10", "imagenet"):
        sub_policies = published_sub_policies(policy)
        assert len(sub_policies) == 25
        assert all(len(stages) == 2 for stages in sub_policies)


def test_steps_that_follow_leave_the_draws_before_them():
    short = Chain(crop=PadCropFlip()).draw(50, (32, 32), generator())
    long = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=Cutout(16)).draw(50, (32, 32), generator())
    without = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=False).draw(50, (32, 32), generator())
    assert all(torch.equal(short[name], long[name]) for name in short)
    assert all(torch.equal(without[name], long[name]) for name in without)
    assert set(long) - set(without) == {"cutout_row", "cutout_column"}


def test_a_step_twice_is_refused():
    with pytest.raises(ValueError, match="cutout_row"):
        Chain(one=Cutout(4), two=Cutout(8)).draw(2, (32, 32), generator())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "svhn"}, "policy"),
        ({"interpolation": "bicubic"}, "interpolation"),
        ({"fill": 256}, "fill"),
        ({"fill": 0.5}, "fill"),
        ({"one_way_rotation": 1}, "one_way_rotation"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        AutoAugment(**options)


def test_images_with_other_channels_are_refused():
    augmentation = AutoAugment()
    draws = augmentation.draw(2, (8, 8), generator())
    with pytest.raises(UserError, match="2 channels"):
        augmentation.apply(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), draws)
    with pytest.raises(UserError, match=r"augmentation\.cutout=True"):
        Chain(cutout=True)
