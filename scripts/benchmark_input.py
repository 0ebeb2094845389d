"""Images per second of the resident loader against torchvision's PIL pipeline, on CIFAR-10 with baseline augmentation.

    python scripts/benchmark_input.py                                          # 20 s; uses $ISDA_DATA if it is set
    python scripts/benchmark_input.py output=results/benchmarks/input_cpu.md   # also writes what it prints

Both make batches of 128 of the same images: pad 4, random crop, horizontal flip, normalise. The reference is
torchvision's CIFAR10 with RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize on PIL images in a
DataLoader with one worker; its worker runs and is warm when the clock starts. The resident loader is timed over whole
epochs, the drawing included. The two take turns; the medians are compared. Exits 1 when the bar is missed.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from benchmarking import THREADS, conclude, machine, output_argument
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from isda_repro.data import PadCropFlip, ResidentLoader, Split, load_cifar
from isda_repro.errors import one_sentence_errors

BAR = 15.0  # times the reference
BATCH_SIZE, REPEATS = 128, 5
REFERENCE_WARMUP_BATCHES, REFERENCE_BATCHES = 10, 100
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class RandomImages(Dataset[tuple[Any, int]]):
    """Where CIFAR-10 is not on the disk: random images, kept and handed out as torchvision's CIFAR10 does."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets: list[int] = split.targets.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(transforms.functional.to_pil_image(self.data[index])), self.targets[index]


def main() -> None:
    """Measure, print, write if asked, and hold the bar."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    what, split, reference_data = _images()
    contenders: dict[str, Callable[[], float]] = {
        "torchvision, PIL, DataLoader with 1 worker": lambda: _reference_rate(reference_data),
        "resident, contiguous": lambda: _resident_rate(split, torch.contiguous_format),
        "resident, channels_last": lambda: _resident_rate(split, torch.channels_last),
    }
    for measure in list(contenders.values())[1:]:
        measure()  # first touch of the memory; the reference warms up in every turn
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS):
        for name, measure in contenders.items():
            rates[name].append(measure())
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    reference, *ours = medians.values()
    missed = [] if min(ours) >= BAR * reference else [f"resident loader at least {BAR:g} times torchvision's pipeline"]
    conclude(_report(what, rates, medians), missed, output)


def _images() -> tuple[str, Split, Dataset[tuple[Any, int]]]:
    """What they are, the split for us, and the same images for torchvision's pipeline."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    data_dir = Path(os.environ.get("ISDA_DATA", "data"))
    if (data_dir / torchvision.datasets.CIFAR10.base_folder).is_dir():
        split = load_cifar("cifar10", data_dir, download=False).train
        return "CIFAR-10's 50,000 training images", split, torchvision.datasets.CIFAR10(data_dir, transform=transform)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(50_000) % 10)
    return "50,000 random images of CIFAR-10's shape (no CIFAR-10 found)", split, RandomImages(split, transform)


def _reference_rate(dataset: Dataset[tuple[Any, int]]) -> float:
    batches: Iterator[Any] = iter(DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=1))
    for _ in islice(batches, REFERENCE_WARMUP_BATCHES):
        pass
    start = time.perf_counter()
    count = sum(len(targets) for _, targets in islice(batches, REFERENCE_BATCHES))
    return count / (time.perf_counter() - start)


def _resident_rate(split: Split, memory_format: torch.memory_format) -> float:
    loader = ResidentLoader(
        split,
        batch_size=BATCH_SIZE,
        mean=MEAN,
        std=STD,
        augmentation=PadCropFlip(),
        shuffle=True,
        seed=0,
        device=torch.device("cpu"),
        memory_format=memory_format,
    )
    start = time.perf_counter()
    count = sum(len(targets) for epoch in range(2) for _, targets in loader.epoch(epoch))
    return count / (time.perf_counter() - start)


def _report(what: str, rates: dict[str, list[float]], medians: dict[str, float]) -> Iterator[str]:
    reference = next(iter(medians.values()))
    yield "# Input: images per second, CIFAR-10, baseline augmentation, CPU"
    yield ""
    yield f"`python scripts/benchmark_input.py` on {what}, batch {BATCH_SIZE};"
    yield f"medians of {REPEATS} turns, the contenders interleaved in one process."
    yield f"Bar: at least {BAR:g} times the first line."
    yield ""
    yield "| pipeline | images/s | lowest - highest | ratio |"
    yield "| --- | ---: | ---: | ---: |"
    for name, median in medians.items():
        low, high = min(rates[name]), max(rates[name])
        yield f"| {name} | {median:,.0f} | {low:,.0f} - {high:,.0f} | {median / reference:.1f} |"
    yield ""
    yield from machine()


if __name__ == "__main__":
    with one_sentence_errors():
        main()
