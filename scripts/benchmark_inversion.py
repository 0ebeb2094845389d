"""Appendix C's images per minute: many at once against one by one. Prints a table; from the repository root:

python scripts/benchmark_inversion.py                                              # some minutes on two cores
python scripts/benchmark_inversion.py output=results/benchmarks/inversion_cpu.md   # also writes what it prints

Iterations of Step I (equation 15) with the paper's networks, ResNet-32 and a WGAN's generator, 32 x 32 pixels; weights
are drawn, not trained: the time is the same. An image a minute is 10,000 such iterations in a minute. The ways take
turns, and each is a median. In the same run it is looked at whether the numbers found are those found one by one.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from benchmarking import conclude, machine
from torch import Tensor

from isda_repro.config import build, build_model, compose, compose_generator
from isda_repro.errors import one_sentence_errors
from isda_repro.gan import Game, ImageGenerator, Shape
from isda_repro.inversion import STEP_ONE, Descent, FeatureMap, Reversal, descend
from isda_repro.inversion.features import in_unit_range
from isda_repro.options import parse_options
from isda_repro.training.compute import Compute, resolve

SHAPE = Shape(num_classes=10, image_size=32, channels=3)
LEAST_FACTOR = 1.5  # many at once must be so much faster than one by one


@dataclass
class Options:
    """``sizes``: images at once; ``iterations``: of each measurement; ``turns``: of each size."""

    sizes: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    iterations: int = 20
    turns: int = 5
    output: str | None = None


def reversal_of(compute: Compute) -> Reversal:
    """Of the paper's networks, as they are drawn."""
    cfg = compose(["model=resnet32", "dataset=cifar10"])
    game: Game = build(compose_generator(["gan=wgan", "dataset=cifar10"]).gan.game)
    torch.manual_seed(0)
    network = build_model(cfg, SHAPE.num_classes).to(device=compute.device, memory_format=compute.memory_format)
    generators = [game.generator(SHAPE).to(compute.device).requires_grad_(False) for _ in range(SHAPE.num_classes)]
    features = FeatureMap(network, cfg.dataset.mean, cfg.dataset.std, compute.memory_format)
    return Reversal(ImageGenerator(game, generators, SHAPE), features)


def found(reversal: Reversal, images: Tensor, start: Tensor, iterations: int) -> Tensor:
    """What Step I has of these after so many iterations; all of one class, as of a generator for one."""
    device, labels = reversal.features.device, torch.zeros(len(images), dtype=torch.int64)
    wanted, real = reversal.features.of_pixels(images), in_unit_range(images).to(device)

    def objective(z: Tensor) -> Tensor:
        return reversal.first_objective(z, labels, wanted, real, 0.01)

    settings = Descent(STEP_ONE.lr, max(4, iterations))
    return descend(start.to(device), objective, settings, lambda *_: None).cpu()


def seconds(reversal: Reversal, images: Tensor, start: Tensor, options: Options) -> dict[int, float]:
    """Of one iteration, for each number of images."""
    taken: dict[int, list[float]] = {size: [] for size in options.sizes}
    for turn in range(options.turns + 1):
        for size in options.sizes:
            begin = time.perf_counter()
            found(reversal, images[:size], start[:size], options.iterations)
            if turn:  # the first ones warm up
                taken[size].append((time.perf_counter() - begin) / options.iterations)
    return {size: median(all_of_it) for size, all_of_it in taken.items()}


def report(options: Options, compute: Compute) -> tuple[list[str], list[str]]:
    """The lines that are printed, and the bars that were missed."""
    reversal, draws = reversal_of(compute), torch.Generator().manual_seed(0)
    most = max(options.sizes)
    images = torch.randint(0, 256, (most, 3, 32, 32), dtype=torch.uint8, generator=draws)
    start = torch.randn(most, reversal.generator.game.noise_dim, generator=draws)
    taken = seconds(reversal, images, start, options)
    per_minute = {size: 60 * size / (taken[size] * STEP_ONE.iterations) for size in options.sizes}
    alone = per_minute[options.sizes[0]]
    lines = [
        f"# Images per minute of Appendix C, {compute.hardware}, {torch.get_num_threads()} threads, fp32",
        "",
        "`python scripts/benchmark_inversion.py`: a step of the appendix, 10,000 iterations, ResNet-32 and a WGAN's",
        "generator; an image with five augmentations takes six.",
        "",
        "| images at once | ms an iteration | images a minute | of one by one |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for size, rate in per_minute.items():
        lines.append(f"| {size} | {1000 * taken[size]:.1f} | {rate:.2f} | {rate / alone:.2f} |")
    few = images[: min(4, most)]
    together = found(reversal, few, start[: len(few)], 10)
    singly = torch.cat([found(reversal, few[i : i + 1], start[i : i + 1], 10) for i in range(len(few))])
    apart = float((together - singly).norm() / singly.norm())
    lines += ["", f"After ten iterations the numbers found for {len(few)} together differ by {apart:.1e} of their norm"]
    lines += ["from those found one by one.", "", *machine()]
    factor = max(per_minute.values()) / alone
    missed = [] if factor >= LEAST_FACTOR else [f"{factor:.2f} times the images a minute, and not {LEAST_FACTOR}"]
    return lines, [*missed, *([] if apart < 1e-2 else ["images that are sought together disturb each other"])]


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parse_options(Options, arguments)
    compute = resolve({**compose(["model=resnet32", "dataset=cifar10"]).compute, "precision": "fp32"})
    compute.apply()
    conclude(*report(options, compute), None if options.output is None else Path(options.output))


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
