"""The cost of generated images. Prints a table; from the repository root:

python benchmarks/gan/generators.py                                              # some minutes on one core
python benchmarks/gan/generators.py output=results/benchmarks/generators_cpu.md  # also writes what it prints

Images per second of each of Table 4's generators; and the time of training steps of classifiers with CIFAR-10's sizes:
on real images alone, with ISDA, and with a sixth of the images generated. The variants take turns. Weights are random:
training would not change the time.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from isda_repro.config import build, build_loss, build_model, compose, compose_generator
from isda_repro.config.options import parse_options
from isda_repro.data import InMemoryLoader, PadCropFlip, Split, Synthetic
from isda_repro.errors import one_sentence_errors
from isda_repro.gan import Game, ImageGenerator, Shape
from isda_repro.measurements import conclude, machine, output_path
from isda_repro.training.compute import Compute, resolve_compute

KINDS = ("wgan", "cgan", "acgan", "infogan")
SHAPE = Shape(num_classes=10, image_size=32, channels=3)
IMAGES = 1280  # images in the loader: ten batches
SECONDS = 3.0  # duration of each measurement of images/s


@dataclass
class Options:
    """Options of the script.

    Attributes:
        models: classifiers to time, by the names that model= takes.
        turns: timed steps of each variant.
        output: Markdown file to write the report to.
    """

    models: list[str] = field(default_factory=lambda: ["resnet20", "resnet110", "wrn28_10"])
    turns: int = 5
    output: str | None = None


def drawn_generator(kind: str, device: torch.device) -> ImageGenerator:
    """Return an untrained generator of Table 4 for CIFAR-10; a WGAN has one network per class."""
    game: Game = build(compose_generator([f"gan={kind}", "dataset=cifar10"]).gan.game)
    torch.manual_seed(0)
    count = SHAPE.num_classes if game.one_for_each_class else 1
    return ImageGenerator(game, [game.generator(SHAPE).to(device) for _ in range(count)], SHAPE)


def images_per_second(generator: ImageGenerator, batch: int) -> float:
    """Generate batches of ``batch`` images for ``SECONDS`` and return the rate."""
    labels, draws = torch.arange(batch) % SHAPE.num_classes, torch.Generator(generator.device).manual_seed(0)
    generator.sample(labels, draws)
    made, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        generator.sample(labels, draws)
        _wait(generator.device)
        made += batch
    return made / (time.perf_counter() - begin)


def steps(model: str, compute: Compute, turns: int) -> dict[str, float]:
    """Return median seconds of a training step, its batch included: CE, ISDA, and CE with images of each generator."""
    ways: dict[str, Callable[[], None]] = {
        "CE": _step(model, "ce", None, compute),
        "ISDA": _step(model, "isda", None, compute),
        **{kind: _step(model, "ce", kind, compute) for kind in KINDS},
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 2):
        for name, take in ways.items():
            begin = time.perf_counter()
            take()
            _wait(compute.device)
            if turn >= 2:  # the first two turns warm up
                taken[name].append(time.perf_counter() - begin)
    return {name: median(seconds) for name, seconds in taken.items()}


def _step(model: str, loss: str, kind: str | None, compute: Compute) -> Callable[[], None]:
    cfg = compose([f"model={model}", "dataset=cifar10", f"loss={loss}"])
    torch.manual_seed(0)
    network = build_model(cfg, SHAPE.num_classes).to(device=compute.device, memory_format=compute.memory_format)
    criterion = build_loss(cfg, num_classes=SHAPE.num_classes, feature_dim=network.feature_dim).to(compute.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    batches = _endless(cfg.recipe.batch_size, kind, compute)

    def take() -> None:
        images, targets = next(batches)
        optimizer.zero_grad()
        with compute.autocast():
            output = network(images)
        criterion(output.features, output.logits, targets, head=network.head, progress=0.5).backward()
        optimizer.step()

    return take


def _endless(batch_size: int, kind: str | None, compute: Compute) -> Any:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draws)
    loader = InMemoryLoader(
        Split(images, torch.arange(IMAGES) % SHAPE.num_classes),
        batch_size=batch_size,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        augmentation=PadCropFlip(),
        shuffle=True,
        seed=0,
        device=compute.device,
        memory_format=compute.memory_format,
        synthetic=None if kind is None else Synthetic(drawn_generator(kind, compute.device), 1 / 6),
    )
    epoch = 0
    while True:
        epoch += 1
        yield from loader.epoch(epoch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(options: Options, compute: Compute) -> list[str]:
    """Measure the generators and classifiers and return the lines of the report."""
    lines = [
        f"# What generated images cost, {compute.hardware}, {torch.get_num_threads()} thread, {compute.precision}",
        "",
        "`python benchmarks/gan/generators.py`: images per second of generators alone, fp32, in batches of 22 (a",
        "sixth of 128) and of 500; and steps of classifiers with CIFAR-10's sizes, the batch made in them, medians,",
        "the ways taking turns: beside cross-entropy's milliseconds what each adds.",
        "",
        "| generator | images/s, 22 at once | images/s, 500 at once |",
        "| --- | ---: | ---: |",
    ]
    for kind in KINDS:
        generator = drawn_generator(kind, compute.device)
        few, many = (images_per_second(generator, batch) for batch in (22, 500))
        lines.append(f"| {kind} | {few:,.0f} | {many:,.0f} |")
    lines += ["", "| classifier | ms, CE | ISDA | " + " | ".join(KINDS) + " |", "| --- " + "| ---: " * 6 + "|"]
    for model in options.models:
        found = steps(model, compute, options.turns)
        plain = found["CE"]
        more = (f"{found[name] / plain - 1:+.1%}" for name in ("ISDA", *KINDS))
        lines.append(f"| {model} | {1000 * plain:,.0f} | " + " | ".join(more) + " |")
    return [*lines, "", *machine()]


def main(arguments: Sequence[str]) -> None:
    """Print the report, and write it if ``output=`` names a file."""
    options = parse_options(Options, arguments)
    output = output_path(options.output)
    compute = resolve_compute(compose(["model=resnet20", "dataset=cifar10"]).compute)
    compute.apply()
    conclude(report(options, compute), [], output)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
