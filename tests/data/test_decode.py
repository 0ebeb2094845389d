"""Decoding of image files and crops of them, against Pillow and torchvision."""

import io
import math

import numpy as np
import pytest
import torch
from pictures import content, odd_files, picture
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional

from isda_repro.data import Crop
from isda_repro.data.decode import UnreadableError, decoded, scaled, shorter_side
from isda_repro.errors import UserError

ODD_FILES = odd_files()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def as_image_folder_reads(data):
    """Return the pixels as torchvision's default loader decodes them, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


@pytest.mark.parametrize("name", sorted(ODD_FILES))
def test_unusual_images_are_what_image_folder_reads(name):
    data = ODD_FILES[name]
    pixels = decoded(data)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[2] == 3
    if name == "sixteen_bits":  # ImageFolder clips these to white
        deep = np.array(Image.open(io.BytesIO(data))).astype(np.int64)
        assert torch.equal(pixels, torch.from_numpy(deep >> 8).to(torch.uint8)[:, :, None].expand(-1, -1, 3))
    else:
        assert torch.equal(pixels, as_image_folder_reads(data))


def test_ordinary_jpegs_are_what_pillow_decodes():
    for seed in range(4):
        for subsampling in (0, 1, 2):
            data = content(picture(seed, 37 + seed, 53), quality=60 + 9 * seed, subsampling=subsampling)
            assert torch.equal(decoded(data), as_image_folder_reads(data))


def test_packed_pixels_are_read_without_a_copy():
    pixels = picture(3)
    data = bytearray(content(pixels, "PPM"))
    found = decoded(data)
    assert torch.equal(found, torch.from_numpy(pixels))
    data[-1] ^= 255
    assert not torch.equal(found, torch.from_numpy(pixels))
    assert torch.equal(decoded(bytes(content(pixels, "PPM"))), torch.from_numpy(pixels))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image at all",
        content(picture(1))[:-200],
        content(picture(1), "PNG")[:400],
        bytearray(content(picture(1), "PPM")[:400]),
        b"\xff\xd8\xff" + b"\0" * 60,
    ],
    ids=["empty", "text", "half a JPEG", "half a PNG", "half a PPM", "a JPEG's beginning"],
)
def test_bytes_that_are_no_image_have_a_reason_in_one_line(data):
    with pytest.raises(UnreadableError) as caught:
        decoded(data)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 200), (40, 41), (17, 150), (256, 256)])
def test_center_crop_is_torchvisions_resize_and_center_crop(height, width):
    image = torch.from_numpy(picture(1, height, width))
    for size, resize in ((224, 256), (32, None)):
        planes = image.permute(2, 0, 1)
        resized = functional.resize(planes, [resize or round(size * 8 / 7)], antialias=True)
        expected = functional.center_crop(resized, [size, size]).permute(1, 2, 0)
        found = Crop(size, "center", resize)(image, generator())
        assert torch.equal(found, expected)
        assert shorter_side(height, width, resize or 37) == tuple(resized.shape[1:])
        pil = transforms.Resize(resize or round(size * 8 / 7))(Image.fromarray(image.numpy()))
        pil = torch.from_numpy(np.array(transforms.CenterCrop(size)(pil)))
        assert (found.int() - pil.int()).abs().max() <= 1


def test_a_part_is_scaled_as_torchvision_scales_it():
    image = torch.from_numpy(picture(2, 120, 90))
    for box in ((0, 0, 120, 90), (10, 20, 64, 48), (50, 3, 7, 80)):
        found = scaled(image, box, (64, 48))
        expected = functional.resized_crop(image.permute(2, 0, 1), *box, [64, 48], antialias=True).permute(1, 2, 0)
        assert torch.equal(found, expected)


def test_random_parts_are_distributed_as_torchvisions():
    height, width, n = 375, 500, 6000
    crop, draw = Crop(224), generator(1)
    ours = torch.tensor([crop.box(height, width, draw) for _ in range(n)]).double()
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    ).double()
    for column, kind in ((ours, "ours"), (theirs, "theirs")):
        area = column[:, 2] * column[:, 3] / (height * width)
        assert 0.079 < area.min() < 0.09, kind
        assert (column[:, 0] + column[:, 2] <= height).all(), kind
        assert (column[:, 1] + column[:, 3] <= width).all(), kind
    shapes = [torch.stack([c[:, 2] * c[:, 3], (c[:, 3] / c[:, 2]).log(), c[:, 0], c[:, 1]]) for c in (ours, theirs)]
    for one, other in zip(*shapes, strict=True):
        pooled = torch.cat([one, other]).sort().values
        distance = (
            torch.searchsorted(one.sort().values, pooled, right=True)
            - torch.searchsorted(other.sort().values, pooled, right=True)
        ).abs().max() / n
        assert distance < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov test at 0.1%


@pytest.mark.parametrize(("height", "width"), [(1, 1000), (1000, 1), (10, 40), (40, 10), (1, 1)])
def test_where_no_part_fits_the_middle_is_taken_as_by_torchvision(height, width):
    theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    ours = Crop(8, scale=(1.0, 1.0)).box(height, width, generator())
    assert ours == tuple(max(1, number) if i > 1 else number for i, number in enumerate(theirs))
    assert Crop(8)(torch.from_numpy(picture(1, height, width)), generator()).shape == (8, 8, 3)


def test_random_parts_of_a_seed_are_those_that_results_were_made_with():
    assert [Crop(224).box(375, 500, generator(i)) for i in (0, 1)] == [(21, 104, 272, 346), (187, 352, 173, 148)]
    image = torch.from_numpy(picture(1))
    same = [torch.equal(Crop(16, flip=True)(image, generator(i)), Crop(16)(image, generator(i))) for i in range(10)]
    assert same == [False, False, True, True, False, True, False, True, True, False]


def test_flip_mirrors_half_of_the_images_and_leaves_the_parts():
    image = torch.from_numpy(picture(1))
    plain, flipping = Crop(16), Crop(16, flip=True)
    mirrored = 0
    for seed in range(400):
        one, other = plain(image, generator(seed)), flipping(image, generator(seed))
        mirrored += not torch.equal(one, other)
        assert torch.equal(one, other) or torch.equal(one.flip(1), other)
    assert 160 < mirrored < 240


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"size": 0}, "0"),
        ({"size": 8.5}, "8.5"),
        ({"size": True}, "True"),
        ({"size": 8, "kind": "corner"}, "corner"),
        ({"size": 8, "kind": "center", "resize": 4}, "resize=4"),
        ({"size": 8, "scale": (0.5, 0.1)}, "scale"),
        ({"size": 8, "scale": (0.5, 1.1)}, "scale"),
        ({"size": 8, "scale": (0.5,)}, "scale"),
        ({"size": 8, "ratio": (0.0, 1.0)}, "ratio"),
        ({"size": 8, "flip": 1}, "flip"),
    ],
)
def test_bad_settings_of_a_crop_are_named(options, token):
    with pytest.raises(UserError, match=token):
        Crop(**options)
