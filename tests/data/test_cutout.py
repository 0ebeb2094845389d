"""Position, size and fill of Cutout's square."""

import pytest
import torch

from isda_repro.data import Cutout, InMemoryLoader, Normalise, Split

H, W = 32, 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def published(image, y, x, length):
    """Return the image with the square of the published code, for an even length: clipped at each edge."""
    out = image.clone()
    y1, y2 = max(0, y - length // 2), min(image.shape[1], y + length // 2)
    x1, x2 = max(0, x - length // 2), min(image.shape[2], x + length // 2)
    out[:, y1:y2, x1:x2] = 0
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("length", [0, 2, 8, 70])
def test_square_is_that_of_the_published_code(length, memory_format):
    images = torch.rand(40, 3, H, W, generator=generator(1)).contiguous(memory_format=memory_format) + 1
    before = images.clone()
    cutout = Cutout(length)
    draws = cutout.draw(40, (H, W), generator())
    centres = zip(draws["cutout_row"].tolist(), draws["cutout_column"].tolist(), strict=True)
    expected = torch.stack([published(image, y, x, length) for image, (y, x) in zip(images, centres, strict=True)])
    assert torch.equal(cutout.apply_normalised(images, draws), expected)
    assert torch.equal(cutout.apply(before, draws), before)  # the uint8 pixels do not change
    pixels = (before * 100).to(torch.uint8)
    black = Cutout(length, "black")
    pixels_before = pixels.clone()
    assert torch.equal(black.apply(pixels, draws), torch.where(expected == 0, 0, pixels))
    assert torch.equal(pixels, pixels_before)  # the input may be a view of stored images
    assert torch.equal(black.apply_normalised(before, draws), before)


def test_square_of_an_odd_length_has_that_many_pixels():
    draws = {"cutout_row": torch.tensor([10]), "cutout_column": torch.tensor([11])}
    blank = Cutout(5).apply_normalised(torch.ones(1, 1, H, W), draws)[0, 0] == 0
    assert blank.any(1).nonzero()[:, 0].tolist() == [8, 9, 10, 11, 12]
    assert blank.any(0).nonzero()[:, 0].tolist() == [9, 10, 11, 12, 13]
    assert int(blank.sum()) == 25


def test_centre_is_uniform_over_the_image():
    n = 38_400
    draws = Cutout(16).draw(n, (H, W), generator(3))
    counts = torch.bincount(draws["cutout_row"] * W + draws["cutout_column"], minlength=H * W)
    chi_squared = float(((counts - n / (H * W)) ** 2 / (n / (H * W))).sum())
    assert len(counts) == H * W
    assert abs(chi_squared - 767) < 4 * (2 * 767) ** 0.5


def test_mean_is_zero_after_normalisation_and_black_is_zero_before_it():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    images = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    common = {"batch_size": 8, "mean": mean, "std": std, "shuffle": False, "seed": 0, "device": torch.device("cpu")}
    split = Split(images, torch.zeros(8, dtype=torch.int64))
    (with_mean, _), (with_black, _) = (
        next(InMemoryLoader(split, augmentation=Cutout(16, fill), **common).epoch(0)) for fill in ("mean", "black")
    )
    constants = Normalise(mean, std, image_width=32, device=torch.device("cpu"))
    bright, black = (constants(torch.full((1, 3, 1, 1), value, dtype=torch.uint8))[0] for value in (200, 0))
    blank = with_mean == 0
    assert 0 < int(blank.sum()) < blank.numel()
    assert torch.equal(with_mean[~blank], bright.expand(8, 3, 32, 32)[~blank])
    assert torch.equal(with_black, torch.where(blank, black, bright))
