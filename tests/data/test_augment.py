"""Pad, crop and flip in batches, against plain slicing of one image at a time with the same draws."""

import pytest
import torch

from isda_repro.data import NoAugmentation, PadCropFlip
from isda_repro.data.augment import take_rows
from isda_repro.errors import UserError

FORMATS = [torch.contiguous_format, torch.channels_last]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n, height, width):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator(1))


def padded_by_hand(image, padding, mode):
    channels, height, width = image.shape
    out = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
    for i in range(-padding, height + padding):
        for j in range(-padding, width + padding):
            y, x = i, j
            if mode == "reflect":  # 0 1 2 3 -> 2 1 | 0 1 2 3 | 2 1
                y = -y if y < 0 else 2 * (height - 1) - y if y >= height else y
                x = -x if x < 0 else 2 * (width - 1) - x if x >= width else x
            if 0 <= y < height and 0 <= x < width:
                out[:, i + padding, j + padding] = image[:, y, x]
    return out


def one_by_one(images, draws, padding, mode):
    height, width = images.shape[2:]
    done = []
    for n, image in enumerate(images):
        top, left = int(draws["crop_top"][n]), int(draws["crop_left"][n])
        crop = padded_by_hand(image, padding, mode)[:, top : top + height, left : left + width]
        done.append(crop.flip(2) if "flip" in draws and draws["flip"][n] else crop)
    return torch.stack(done)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("height", "width", "padding"), [(32, 32, 4), (8, 8, 1), (6, 9, 5), (8, 8, 0)])
@pytest.mark.parametrize("flip", [True, False])
def test_batched_equals_one_by_one(memory_format, mode, height, width, padding, flip):
    images = random_images(24, height, width).contiguous(memory_format=memory_format)
    before = images.clone()
    augmentation = PadCropFlip(padding, mode, flip)
    draws = augmentation.draw(24, (height, width), generator())
    augmented = augmentation.apply(images, draws)
    assert augmented.dtype == torch.uint8
    assert augmented.is_contiguous(memory_format=memory_format)
    assert torch.equal(augmented, one_by_one(images, draws, padding, mode))
    assert torch.equal(images, before)


def test_every_corner_of_the_crop_and_both_flips():
    corners = [(top, left, flip) for top in (0, 4, 8) for left in (0, 4, 8) for flip in (False, True)]
    tops, lefts, flips = zip(*corners, strict=True)
    draws = {"crop_top": torch.tensor(tops), "crop_left": torch.tensor(lefts), "flip": torch.tensor(flips)}
    image = random_images(1, 32, 32)
    images = image.expand(len(corners), -1, -1, -1)
    for mode in ("zeros", "reflect"):
        augmented = PadCropFlip(4, mode).apply(images, draws)
        assert torch.equal(augmented, one_by_one(images, draws, 4, mode))
    assert torch.equal(augmented[corners.index((4, 4, False))], image[0])
    assert torch.equal(augmented[corners.index((4, 4, True))], image[0].flip(2))


def test_a_slice_of_the_draws_makes_the_slice_of_the_images():
    images, augmentation = random_images(40, 32, 32), PadCropFlip()
    draws = augmentation.draw(40, (32, 32), generator())
    whole = augmentation.apply(images, draws)
    part = augmentation.apply(images[7:19], {name: numbers[7:19] for name, numbers in draws.items()})
    assert torch.equal(part, whole[7:19])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_many_images_at_once_are_the_same(memory_format):
    images = random_images(700, 8, 8).contiguous(memory_format=memory_format)
    augmentation = PadCropFlip(2)
    draws = augmentation.draw(700, (8, 8), generator())
    augmented = augmentation.apply(images, draws)
    assert augmented.is_contiguous(memory_format=memory_format)
    assert torch.equal(augmented, one_by_one(images, draws, 2, "zeros"))


def test_draws_are_uniform_and_independent():
    n = 81_000
    draws = PadCropFlip(padding=4).draw(n, (32, 32), generator(3))
    joint = torch.bincount((draws["crop_top"] * 9 + draws["crop_left"]) * 2 + draws["flip"].long(), minlength=162)
    chi_squared = ((joint - n / 162) ** 2 / (n / 162)).sum()
    assert len(joint) == 162
    assert 100 < chi_squared < 230  # 161 degrees of freedom: 161 +- 18, four standard deviations


def test_without_flip_the_crops_are_the_same():
    with_flip, without = (PadCropFlip(flip=flip).draw(50, (32, 32), generator()) for flip in (True, False))
    assert set(without) == {"crop_top", "crop_left"}
    assert all(torch.equal(with_flip[name], without[name]) for name in without)


def test_no_augmentation_changes_nothing():
    images = random_images(4, 8, 8)
    assert NoAugmentation().draw(4, (8, 8), generator()) == {}
    assert torch.equal(NoAugmentation().apply(images, {}), images)


def test_take_rows_to_the_last_pixel():
    sources = torch.randint(0, 256, (2, 3, 2, 5, 7, 3), dtype=torch.uint8, generator=generator())
    source, top, left = torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3]), torch.tensor([4, 0, 4])
    expected = [sources[source[n], n, :, top[n] : top[n] + 2, left[n] : left[n] + 3] for n in range(3)]
    assert torch.equal(take_rows(sources, source, top, left, 2, 3), torch.stack(expected))


def test_bad_arguments_are_one_sentence():
    with pytest.raises(UserError, match=r"^padding=-1 must be zero or more pixels\.$"):
        PadCropFlip(padding=-1)
    with pytest.raises(UserError, match=r"^padding_mode='wrap' must be 'zeros' or 'reflect'\.$"):
        PadCropFlip(padding_mode="wrap")
    with pytest.raises(UserError, match=r"^padding=8 with 'reflect' must be smaller than the image, \(8, 8\)\.$"):
        PadCropFlip(padding=8, padding_mode="reflect").draw(1, (8, 8), generator())
