"""The sections of ``benchmarks/gpu/gpu.py``, a process each: ``gpu_sections.py SECTION JSON [rehearse]``.

The file is written after each figure, so that a section that runs out of time keeps what it measured. On a CPU the same
code runs with smaller networks and fewer steps.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from gpu_forms import forms
from gpu_training import rates, runs
from measuring import Findings, random_source, seconds_of, wait
from PIL import Image
from torch import nn

from isda_repro.data import (
    AutoAugment,
    Chain,
    Crop,
    Cutout,
    InMemoryLoader,
    PadCropFlip,
    StoredSplit,
    StreamingLoader,
    load_folder,
)
from isda_repro.errors import UserError

CONSTANTS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def machine(findings: Findings) -> None:
    """Record versions, and what the card can do: TFLOP/s of bf16 products, and GB/s of copies."""
    device, size = findings.device, 256 if findings.rehearse else 8192
    findings.add("figures", "CPU cores", os.cpu_count())
    if device.type == "cuda":
        findings.add("figures", "GPU memory, GiB", torch.cuda.get_device_properties(device).total_memory / 2**30)
        findings.add("figures", "cuDNN", torch.backends.cudnn.version())
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    findings.add("figures", "bf16 product, TFLOP/s", 2 * size**3 / seconds_of(lambda: a @ b, device) / 1e12)
    source = torch.empty(2**20 if findings.rehearse else 2**31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    findings.add("figures", "copy, GB/s", 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device) / 1e9)


def loader(findings: Findings) -> None:
    """Record images/s of batches on the device: from memory with each augmentation, and from JPEG files."""
    device, count = findings.device, 500 if findings.rehearse else 50_000
    split = random_source(100, 32, count).train
    options: dict[str, Any] = {"batch_size": 128, "shuffle": True, "seed": 0, "device": device, **CONSTANTS}
    options["memory_format"] = torch.channels_last
    crop = PadCropFlip()
    ways = {"crop, flip": crop, "Cutout": Chain(crop=crop, cutout=Cutout(8))}
    ways["AutoAugment"] = Chain(crop=crop, policy=AutoAugment())
    for name, augmentation in ways.items():
        batches = InMemoryLoader(split, augmentation=augmentation, **options)  # type: ignore[arg-type]
        findings.add("figures", f"memory, {name}, images/s", images_per_second(batches, device))
    each = 8 if findings.rehearse else 256
    with tempfile.TemporaryDirectory() as folder:
        files = cast(StoredSplit, load_folder("random", jpegs(Path(folder), each), image_size=224).train)
        workers = 2 if findings.rehearse else max(1, os.cpu_count() or 1)
        streaming = StreamingLoader(files, crop=Crop(224, flip=True), workers=workers, **{**options, "batch_size": 4})
        name = f"JPEG files, {workers} workers, images/s"
        findings.add("figures", name, images_per_second(streaming, device))


def images_per_second(batches: Any, device: torch.device) -> float:
    """Return the images per second of a loader's second epoch."""
    for _ in batches.epoch(1):
        pass
    wait(device)
    begin = time.perf_counter()
    for _ in batches.epoch(2):
        pass
    wait(device)
    return float(batches.num_samples / (time.perf_counter() - begin))


def jpegs(folder: Path, each: int) -> Path:
    """Write a data set with two classes of smooth random pictures and return its folder."""
    draws = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index in range(each if split == "train" else 1):
                coarse = torch.rand(1, 3, 20, 25, generator=draws)
                pixels = (nn.functional.interpolate(coarse, (400, 500), mode="bicubic")[0].clamp(0, 1) * 255).byte()
                file = io.BytesIO()
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90)
                (folder / split / label / f"{index}.jpg").write_bytes(file.getvalue())
    return folder


SECTIONS = {"machine": machine, "runs": runs, "rates": rates, "forms": forms, "loader": loader}


def main() -> None:
    """Run the section that the command line names."""
    if len(sys.argv) < 3 or sys.argv[1] not in SECTIONS:
        raise UserError("benchmarks/gpu/gpu.py runs this")
    SECTIONS[sys.argv[1]](Findings(Path(sys.argv[2]), rehearse="rehearse" in sys.argv[3:]))


if __name__ == "__main__":
    main()
