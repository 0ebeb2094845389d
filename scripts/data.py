"""Verify, show or pack a data set. From the repository root:

python scripts/data.py verify dataset=cifar10                             # also data_dir=data
python scripts/data.py verify dataset=imagenet data_dir=FOLDER            # decodes every image; also workers=
python scripts/data.py show augmentation=autoaugment dataset=cifar10      # also output=FILE.png faithful=official
python scripts/data.py pack dataset=imagenet data_dir=FOLDER output=OTHER # also size=256 format=raw|jpeg quality=90

`verify` lists the files with their checksums, the number of images of each class by extension, the files that are not
used and why, the images that cannot be read or are no 8-bit photographs, and training images that are evaluated on. If
training would fail or its result be wrong, it says what to do and exits with status 2.

`show` takes the settings of train.py and writes a picture with one row per class: an image as it is on disk, then ten
versions of it, drawn as in training.

`pack` writes smaller copies of the images of a folder into a few archives, which are faster to read. Train on them with
dataset=imagenet_packed, or with dataset=folder for other images. If it is interrupted, the same command resumes it.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isda_repro.console import say
from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

import joblib
from omegaconf import MISSING

from isda_repro.config import build, compose
from isda_repro.config.options import help_if_asked, parse_options
from isda_repro.files import check_output, expanded

CORES = joblib.cpu_count()
ROWS, VERSIONS = 10, 10
SHRUNK_TO = 100  # approximate side of a large image in the picture, in pixels


@dataclass
class VerifyOptions:
    """``dataset``: its name; ``data_dir``: its folder, by default $ISDA_DATA or data; ``workers``: for decoding;
    ``holdout``: as dataset.holdout in training, for a folder that only has train."""

    dataset: str = MISSING
    data_dir: str = os.environ.get("ISDA_DATA", "data")
    workers: int = CORES
    holdout: int | None = None


@dataclass
class ShowOptions:
    """``output``: file of the picture; all other options are settings of train.py."""

    output: str = "runs/augmentation.png"


@dataclass
class PackOptions:
    """``dataset``: imagenet or folder; ``output``: the new folder; the rest as in ``isda_repro.data.Packing``."""

    dataset: str = MISSING
    output: str = MISSING
    data_dir: str = os.environ.get("ISDA_DATA", "data")
    size: int = 256
    format: str = "raw"
    quality: int = 90
    images_per_archive: int = 4096
    unreadable: str = "stop"
    workers: int = CORES


def verify(arguments: list[str]) -> None:
    """Verify a data set and print the findings.

    Raises:
        UserError: something is wrong with it.
    """
    from isda_repro.data import verify as verify_data

    options = parse_options(VerifyOptions, arguments)
    found = verify_data(options.dataset, Path(options.data_dir), options.workers, options.holdout)
    for line in found.lines():
        say(line)
    if found.problems and options.dataset not in ("cifar10", "cifar100"):
        count = len(found.problems)
        raise UserError(
            f"{options.dataset} under {options.data_dir} has {count} fault{'s' * (count > 1)}, listed above: replace "
            "or remove those images (dataset.unreadable=skip trains without unreadable ones), or unpack the official "
            "archives again"
        )
    if not found.ok:
        wrong = ", ".join([*(file.path for file in found.files if file.state != "ok"), *found.problems])
        if options.dataset not in ("cifar10", "cifar100"):
            raise UserError(f"{wrong} of {options.dataset}: delete them and run the command that packed it again")
        raise UserError(
            f"{options.dataset} under {options.data_dir} is not whole ({wrong}): with a network, the next training run "
            "repairs it; without one, put the files of the official archive there"
        )
    print(f"{options.dataset} is whole")


def show(arguments: list[str]) -> None:
    """Write the picture of original and augmented images."""
    own = [argument for argument in arguments if argument.startswith("output=")]
    output = Path(parse_options(ShowOptions, own).output)
    if output.suffix != ".png":
        raise UserError(f"output={output} must end with .png")
    check_output(output)
    cfg = compose([argument for argument in arguments if argument not in own])

    import torch
    import torch.nn.functional as F

    from isda_repro.sheets import GAP, WHITE, arrange, enlargement, write_picture
    from isda_repro.training import builders
    from isda_repro.training.compute import resolve_compute

    cfg.compute.device = "cpu"
    compute, source = resolve_compute(cfg.compute), build(cfg.dataset.source)
    targets = source.train.targets
    chosen = source.train.select(torch.tensor([int((targets == one).nonzero()[0]) for one in targets.unique()[:ROWS]]))
    mean, std = builders.normalisation_constants(cfg, source)
    build_loader = partial(
        builders.build_loader, cfg, chosen, compute, (mean, std), batch_size=len(chosen), shuffle=False
    )
    on_disk, trained = build_loader(train=False), build_loader(train=True)
    batches = [on_disk.epoch(0), *(trained.epoch(epoch) for epoch in range(VERSIONS))]
    mean_C11, std_C11 = (torch.tensor(list(numbers))[:, None, None] for numbers in (mean, std))
    normalised = torch.stack([next(batch)[0].cpu() for batch in batches], dim=1)  # [rows, columns, 3, H, W]
    images = ((normalised * std_C11 + mean_C11) * 255).round().clamp(0, 255).to(torch.uint8)
    first = F.pad(arrange(images[:, :1]), (0, GAP * enlargement(images.shape[3])), value=WHITE)  # a wider gap after it
    sheet = torch.cat([first, arrange(images[:, 1:])], dim=2)
    shrunk = max(1, chosen.image_size[1] // SHRUNK_TO)
    write_picture(output, F.avg_pool2d(sheet.float(), shrunk, ceil_mode=True).round().to(torch.uint8))
    print(f"{output}: {len(chosen)} images, each as it is on disk and {VERSIONS} times as it is trained on")


def pack(arguments: list[str]) -> None:
    """Write the archives, then print their size and how much faster they are to read."""
    from isda_repro.data import Packing, load_folder, load_packed, speed_up
    from isda_repro.data import pack as pack_data

    options = parse_options(PackOptions, arguments)
    if options.dataset not in ("imagenet", "folder"):
        raise UserError(f"dataset={options.dataset} has no files to pack; it can be imagenet or folder")
    if options.unreadable not in ("stop", "skip"):
        raise UserError(f"unreadable={options.unreadable} must be stop or skip")
    packing = Packing(options.size, options.format, options.quality, options.images_per_archive)  # type: ignore[arg-type]
    data_dir, output = expanded(options.data_dir), expanded(options.output)
    name, classes = ("imagenet", 1000) if options.dataset == "imagenet" else (data_dir.resolve().name, None)
    source = load_folder(name, data_dir, image_size=options.size, num_classes=classes)
    skips = options.unreadable == "skip"
    pack_data(source, output, packing, workers=options.workers, skip_unreadable=skips, report=say)

    packed = load_packed(name, output, image_size=options.size)
    gigabytes = sum(file.stat().st_size for file in output.glob("*.zip")) / 1e9
    times = speed_up(source.train, packed.train, 224)  # type: ignore[arg-type]
    exact = "the same pixels" if options.format == "raw" else "pixels that differ by what JPEG loses a second time"
    print(
        f"{output}: {len(packed.train):,} training and {len(packed.test):,} evaluation images, {gigabytes:.2f} GB; a "
        f"random part of 224 x 224 pixels is read {times:.1f} times faster, on one core\n"
        f"Evaluation at {options.size * 7 // 8} pixels sees {exact}; training sees less detail where it enlarges a "
        f"small part of an image larger than {options.size} pixels, so that errors are not exactly comparable.\n"
        f"Train on it: dataset={options.dataset}{'_packed' * (name == 'imagenet')} data_dir={output}"
    )


def main(arguments: list[str]) -> None:
    """Run the command that the first argument names."""
    commands = {"verify": verify, "show": show, "pack": pack}
    help_if_asked(arguments)
    if not arguments or arguments[0] not in commands:
        raise UserError("say what to do: python scripts/data.py verify|show|pack dataset=cifar10")
    commands[arguments[0]](arguments[1:])


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
