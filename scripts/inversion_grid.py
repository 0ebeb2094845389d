"""What Appendix C leaves open, eta and lambda, tried on a few images. From the repository root:

python scripts/inversion_grid.py generator=runs/<run_id> classifier=runs/<run_id> output=results/inversion/grid
python scripts/inversion_grid.py ... "etas=[0,0.01,1]" "lambdas=[0.5,2]" count=3 eta=0.01

Step I with each of etas=; then, from what it found with eta=, Step II of a feature moved with each of lambdas=, always
along the same direction. Writes etas.png, lambdas.png and grid.md into output=, and prints the latter. The options are
those of invert.py otherwise.
"""

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarking import machine
from omegaconf import MISSING

from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.options import parse_options

if TYPE_CHECKING:
    from torch import Tensor

    from isda_repro.data import Split
    from isda_repro.inversion import Reversal
    from isda_repro.losses import ISDALoss


@dataclass
class GridOptions:
    """What this script takes."""

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


class Grid:
    """Of a few images. All rows are image by image, and of each the values in their order."""

    def __init__(self, options: GridOptions, reversal: "Reversal", split: "Split", indices: "Tensor") -> None:
        from isda_repro.inversion.progress import InversionProgress

        self.options, self.reversal, self.indices = options, reversal, indices
        self.images, self.labels = split.images[indices], split.targets[indices]
        of_all = len(indices) * (len(options.etas) + len(options.lambdas)) * options.iterations
        self.bar = InversionProgress(of_all)
        self._how: dict[str, Any] = {"at_once": options.at_once, "advance": self.bar}

    def etas(self) -> "tuple[list[str], Tensor, Tensor]":
        """Lines, pictures, and the numbers found with eta=."""
        import torch

        from isda_repro.inversion import STEP_ONE, step_one
        from isda_repro.inversion.reversal import distances_of, pixels_of, start_of

        options, many = self.options, len(self.options.etas)
        start = start_of(self.indices, self.reversal.generator.game.noise_dim, options.seed)
        images, labels, start = (one.repeat_interleave(many, 0) for one in (self.images, self.labels, start))
        of_each = torch.tensor(options.etas).repeat(len(self.indices))
        descent = replace(STEP_ONE, iterations=options.iterations)
        z = step_one(self.reversal, images, labels, start, eta=of_each, descent=descent, **self._how)
        both = distances_of(self.reversal, z, labels, images, options.at_once)
        features, pixels = (one.unflatten(0, (-1, many)).mean(0).tolist() for one in both)
        lines = ["| η | features | pixels |", "| ---: | ---: | ---: |"]
        lines += [f"| {eta:g} | {a:.3g} | {b:.3g} |" for eta, a, b in zip(options.etas, features, pixels, strict=True)]
        made = pixels_of(self.reversal, z, labels, options.at_once)
        return lines, made.unflatten(0, (-1, many)), z[options.etas.index(options.eta) :: many]

    def lambdas(self, isda: "ISDALoss", begin: "Tensor") -> "tuple[list[str], Tensor]":
        """Lines and pictures, from the numbers that Step I found."""
        import torch

        from isda_repro.inversion import STEP_TWO, augmented, step_two
        from isda_repro.inversion.reversal import in_parts, pixels_of

        options, many = self.options, len(self.options.lambdas)
        features = self.reversal.features.of_pixels(self.images)
        which: dict[str, Any] = {"draws": 1, "seed": options.seed, "numbers": self.indices}
        moved = [augmented(features, self.labels, isda.class_covariance, one, **which) for one in options.lambdas]
        wanted, labels = torch.cat(moved, dim=1).flatten(0, 1), self.labels.repeat_interleave(many)
        begin, descent = begin.repeat_interleave(many, 0), replace(STEP_TWO, iterations=options.iterations)
        z = step_two(self.reversal, wanted, labels, begin, descent=descent, **self._how)
        with torch.no_grad():
            ends = (
                in_parts(options.at_once, self.reversal.second_objective, one, labels, wanted) for one in (begin, z)
            )
            before, after = (one.unflatten(0, (-1, many)).mean(0).tolist() for one in ends)
        far = (torch.cat(moved, dim=1) - features[:, None]).square().sum(2).mean(0).tolist()
        lines = ["| λ | moved by | before | after |", "| ---: | ---: | ---: | ---: |"]
        rows = zip(options.lambdas, far, before, after, strict=True)
        lines += [f"| {one:g} | {a:.3g} | {b:.3g} | {c:.3g} |" for one, a, b, c in rows]
        return lines, pixels_of(self.reversal, z, labels, options.at_once).unflatten(0, (-1, many))


def main(arguments: list[str]) -> None:
    """Try them, write, print."""
    options = parse_options(GridOptions, arguments)
    if options.eta not in options.etas or not options.lambdas:
        raise UserError(f"eta={options.eta} must be one of etas={options.etas}, and lambdas= must have some")
    if not all(0 <= one < float("inf") for one in [*options.etas, *options.lambdas]):
        raise UserError("etas= and lambdas= must be numbers from 0 on")
    import torch

    from isda_repro.files import written_whole
    from isda_repro.gan.pictures import write_picture
    from isda_repro.inversion.chosen import chosen, part_of
    from isda_repro.inversion.loading import load_reversal
    from isda_repro.inversion.pictures import titled

    folders = Path(options.generator), Path(options.classifier)
    reversal, classifier = load_reversal(*folders, options.device, options.data_dir)
    split, output = part_of(classifier.source, options.part), Path(options.output)
    indices = chosen(split, options.images, options.count, reversal.generator.classes)
    output.mkdir(parents=True, exist_ok=True)
    grid, isda = Grid(options, reversal, split, indices), classifier.isda
    of_etas, reconstructions, begin = grid.etas()
    of_lambdas, augmentations = grid.lambdas(isda, begin)
    grid.bar.close()
    rows = [f"{classifier.source.class_names[int(split.targets[one])]} {one}" for one in indices.tolist()]
    original, best = grid.images[:, None], reconstructions[:, options.etas.index(options.eta), None]
    columns = ["original", *(f"η = {eta:g}" for eta in options.etas)]
    write_picture(output / "etas.png", titled(torch.cat([original, reconstructions], 1), columns, rows))
    columns = ["original", "restored", *(f"λ = {one:g}" for one in options.lambdas)]
    write_picture(output / "lambdas.png", titled(torch.cat([original, best, augmentations], 1), columns, rows))
    text = "\n".join(
        [
            "# η and λ of Appendix C",
            "",
            f"`python scripts/inversion_grid.py {shlex.join(arguments)}`:",
            f"{options.iterations:,} iterations of each step, means of squared distances over {len(indices)} images.",
            "",
            "## η of equation 15: reconstructions",
            "",
            "![reconstructions](etas.png)",
            "",
            *of_etas,
            "",
            f"## λ of equation 1: augmentations, from the reconstructions with η = {options.eta:g}",
            "",
            "![augmentations](lambdas.png)",
            "",
            *of_lambdas,
            "",
            *machine(),
        ]
    )
    with written_whole(output / "grid.md") as file:
        file.write(f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
