"""Normalised pixels against the definition in float64."""

import pytest
import torch

from isda_repro.data import Normalise, channel_statistics
from isda_repro.errors import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images(height=5, width=7):
    return torch.randint(0, 256, (6, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last])
def test_normalise_is_the_definition_in_every_layout(memory_format, input_format):
    pixels = images().contiguous(memory_format=input_format)
    before = pixels.clone()
    normalised = Normalise(MEAN, STD, image_width=7, device=CPU, memory_format=memory_format)(pixels)
    mean, std = (torch.tensor(c, dtype=torch.float64).view(3, 1, 1) for c in (MEAN, STD))
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(normalised.double(), (pixels / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.5,), (0.0,)), ((0.5,), (-1.0,))])
def test_constants_that_fit_no_channel_are_named(mean, std):
    with pytest.raises(UserError, match=r"mean .* std "):
        Normalise(mean, std, image_width=8, device=CPU)


def test_other_memory_formats_are_refused():
    with pytest.raises(ValueError, match="channels_last_3d"):
        Normalise(MEAN, STD, image_width=8, device=CPU, memory_format=torch.channels_last_3d)


def test_channel_statistics_are_those_of_all_pixels():
    pixels = images()
    mean, std = channel_statistics(pixels)
    reference = pixels.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), reference.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std).double(), reference.std((0, 2, 3), correction=0))
