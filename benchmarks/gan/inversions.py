"""Appendix C's images per minute: many at once against one by one. Prints a table; from the repository root:

python benchmarks/gan/inversions.py                                              # some minutes on two cores
python benchmarks/gan/inversions.py output=results/benchmarks/inversion_cpu.md   # also writes what it prints

Iterations of Step I (equation 15) with the paper's networks: ResNet-32 and a WGAN's generators, 32 x 32 pixels, images
of one class and of ten. Weights are random: training would not change the time. One image per minute means 10,000
iterations in a minute. Batch sizes take turns, and each time is a median. The run also checks that the numbers found
for several images at once are those found one by one.
"""

import sys
import time
from collections.abc import Sequence
from itertools import product
from statistics import median

import torch
from torch import Tensor

from isda_repro.config import build, build_model, compose, compose_generator
from isda_repro.errors import one_sentence_errors
from isda_repro.gan import Game, ImageGenerator, Shape
from isda_repro.inversion import STEP_ONE, Descent, FeatureMap, Reversal, descend
from isda_repro.inversion.objectives import in_unit_range
from isda_repro.measurements import conclude, machine, output_argument
from isda_repro.training.compute import Compute, resolve_compute

SHAPE = Shape(num_classes=10, image_size=32, channels=3)
LEAST_FACTOR = 1.5  # required speed-up of many images at once over one by one


SIZES, ITERATIONS, TURNS = (1, 4, 16, 64), 20, 5


def reversal_of(compute: Compute) -> Reversal:
    """Return the paper's networks with random weights: ResNet-32 and the ten generators of a WGAN."""
    cfg = compose(["model=resnet32", "dataset=cifar10"])
    game: Game = build(compose_generator(["gan=wgan", "dataset=cifar10"]).gan.game)
    torch.manual_seed(0)
    network = build_model(cfg, SHAPE.num_classes).to(device=compute.device, memory_format=compute.memory_format)
    generators = [game.generator(SHAPE).to(compute.device).requires_grad_(False) for _ in range(SHAPE.num_classes)]
    features = FeatureMap(network, cfg.dataset.mean, cfg.dataset.std, compute.memory_format)
    return Reversal(ImageGenerator(game, generators, SHAPE), features)


def sought(reversal: Reversal, images: Tensor, labels: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Run Step I for these images and return z after ``iterations`` iterations, at least 4."""
    device = reversal.features.device
    wanted, real = reversal.features.of_pixels(images), in_unit_range(images).to(device)

    def objective(z: Tensor) -> Tensor:
        return reversal.first_objective(z, labels, wanted, real, 0.01)

    return descend(start.to(device), objective, Descent(STEP_ONE.lr, iterations), lambda *_: None).cpu()


def report(
    compute: Compute, sizes: Sequence[int] = SIZES, iterations: int = ITERATIONS, turns: int = TURNS
) -> tuple[list[str], list[str]]:
    """Measure, and return the lines of the report and the bars that were missed."""
    reversal, draws = reversal_of(compute), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (max(sizes), 3, 32, 32), dtype=torch.uint8, generator=draws)
    start = torch.randn(len(images), reversal.generator.game.noise_dim, generator=draws)
    labels = {1: torch.zeros(len(images), dtype=torch.int64), 10: torch.arange(len(images)) % SHAPE.num_classes}
    taken: dict[tuple[int, int], list[float]] = {way: [] for way in product(sizes, labels) if way != (1, 10)}
    for turn in range(turns + 1):
        for size, classes in taken:
            begin = time.perf_counter()
            sought(reversal, images[:size], labels[classes][:size], start[:size], iterations)
            if turn:  # the first turn warms up
                taken[size, classes].append((time.perf_counter() - begin) / iterations)
    milliseconds = {way: 1000 * median(seconds) for way, seconds in taken.items()}
    rates = {way: 60_000 * way[0] / (one * STEP_ONE.iterations) for way, one in milliseconds.items()}
    alone = rates[sizes[0], 1]
    lines = [
        f"# Images per minute of Appendix C, {compute.hardware}, {torch.get_num_threads()} threads, fp32",
        "",
        "`python benchmarks/gan/inversions.py`: a step of the appendix, 10,000 iterations, ResNet-32 and a WGAN's",
        "generators, one for each class; an image with five augmentations takes six.",
        "",
        "| images at once | of so many classes | ms an iteration | images a minute | of one by one |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for (size, classes), rate in rates.items():
        shown = f"{milliseconds[size, classes]:.1f} | {rate:.2f} | {rate / alone:.2f}"
        lines.append(f"| {size} | {min(size, classes)} | {shown} |")
    few = min(4, len(images))
    together = sought(reversal, images[:few], labels[10][:few], start[:few], 10)
    rows = [slice(row, row + 1) for row in range(few)]
    singly = torch.cat([sought(reversal, images[row], labels[10][row], start[row], 10) for row in rows])
    apart = float((together - singly).norm() / singly.norm())
    lines += ["", f"After ten iterations the numbers found for {few} together differ by {apart:.1e} of their norm"]
    lines += ["from those found one by one.", "", *machine()]
    factor = max(rates.values()) / alone
    missed = [] if factor >= LEAST_FACTOR else [f"{factor:.2f} times the images a minute, and not {LEAST_FACTOR}"]
    return lines, [*missed, *([] if apart < 1e-2 else ["images that are sought together disturb each other"])]


def main(arguments: list[str]) -> None:
    """Print the report, write it if asked, and exit with 1 if a bar is missed."""
    output = output_argument(arguments)
    compute = resolve_compute({**compose(["model=resnet32", "dataset=cifar10"]).compute, "precision": "fp32"})
    compute.apply()
    conclude(*report(compute), output)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
