"""Input as torchvision's own transforms give it, image by image in the workers of a DataLoader."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from isda_repro.data import Split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PILImages(Dataset[tuple[Any, int]]):
    """A data set in memory that returns PIL images, as torchvision's CIFAR10 does."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets: list[int] = split.targets.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(transforms.functional.to_pil_image(self.data[index])), self.targets[index]


class PlainCutout:
    """Cutout of one normalised image as its authors publish it: a square is set to zero. torchvision has no Cutout."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, float [C, H, W], with the square set to zero."""
        height, width = image.shape[1:]
        row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
        half = self.length // 2
        mask = torch.ones(height, width)
        mask[max(0, row - half) : row + half, max(0, column - half) : column + half] = 0
        return image * mask


def cifar_transform(augmentation: str) -> Callable[[Any], Tensor]:
    """Return a transform from a PIL image to a normalised tensor.

    ``augmentation`` is "baseline" (crop and flip), "cutout", or "autoaugment", which includes Cutout.
    """
    steps: list[Callable[[Any], Any]] = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    if augmentation == "autoaugment":
        steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10))
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if augmentation != "baseline":
        steps.append(PlainCutout(16))
    composed: Callable[[Any], Tensor] = transforms.Compose(steps)
    return composed


class RepeatedFolder(Dataset[tuple[Any, int]]):
    """torchvision's ImageFolder with the transforms of its ImageNet example, repeated to a given length."""

    def __init__(self, root: Path, images: int) -> None:
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        self.folder, self.images = ImageFolder(str(root), transform), images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pair: tuple[Any, int] = self.folder[index % len(self.folder)]
        return pair


def endless_batches(dataset: Dataset[Any], batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of epoch after epoch, from workers that persist."""
    loader: Iterable[Any] = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader
