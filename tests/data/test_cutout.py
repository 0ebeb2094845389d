"""Cutout's square: where it is, how large, and what fills it."""

import pytest
import torch

from isda_repro.data import Cutout, Normalise, ResidentLoader, Split
from isda_repro.errors import UserError

H, W = 32, 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def published(image, y, x, length):
    """The published code's, for an even length: clipped at each side."""
    out = image.clone()
    y1, y2 = max(0, y - length // 2), min(image.shape[1], y + length // 2)
    x1, x2 = max(0, x - length // 2), min(image.shape[2], x + length // 2)
    out[:, y1:y2, x1:x2] = 0
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("length", [2, 8, 16, 70])
def test_square_is_the_published_codes(length, memory_format):
    images = torch.rand(40, 3, H, W, generator=generator(1)).contiguous(memory_format=memory_format) + 1
    before = images.clone()
    cutout = Cutout(length)
    draws = cutout.draw(40, (H, W), generator())
    centres = zip(draws["cutout_row"].tolist(), draws["cutout_column"].tolist(), strict=True)
    expected = torch.stack([published(image, y, x, length) for image, (y, x) in zip(images, centres, strict=True)])
    assert torch.equal(cutout.apply_normalised(images, draws), expected)
    assert torch.equal(cutout.apply(before, draws), before)  # nothing happens to the pixels
    pixels = (before * 100).to(torch.uint8)
    black = Cutout(length, "black")
    assert torch.equal(black.apply(pixels, draws) == 0, expected == 0)
    assert torch.equal(black.apply_normalised(before, draws), before)


def test_an_odd_length_is_that_many_pixels():
    draws = {"cutout_row": torch.tensor([10]), "cutout_column": torch.tensor([11])}
    blank = Cutout(5).apply_normalised(torch.ones(1, 1, H, W), draws)[0, 0] == 0
    assert (int(blank.sum()), int(blank.any(0).sum()), int(blank.any(1).sum())) == (25, 5, 5)


def test_centre_is_uniform_over_the_image():
    n = 76_800
    draws = Cutout(16).draw(n, (H, W), generator(3))
    counts = torch.bincount(draws["cutout_row"] * W + draws["cutout_column"], minlength=H * W)
    chi_squared = float(((counts - n / (H * W)) ** 2 / (n / (H * W))).sum())
    assert len(counts) == H * W
    assert abs(chi_squared - 767) < 4 * (2 * 767) ** 0.5


def test_areas_have_the_distribution_of_a_clipped_square():
    length, n = 16, 20_000
    cutout = Cutout(length)
    images = torch.ones(n, 1, 32, 32)
    areas = (cutout.apply_normalised(images, cutout.draw(n, (32, 32), generator())) == 0).sum((1, 2, 3))
    sides = torch.tensor([min(32, y + 8) - max(0, y - 8) for y in range(32)])
    every = (sides[:, None] * sides[None, :]).flatten()
    assert int(areas.min()) == int(every.min()) == 64
    assert int(areas.max()) == int(every.max()) == 256
    values, expected = every.unique(return_counts=True)
    found = (areas[:, None] == values).sum(0)
    chi_squared = float(((found - n * expected / 1024) ** 2 / (n * expected / 1024)).sum())
    freedom = len(values) - 1
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5
    assert int(found.sum()) == n


def test_mean_is_zero_after_normalisation_and_black_is_zero_before():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    images = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    common = {"batch_size": 8, "mean": mean, "std": std, "shuffle": False, "seed": 0, "device": torch.device("cpu")}
    split = Split(images, torch.zeros(8, dtype=torch.int64))
    (with_mean, _), (with_black, _) = (
        next(ResidentLoader(split, augmentation=Cutout(16, fill), **common).epoch(0)) for fill in ("mean", "black")
    )
    constants = Normalise(mean, std, image_width=32, device=torch.device("cpu"))
    bright, black = (constants(torch.full((1, 3, 1, 1), value, dtype=torch.uint8))[0] for value in (200, 0))
    blank = with_mean == 0
    assert 0 < int(blank.sum()) < blank.numel()
    assert torch.equal(with_mean[~blank], bright.expand(8, 3, 32, 32)[~blank])
    assert torch.equal(with_black, torch.where(blank, black, bright))


def test_length_zero_is_no_square():
    images = torch.ones(3, 3, H, W)
    draws = Cutout(0).draw(3, (H, W), generator())
    assert torch.equal(Cutout(0).apply_normalised(images.clone(), draws), images)


@pytest.mark.parametrize("options", [{"length": -1}, {"length": 1.5}, {"length": True}, {"length": 4, "fill": "grey"}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(UserError, match="Cutout's"):
        Cutout(**options)
