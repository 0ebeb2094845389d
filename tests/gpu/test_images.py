"""Batches on a GPU equal those on a CPU, for images in memory and in files."""

import pytest
import torch
from pictures import make_folder

from isda_repro.data import AutoAugment, Chain, Crop, Cutout, InMemoryLoader, Split, StreamingLoader, load_folder

pytestmark = pytest.mark.gpu

OPTIONS = {"batch_size": 8, "shuffle": True, "seed": 5, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
CPU = torch.device("cpu")


def assert_alike(found, expected, of_largest):
    """Compare batches; at most the share ``of_largest`` of the pixels may differ by rounding."""
    for (images, targets), (others, labels) in zip(found, expected, strict=True):
        assert torch.equal(targets.cpu(), labels)
        differs = (images.cpu() - others).abs() > 1e-5
        assert differs.float().mean() <= of_largest


@pytest.mark.parametrize("augmentation", [Cutout(4), Cutout(4, fill="black"), AutoAugment("cifar10")])
def test_augmented_in_memory(device, augmentation):
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=draws)
    split = Split(images, torch.randint(10, (40,), generator=draws))
    here, there = (
        list(InMemoryLoader(split, augmentation=augmentation, device=one, **OPTIONS).epoch(1)) for one in (device, CPU)
    )
    assert_alike(here, there, 0.01 if isinstance(augmentation, AutoAugment) else 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_from_files(device, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    split = load_folder("pets", make_folder(tmp_path / "pets", train=13), image_size=12).train
    options = {"crop": Crop(12, flip=True), "augmentation": Chain(cutout=Cutout(4)), **OPTIONS}
    here = list(StreamingLoader(split, workers=workers, device=device, **options).epoch(1))
    assert_alike(here, StreamingLoader(split, workers=0, device=CPU, **options).epoch(1), 0)
