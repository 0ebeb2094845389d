"""Pad, crop and flip of batches against slicing one image at a time with the same draws; chains of steps."""

import numpy as np
import pytest
import torch

from isda_repro.data import AutoAugment, Chain, Cutout, NoAugmentation, PadCropFlip
from isda_repro.data.augmentation.augment import IMAGES_AT_ONCE, take_rows
from isda_repro.errors import UserError

FORMATS = [torch.contiguous_format, torch.channels_last]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n, height, width):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator(1))


def one_by_one(images, draws, padding, mode):
    """Return the images, padded by NumPy and cropped and flipped one at a time."""
    height, width = images.shape[2:]
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(images.numpy(), around, {"zeros": "constant", "reflect": "reflect"}[mode])
    done = []
    for n, image in enumerate(torch.from_numpy(padded)):
        top, left = int(draws["crop_top"][n]), int(draws["crop_left"][n])
        crop = image[:, top : top + height, left : left + width]
        done.append(crop.flip(2) if "flip" in draws and draws["flip"][n] else crop)
    return torch.stack(done)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("height", "width", "padding"), [(32, 32, 4), (8, 8, 1), (6, 9, 5), (8, 8, 0)])
@pytest.mark.parametrize("flip", [True, False])
def test_batch_is_cropped_as_image_by_image(memory_format, mode, height, width, padding, flip):
    """A part of the batch with its part of the draws is cropped alike, and so are more images than fit one piece."""
    count = 24 if height == 32 else 2 * IMAGES_AT_ONCE + 7
    images = random_images(count, height, width).contiguous(memory_format=memory_format)
    before = images.clone()
    augmentation = PadCropFlip(padding, mode, flip)
    draws = augmentation.draw(count, (height, width), generator())
    augmented = augmentation.apply(images, draws)
    assert augmented.dtype == torch.uint8
    assert augmented.is_contiguous(memory_format=memory_format)
    assert torch.equal(augmented, one_by_one(images, draws, padding, mode))
    assert torch.equal(images, before)
    part = augmentation.apply(images[7:19], {name: numbers[7:19] for name, numbers in draws.items()})
    assert torch.equal(part, augmented[7:19])


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_extreme_crops_with_and_without_flip(mode):
    corners = [(top, left, flip) for top in (0, 4, 8) for left in (8, 4, 0) for flip in (False, True)]
    tops, lefts, flips = zip(*corners, strict=True)
    draws = {"crop_top": torch.tensor(tops), "crop_left": torch.tensor(lefts), "flip": torch.tensor(flips)}
    image = random_images(1, 32, 32)
    images = image.expand(len(corners), -1, -1, -1)
    augmentation = PadCropFlip() if mode == "zeros" else PadCropFlip(padding_mode=mode)  # default padding: 4
    augmented = augmentation.apply(images, draws)
    assert torch.equal(augmented, one_by_one(images, draws, 4, mode))
    assert torch.equal(augmented[corners.index((4, 4, True))], image[0].flip(2))


def test_draws_are_uniform_and_independent():
    n = 81_000
    draws = PadCropFlip(padding=4).draw(n, (32, 32), generator(3))
    joint = torch.bincount((draws["crop_top"] * 9 + draws["crop_left"]) * 2 + draws["flip"].long(), minlength=162)
    chi_squared = ((joint - n / 162) ** 2 / (n / 162)).sum()
    assert len(joint) == 162
    assert 100 < chi_squared < 230  # mean 161, standard deviation 18


def test_take_rows_reaches_the_last_pixel():
    sources = torch.randint(0, 256, (2, 3, 2, 5, 7, 3), dtype=torch.uint8, generator=generator())
    source, top, left = torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3]), torch.tensor([4, 0, 4])
    expected = [sources[source[n], n, :, top[n] : top[n] + 2, left[n] : left[n] + 3] for n in range(3)]
    assert torch.equal(take_rows(sources, source, top, left, 2, 3), torch.stack(expected))


def test_no_augmentation_changes_nothing():
    images = random_images(4, 8, 8)
    assert NoAugmentation().draw(4, (8, 8), generator()) == {}
    assert torch.equal(NoAugmentation().apply(images, {}), images)


# -------------------------------------------------------------------------------------------------------------- chains


def test_chain_applies_its_steps_in_their_order_to_any_part_of_a_batch():
    crop, policy, cutout = PadCropFlip(), AutoAugment(), Cutout(16, "black")
    chain, images = Chain(crop=crop, policy=policy, cutout=cutout), random_images(120, 32, 32)
    draws = chain.draw(120, (32, 32), generator())
    whole = chain.apply(images, draws)
    assert torch.equal(whole, cutout.apply(policy.apply(crop.apply(images, draws), draws), draws))
    for part in (slice(0, 1), slice(17, 19), slice(40, 120)):
        alone = chain.apply(images[part], {name: numbers[part] for name, numbers in draws.items()})
        assert torch.equal(alone, whole[part])
    floats = torch.rand(120, 3, 32, 32)
    expected = Cutout(16).apply_normalised(floats.clone(), draws)
    assert torch.equal(Chain(crop=crop, cutout=Cutout(16)).apply_normalised(floats, draws), expected)


def test_draws_of_a_seed_are_those_that_results_were_made_with():
    """Other draws would change the results of the same settings, and later steps must not change earlier draws."""
    chain = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=Cutout(16))
    draws = chain.draw(6, (32, 24), generator(7))
    assert {name: numbers.long().tolist() for name, numbers in draws.items()} == {
        "crop_top": [0, 4, 7, 2, 4, 6],
        "crop_left": [8, 5, 4, 8, 7, 1],
        "flip": [0, 1, 0, 0, 0, 0],
        "autoaugment_first": [17, 16, 15, 0, 0, 5],
        "autoaugment_second": [0, 0, 14, 16, 16, 0],
        "cutout_row": [4, 14, 9, 23, 3, 3],
        "cutout_column": [0, 3, 8, 1, 16, 0],
    }
    without_flip = PadCropFlip(flip=False).draw(6, (32, 24), generator(7))
    assert set(without_flip) == {"crop_top", "crop_left"}
    without_cutout = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=False).draw(6, (32, 24), generator(7))
    for one in (without_flip, without_cutout):
        assert all(torch.equal(numbers, draws[name]) for name, numbers in one.items())


def test_chain_combines_what_its_steps_want_of_a_loader():
    one = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=None)
    other = Chain(crop=PadCropFlip(), cutout=Cutout(16))
    assert (one.wants_many, one.host_draws) == (True, AutoAugment.host_draws)
    assert (other.wants_many, other.host_draws) == (False, frozenset())


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("augmentation", "options", "token"),
    [
        (PadCropFlip, {"padding": -1}, "padding=-1"),
        (PadCropFlip, {"padding": 4.0}, "padding=4.0"),
        (PadCropFlip, {"padding": True}, "padding=True"),
        (PadCropFlip, {"padding_mode": "wrap"}, "wrap"),
        (PadCropFlip, {"flip": 1}, "flip"),
        (AutoAugment, {"policy": "svhn"}, "svhn"),
        (AutoAugment, {"interpolation": "bicubic"}, "bicubic"),
        (AutoAugment, {"fill": 256}, "fill"),
        (AutoAugment, {"fill": -1}, "fill"),
        (AutoAugment, {"fill": 0.5}, "fill"),
        (AutoAugment, {"one_way_rotation": 1}, "one_way_rotation"),
        (Cutout, {"length": -1}, "-1"),
        (Cutout, {"length": 1.5}, "1.5"),
        (Cutout, {"length": True}, "True"),
        (Cutout, {"length": 4, "fill": "grey"}, "grey"),
        (Chain, {"cutout": True}, "augmentation.cutout"),
    ],
)
def test_bad_settings_of_an_augmentation_are_named(augmentation, options, token):
    with pytest.raises(UserError) as caught:
        augmentation(**options)
    assert token in str(caught.value)


def test_images_that_an_augmentation_cannot_take_are_refused():
    with pytest.raises(UserError, match="padding=8"):
        PadCropFlip(padding=8, padding_mode="reflect").draw(1, (8, 12), generator())
    draws = AutoAugment().draw(2, (8, 8), generator())
    with pytest.raises(UserError, match="2 channels"):
        AutoAugment().apply(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), draws)
    with pytest.raises(ValueError, match="cutout_row"):
        Chain(one=Cutout(4), two=Cutout(8)).draw(2, (32, 32), generator())
