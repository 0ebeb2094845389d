"""Images per second of our loaders against torchvision's PIL pipelines, each augmentation. From the repository root:

    python benchmarks/input_pipeline.py                                        # 2 minutes; uses $ISDA_DATA if it is set
    python benchmarks/input_pipeline.py output=results/benchmarks/input_cpu.md # also writes what it prints

All pipelines give normalised batches of 128 of the same images. The reference is torchvision's transforms on PIL images
in a DataLoader with 2 workers, which are warm when the clock starts; Cutout, which torchvision lacks, is the code that
its authors publish. Our in-memory loader is timed over whole epochs, its random draws included. The pipelines take
turns, and the medians are compared. Exits 1 if a bar is missed.
"""

import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, cast

import torch
import torchvision
from reference.plain_input import MEAN, STD, PILImages, RepeatedFolder, cifar_transform, endless_batches

from isda_repro.config import build, compose
from isda_repro.data import (
    Crop,
    InMemoryLoader,
    Packing,
    Split,
    StoredSplit,
    StreamingLoader,
    load_cifar,
    load_folder,
    load_packed,
    pack,
)
from isda_repro.errors import one_sentence_errors
from isda_repro.measurements import THREADS, conclude, machine, output_argument
from isda_repro.training.compute import resolve_compute

BATCH_SIZE, REPEATS, WORKERS = 128, 5, 2
WARMUP_BATCHES, SECONDS = 20, 3.0
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Contest:
    """An augmentation, and the bar: how many times the reference's images per second our loader has to reach."""

    augmentation: str
    bar: float


CONTESTS = [Contest("baseline", 8), Contest("cutout", 8), Contest("autoaugment", 6)]


Rates = dict[str, list[float]]  # contender -> images per second of each turn


def main() -> None:
    """Measure all pipelines, print a report, write it if asked, and exit with 1 if a bar is missed."""
    output = output_argument(sys.argv[1:])
    torch.set_num_threads(THREADS)
    compute = resolve_compute(compose(["compute=cpu"]).compute)
    compute.apply()
    what, split = _images()
    lines = [
        "# Input: images per second, CPU",
        "",
        f"`python benchmarks/input_pipeline.py` on {what}, batch {BATCH_SIZE}; medians of {REPEATS} turns,",
        f"the contenders interleaved. torchvision: its transforms on PIL images, DataLoader with {WORKERS} workers.",
        "",
        *HEADER,
    ]
    missed: list[str] = []
    for contest in CONTESTS:
        bars = {f"ours, {layout}": contest.bar for layout in LAYOUTS}
        lines += _rows(contest.augmentation, _rates(contest, split), bars, missed)
    lines += ["", *benchmark_files(missed)]
    conclude([*lines, "", *machine()], missed, output)


HEADER = [
    "| input | pipeline | images/s | lowest - highest | ratio | bar |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
]


def _rows(what: str, rates: Rates, bars: dict[str, float], missed: list[str]) -> Iterator[str]:
    """Yield a table row for each contender; the first is the reference. Missed bars are appended to ``missed``."""
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    reference = next(iter(medians.values()))
    for name, median in medians.items():
        bar = bars.get(name)
        if bar is not None and median < bar * reference:
            missed.append(f"{what}, {name}: at least {bar:g} times torchvision's pipeline")
        spread = f"{min(rates[name]):,.0f} - {max(rates[name]):,.0f}"
        cells = [what, name, f"{median:,.0f}", spread, f"{median / reference:.1f}", "" if bar is None else f"{bar:g}"]
        yield f"| {' | '.join(cells)} |"


# ------------------------------------------------------------------------------------------------- images in memory


def _images() -> tuple[str, Split]:
    """Return a description of the images and the split: CIFAR-10 if it is on disk, otherwise random images."""
    data_dir = Path(os.environ.get("ISDA_DATA", "data"))
    if (data_dir / torchvision.datasets.CIFAR10.base_folder).is_dir():
        split = load_cifar("cifar10", data_dir, download=False).train
        assert isinstance(split, Split)
        return "CIFAR-10's 50,000 training images", split
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return "50,000 random images of CIFAR-10's shape (no CIFAR-10 found)", Split(images, torch.arange(50_000) % 10)


def _rates(contest: Contest, split: Split) -> Rates:
    """Return the images per second of each contender, turn by turn; the reference's workers idle between its turns."""
    loaders = {f"ours, {name}": _resident(contest, split, layout) for name, layout in LAYOUTS.items()}
    rates: dict[str, list[float]] = {name: [] for name in ("torchvision", *loaders)}
    for loader in loaders.values():
        _resident_rate(loader)  # warm-up: first access to the memory
    for _ in range(REPEATS):
        rates["torchvision"].append(_reference_rate(contest, split))
        for name, loader in loaders.items():
            rates[name].append(_resident_rate(loader))
    return rates


def _reference_rate(contest: Contest, split: Split) -> float:
    return _rate(endless_batches(PILImages(split, cifar_transform(contest.augmentation)), BATCH_SIZE, WORKERS))


def _rate(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the images per second of a pipeline with workers, after a warm-up."""
    for _ in islice(batches, WARMUP_BATCHES):
        pass
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        count += sum(len(targets) for _, targets in islice(batches, 10))
    return count / (time.perf_counter() - start)


def _resident(contest: Contest, split: Split, layout: torch.memory_format) -> InMemoryLoader:
    return InMemoryLoader(
        split,
        batch_size=BATCH_SIZE,
        mean=MEAN,
        std=STD,
        augmentation=build(compose([f"augmentation={contest.augmentation}"]).augmentation),
        shuffle=True,
        seed=0,
        device=torch.device("cpu"),
        memory_format=layout,
    )


def _resident_rate(loader: InMemoryLoader) -> float:
    start = time.perf_counter()
    count = sum(len(targets) for _, targets in loader.epoch(0))
    return count / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------- images in files

FILES_BATCH_SIZE, FILES_BARS = 32, {"files": 1.3, "packed, raw": 5.0}
REPEATED = 20_000  # images in an epoch


def benchmark_files(missed: list[str]) -> Iterator[str]:
    """Yield the report on decoding and augmenting ImageNet's training images, from files and from archives."""
    data_dir = Path(os.environ.get("ISDA_DATA", "data"))
    root = next(
        (data_dir / name for name in ("imagenet", "imagenet-full") if (data_dir / name / "train").is_dir()), None
    )
    if root is None:
        yield f"Images in files: not measured, there is neither imagenet nor imagenet-full in {data_dir}."
        return
    torch.set_num_threads(1)  # leave the cores to the workers
    with tempfile.TemporaryDirectory() as scratch:
        splits = _file_splits(root, Path(scratch))
        count = len(splits["files"])
        yield f"{count:,} photographs of ImageNet's in their own size, over and over, batches of {FILES_BATCH_SIZE}:"
        yield f"a random part of 224 x 224 pixels, mirrored or not, normalised, {WORKERS} workers. torchvision:"
        yield "ImageFolder and its PIL transforms. Packed: by `scripts/data.py pack`, shorter side 256 pixels."
        yield ""
        for layout, memory_format in LAYOUTS.items():
            rates: Rates = {"torchvision": [], **{name: [] for name in splits}}
            for _ in range(REPEATS):
                repeated = RepeatedFolder(root / "train", REPEATED)
                rates["torchvision"].append(_rate(endless_batches(repeated, FILES_BATCH_SIZE, WORKERS)))
                for name, split in splits.items():
                    rates[name].append(_rate(_streamed(split, memory_format)))
            yield from HEADER if layout == "contiguous" else []
            yield from _rows(layout, rates, FILES_BARS, missed)
        yield ""
        sizes = {name: sum(len(split.read(index)) for index in range(count)) / count for name, split in splits.items()}
        yield "Bytes an image: " + ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items()) + "; of ImageNet's"
        yield (
            "1,281,167: " + ", ".join(f"{name} {size * 1_281_167 / 1e9:,.0f} GB" for name, size in sizes.items()) + "."
        )


def _file_splits(root: Path, scratch: Path) -> dict[str, StoredSplit]:
    """Return the same images as files, and as archives of raw pixels and of JPEG, which are written to ``scratch``."""
    folder = scratch / "images"
    for part in ("train", "val"):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).symlink_to((root / "train").resolve())
    source = load_folder("images", folder, image_size=224)
    splits = {"files": source.train}
    for kind in ("raw", "jpeg"):
        pack(
            source,
            scratch / kind,
            Packing(format=kind),
            workers=WORKERS,
            skip_unreadable=False,
            report=lambda text: None,
        )
        splits[f"packed, {kind}"] = load_packed("images", scratch / kind, image_size=224).train
    return cast(dict[str, StoredSplit], splits)


class Repeated:
    """A split whose images are repeated until it has the given length."""

    def __init__(self, split: StoredSplit, images: int) -> None:
        self._split, self._indices = split, torch.arange(images) % len(split)
        self.image_size, self.channels, self.digest = split.image_size, split.channels, split.digest

    @property
    def targets(self) -> torch.Tensor:
        """Labels, int64 [N]."""
        return self._split.targets[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def select(self, indices: torch.Tensor) -> Self:
        """Return the images at ``indices``, in their order in this split."""
        chosen = copy.copy(self)
        chosen._indices = self._indices[indices.sort().values]
        return chosen

    def where(self, index: int) -> str:
        """Return the path of an image's file."""
        return self._split.where(int(self._indices[index]))

    def fingerprint(self, indices: torch.Tensor) -> str:
        """Return a hash of the files at ``indices``."""
        return self._split.fingerprint(self._indices[indices])

    def read(self, index: int) -> bytes | bytearray:
        """Return the bytes of an image's file."""
        return self._split.read(int(self._indices[index]))


def _streamed(split: StoredSplit, memory_format: torch.memory_format) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    loader = StreamingLoader(
        Repeated(split, REPEATED),
        crop=Crop(224, flip=True),
        workers=WORKERS,
        batch_size=FILES_BATCH_SIZE,
        mean=MEAN,
        std=STD,
        shuffle=True,
        seed=0,
        device=torch.device("cpu"),
        memory_format=memory_format,
    )
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


if __name__ == "__main__":
    with one_sentence_errors():
        main()
