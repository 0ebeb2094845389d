"""Images per second of whole training: ResNet-32 on CIFAR-100 with ISDA, ours against the plain form of the same steps.

    python benchmarks/training_rate.py                                          # 6 minutes; CIFAR-100 under $ISDA_DATA
    python benchmarks/training_rate.py output=results/benchmarks/train_cpu.md   # also writes what it prints

The plain form does what a straightforward script does, the authors' among them: PIL transforms in a DataLoader with one
worker, contiguous fp32, the loss as the authors compute it, loss and error fetched with `.item()` in each step. Ours is
the second epoch of a real run of the trainer on a part of the data. They take turns, the plain form in a process of its
own, because the trainer sets the allocator of its process. Each ratio is the median over the turns of the ratio within
a turn. The table also has the forms from which `compute=auto` chooses, and the network's two passes alone. The command
line's start-up time is measured last. Exits 1 if a bar is missed.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from reference.plain_isda import PlainISDALoss
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR100

from isda_repro.config import compose
from isda_repro.errors import one_sentence_errors
from isda_repro.measurements import THREADS, conclude, machine, output_argument
from isda_repro.models import ResNet
from isda_repro.runs.records import EpochRecord, read_metrics
from isda_repro.training.compute import processor, resolve_compute
from isda_repro.training.run import run

TURNS, STEPS, BATCH_SIZE, WARM_UP_STEPS = 7, 20, 128, 3
DATA_DIR = os.environ.get("ISDA_DATA", "data")
BAR_BF16, BAR_FP32, BAR_ISDA_SHARE = 2.5, 1.4, 0.02
BAR_HELP_SECONDS, BAR_FIRST_STEP_SECONDS = 1.5, 10.0
ROOT = Path(__file__).resolve().parents[1]

PLAIN = "plain form (PIL, 1 worker, contiguous fp32)"
OURS = {
    "fp32, contiguous": ["compute.precision=fp32", "compute.channels_last=false"],
    "fp32, channels_last": ["compute.precision=fp32"],
    "bf16, channels_last": ["compute.precision=bf16"],
    "bf16, channels_last, compiled": ["compute.precision=bf16", "compute.compile=true"],
}
PASSES = "bf16, channels_last, forward and backward pass alone"


def trainer_epoch(overrides: list[str]) -> EpochRecord:
    """Train two epochs of ``STEPS`` steps with the trainer, and return the record of the second."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        sizes = [f"dataset.train_limit={STEPS * BATCH_SIZE}", "dataset.test_limit=100", "recipe.epochs=2"]
        places = [f"runs_dir={folder}", f"data_dir={DATA_DIR}", "tracking=none"]
        cfg = compose(["model=resnet32", "dataset=cifar100", "loss=isda", "compute=cpu", *sizes, *places, *overrides])
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            run(cfg)
        *_, last = read_metrics(Path(folder) / cfg.run_id / "metrics.jsonl")
    assert isinstance(last, EpochRecord)
    return last


def plain_batches() -> Iterator[list[torch.Tensor]]:
    """Return CIFAR-100's training batches as torchvision's transforms and a DataLoader give them."""
    statistics_of_images = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*statistics_of_images),
        ]
    )
    dataset = CIFAR100(DATA_DIR, train=True, transform=transform)
    return iter(DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=1))


def plain_rate() -> float:
    """Return the images per second of the plain form."""
    network = ResNet(32, num_classes=100)
    criterion = PlainISDALoss(num_classes=100, feature_dim=64, lambda_0=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    begin, seen = 0.0, 0
    for step, (images, targets) in enumerate(islice(plain_batches(), WARM_UP_STEPS + STEPS)):
        if step == WARM_UP_STEPS:
            begin, seen = time.perf_counter(), 0
        features, logits = network(images)
        loss = criterion(features, logits, targets, head=network.head, progress=step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _ = loss.item(), (logits.argmax(1) != targets).float().mean().item()
        seen += len(targets)
    return seen / (time.perf_counter() - begin)


def plain_rate_of_its_own_process() -> float:
    """Return ``plain_rate`` of a new process, whose allocator the trainer has not configured."""
    command = [sys.executable, __file__, "plain"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def passes_rate() -> float:
    """Return the images per second of both passes of the network with CE on one fixed batch.

    This is the upper limit for a trainer: one that costs nothing besides PyTorch's kernels.
    """
    compute = resolve_compute(compose(["compute=cpu", "compute.precision=bf16"]).compute)
    network = ResNet(32, num_classes=100).to(memory_format=compute.memory_format)
    images = torch.randn(BATCH_SIZE, 3, 32, 32).contiguous(memory_format=compute.memory_format)
    targets = torch.randint(100, (BATCH_SIZE,))
    begin = 0.0
    for step in range(WARM_UP_STEPS + STEPS):
        if step == WARM_UP_STEPS:
            begin = time.perf_counter()
        network.zero_grad()
        with compute.autocast():
            logits = network(images).logits
        F.cross_entropy(logits, targets).backward()
    return STEPS * BATCH_SIZE / (time.perf_counter() - begin)


def command_seconds(*arguments: str) -> float:
    """Return the wall time of ``python train.py ARGUMENTS``, from the start of the process to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - begin


def command_line_seconds() -> tuple[float, float]:
    """Return the seconds of ``train.py --help``, and of a run of one step and one evaluation on digits."""
    help_seconds = statistics.median(command_seconds("--help") for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        tiny = ["dataset=digits", "model=resnet20", "recipe.epochs=1", "dataset.train_limit=64", "tracking=none"]
        start_seconds = statistics.median(
            command_seconds(*tiny, f"seed={seed}", f"runs_dir={folder}") for seed in range(3)
        )
    return help_seconds, start_seconds


def main() -> None:
    """Measure all forms, print a report, write it if asked, and exit with 1 if a bar is missed."""
    torch.set_num_threads(THREADS)
    if sys.argv[1:] == ["plain"]:
        print(plain_rate())
        return
    output = output_argument(sys.argv[1:])
    rates: dict[str, list[float]] = {name: [] for name in (PLAIN, *OURS, PASSES)}
    shares: dict[str, list[float]] = {name: [] for name in OURS}
    for _ in range(TURNS):
        rates[PLAIN].append(plain_rate_of_its_own_process())
        for name, overrides in OURS.items():
            epoch = trainer_epoch(overrides)
            rates[name].append(epoch.timing["images_per_s"])
            shares[name].append(epoch.timing["criterion"] / epoch.timing["train"])
        rates[PASSES].append(passes_rate())
    help_seconds, start_seconds = command_line_seconds()
    ratio = {
        name: statistics.median(own / plain for own, plain in zip(values, rates[PLAIN], strict=True))
        for name, values in rates.items()
    }
    share = {name: statistics.median(values) for name, values in shares.items()}
    native_bf16 = bool({"avx512_bf16", "amx_bf16"} & processor()[1])
    checks: list[tuple[bool, str]] = [
        (ratio["fp32, channels_last"] >= BAR_FP32, f"fp32 at least {BAR_FP32} times the plain form"),
        (
            not native_bf16 or ratio["bf16, channels_last"] >= BAR_BF16,
            f"bf16 at least {BAR_BF16} times the plain form",
        ),
        (max(share.values()) <= BAR_ISDA_SHARE, f"ISDA at most {BAR_ISDA_SHARE:.0%} of a step"),
        (help_seconds < BAR_HELP_SECONDS, f"--help under {BAR_HELP_SECONDS} s"),
        (start_seconds < BAR_FIRST_STEP_SECONDS, f"first step on digits within {BAR_FIRST_STEP_SECONDS} s"),
    ]
    lines = [
        "# Training: images per second, ResNet-32 on CIFAR-100 with ISDA, batch 128, CPU",
        "",
        f"`python benchmarks/training_rate.py`: {STEPS} steps a turn, medians over {TURNS} turns (of the ratios too),",
        "the forms in turn, the plain form in a process of its own.",
        f"Bars: bf16 at least {BAR_BF16} times the plain form where the CPU has it natively, fp32 at least",
        f"{BAR_FP32} times; ISDA, backward pass and statistics included, {BAR_ISDA_SHARE:.0%} of it at most.",
        "The last row trains nothing: the network's two passes and cross-entropy on one batch, which is all that",
        "PyTorch's kernels leave to a trainer that costs nothing.",
        "",
        "| form | images/s | lowest - highest | ratio | inside ISDA |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, values in rates.items():
        inside = f"{share[name]:.2%}" if name in share else ""
        spread = f"{min(values):,.0f} - {max(values):,.0f}"
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {spread} | {ratio[name]:.2f} | {inside} |")
    lines += [
        "",
        f"`python train.py --help`: {help_seconds:.2f} s (bar {BAR_HELP_SECONDS} s). A run on 64 digits, from the",
        f"shell to the shell, one step and one evaluation: {start_seconds:.1f} s (bar for the first step of a run on",
        f"digits: {BAR_FIRST_STEP_SECONDS:g} s).",
        "",
        *machine(),
    ]
    conclude(lines, (name for holds, name in checks if not holds), output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
