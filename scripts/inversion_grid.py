"""Try values of eta and lambda, which Appendix C leaves open, on a few images. From the repository root:

python scripts/inversion_grid.py generator=runs/<run_id> classifier=runs/<run_id> output=results/inversion/grid
python scripts/inversion_grid.py generator=... classifier=... output=... "etas=[0,0.01,1]" "lambdas=[0.5,2]" eta=0.01

Runs Step I with each of etas=. Then, starting from the result for eta=, it runs Step II on features that are moved with
each of lambdas=, always in the same direction. Writes etas.png, lambdas.png and grid.md into output=, and prints
grid.md. All other options are those of invert.py.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config.options import parse_options
from isda_repro.files import folder_for
from isda_repro.measurements import machine

if TYPE_CHECKING:
    from torch import Tensor

    from isda_repro.inversion import Reversal
    from isda_repro.losses import ISDALoss


@dataclass
class GridOptions:
    """Options of this script."""

    generator: str = MISSING
    classifier: str = MISSING
    output: str = MISSING
    images: list[int] | None = None
    count: int = 3
    part: str = "train"
    etas: list[float] = field(default_factory=lambda: [0.0, 0.001, 0.01, 0.1, 1.0])
    lambdas: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0, 2.0, 4.0])
    eta: float = 0.01
    iterations: int = 10_000
    seed: int = 0
    at_once: int = 64
    device: str = "auto"
    data_dir: str | None = None


@dataclass
class Few:
    """Images that both steps are tried on, and the settings.

    Rows of tensors are ordered by image, and within an image by the values in their order.
    """

    reversal: "Reversal"
    images: "Tensor"
    labels: "Tensor"
    indices: "Tensor"
    options: GridOptions
    bar: "Callable[[int, Tensor], None]"


def of_etas(few: Few) -> "tuple[list[str], Tensor, Tensor]":
    """Run Step I with every eta.

    Returns:
        lines of a table, pictures [N, etas, ...], and the generator's inputs found with ``options.eta``.
    """
    import torch

    from isda_repro.inversion import STEP_ONE, step_one
    from isda_repro.inversion.reversal import distances_of, pixels_of, start_of

    options, many = few.options, len(few.options.etas)
    start = start_of(few.indices, few.reversal.generator.game.noise_dim, options.seed)
    images, labels, start = (rows.repeat_interleave(many, 0) for rows in (few.images, few.labels, start))
    z = step_one(
        few.reversal,
        images,
        labels,
        start,
        eta=torch.tensor(options.etas).repeat(len(few.indices)),
        descent=replace(STEP_ONE, iterations=options.iterations),
        at_once=options.at_once,
        advance=few.bar,
    )
    distances = distances_of(few.reversal, z, labels, images, options.at_once)
    features, pixels = (one.view(-1, many).mean(0).tolist() for one in distances)
    lines = ["| η | features | pixels |", "| ---: | ---: | ---: |"]
    lines += [f"| {eta:g} | {a:.3g} | {b:.3g} |" for eta, a, b in zip(options.etas, features, pixels, strict=True)]
    made = pixels_of(few.reversal, z, labels, options.at_once)
    return lines, made.unflatten(0, (-1, many)), z[options.etas.index(options.eta) :: many]


def of_lambdas(few: Few, isda: "ISDALoss", found: "Tensor") -> "tuple[list[str], Tensor]":
    """Run Step II with every lambda, starting from the generator's inputs ``found`` by Step I.

    Returns:
        lines of a table, and pictures [N, lambdas, ...].
    """
    import torch

    from isda_repro.inversion import STEP_TWO, augmented, step_two
    from isda_repro.inversion.reversal import in_parts, pixels_of

    options, many = few.options, len(few.options.lambdas)
    features = few.reversal.features.of_pixels(few.images)
    moved = [
        augmented(features, few.labels, isda.class_covariance, one, draws=1, seed=options.seed, numbers=few.indices)
        for one in options.lambdas
    ]
    wanted, labels = torch.cat(moved, dim=1).flatten(0, 1), few.labels.repeat_interleave(many)
    begin = found.repeat_interleave(many, 0)
    descent = replace(STEP_TWO, iterations=options.iterations)
    z = step_two(few.reversal, wanted, labels, begin, descent=descent, at_once=options.at_once, advance=few.bar)
    left = partial(in_parts, options.at_once, few.reversal.second_objective)
    with torch.no_grad():
        before, after = (left(one, labels, wanted).view(-1, many).mean(0).tolist() for one in (begin, z))
    far = (torch.cat(moved, dim=1) - features[:, None]).square().sum(2).mean(0).tolist()
    lines = ["| λ | moved by | before | after |", "| ---: | ---: | ---: | ---: |"]
    rows = zip(options.lambdas, far, before, after, strict=True)
    lines += [f"| {one:g} | {a:.3g} | {b:.3g} | {c:.3g} |" for one, a, b, c in rows]
    return lines, pixels_of(few.reversal, z, labels, options.at_once).unflatten(0, (-1, many))


def page(options: GridOptions, images: int, etas: list[str], lambdas: list[str], command: str) -> str:
    """Return the page as Markdown."""
    return "\n".join(
        [
            "# η and λ of Appendix C",
            "",
            f"`{command}`:",
            f"{options.iterations:,} iterations of each step, means of squared distances over {images} images.",
            "",
            "## η of equation 15: reconstructions",
            "",
            "![reconstructions](etas.png)",
            "",
            *etas,
            "",
            f"## λ of equation 1: augmentations, from the reconstructions with η = {options.eta:g}",
            "",
            "![augmentations](lambdas.png)",
            "",
            "Equation 16 before and after, and how far the features were moved.",
            "",
            *lambdas,
            "",
            *machine(),
        ]
    )


def checked(options: GridOptions) -> None:
    """Check all combinations of eta and lambda as ``invert.py`` does.

    Raises:
        UserError: a value is out of range, ``eta`` is not one of ``etas``, or ``lambdas`` is empty.
    """
    from isda_repro.inversion import STEP_ONE, Settings

    if options.eta not in options.etas or not options.lambdas:
        raise UserError(f"eta={options.eta} must be one of etas={options.etas}, and lambdas= must have some")
    first = replace(STEP_ONE, iterations=options.iterations)
    for eta, strength in product(options.etas, options.lambdas):
        Settings(eta=eta, strength=strength, seed=options.seed, at_once=options.at_once, first=first)


def main(arguments: list[str]) -> None:
    """Run both steps, write the files and print the page."""
    options = parse_options(GridOptions, arguments)
    checked(options)
    import torch

    from isda_repro.inversion.loading import choose_images, load_reversal, split_of
    from isda_repro.inversion.report import titled, write_texts
    from isda_repro.inversion.search_progress import InversionProgress
    from isda_repro.sheets import write_picture

    folders = Path(options.generator), Path(options.classifier)
    reversal, classifier = load_reversal(*folders, options.device, options.data_dir)
    split, isda = split_of(classifier.source, options.part), classifier.isda
    indices = choose_images(split, options.images, options.count, reversal.generator.classes)
    output = folder_for(Path(options.output), "etas.png", "lambdas.png", "grid.md")
    values = len(options.etas) + len(options.lambdas)
    with InversionProgress(len(indices) * values * options.iterations) as bar:
        few = Few(reversal, split.images[indices], split.targets[indices], indices, options, bar)
        eta_lines, reconstructions, found = of_etas(few)
        lambda_lines, augmentations = of_lambdas(few, isda, found)
    rows = [f"{classifier.source.class_names[int(split.targets[one])]} {one}" for one in indices.tolist()]
    original, best = few.images[:, None], reconstructions[:, options.etas.index(options.eta), None]
    columns = ["original", *(f"η = {eta:g}" for eta in options.etas)]
    write_picture(output / "etas.png", titled(torch.cat([original, reconstructions], 1), columns, rows))
    columns = ["original", "restored", *(f"λ = {one:g}" for one in options.lambdas)]
    write_picture(output / "lambdas.png", titled(torch.cat([original, best, augmentations], 1), columns, rows))
    command = f"python scripts/inversion_grid.py {shlex.join(arguments)}"
    text = page(options, len(indices), eta_lines, lambda_lines, command)
    write_texts(output, {"grid.md": text})
    print(text)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
