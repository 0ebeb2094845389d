"""Show ISDA's semantic directions in real images. From the repository root:

python scripts/directions.py classifier=runs/<run_id>                               # of loss=isda
python scripts/directions.py classifier=... "images=[7,12]" directions=4 "steps=[-4,-2,2,4]" lambda=0.5
python scripts/directions.py classifier=... output=results/directions

The features of an image are moved by k sqrt(lambda) standard deviations along the principal directions of its class's
covariance, the widest first. The script shows the real image with the nearest features, which is what the augmented
features look like to the classifier. It writes directions.png, directions.md and directions.json into output=, by
default the classifier's folder. Also: count=4 (number of images if images= is not given: the first ones of each class),
classes=[0,1] (classes of these images, by default all), part=train|test (part of the data set that all images are
from), device=auto, data_dir=.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config.options import parse_options
from isda_repro.files import folder_for
from isda_repro.measurements import machine

if TYPE_CHECKING:
    from torch import Tensor

    from isda_repro.data import Split
    from isda_repro.evaluation import FinishedRun

LONGEST_STEP, LARGEST_LAMBDA = 1000, 1e6  # beyond these no image is near, and numbers overflow
PICTURE, PAGE, NUMBERS = "directions.png", "directions.md", "directions.json"


@dataclass
class DirectionsOptions:
    """Options of this script; ``lambda_``: null for the final strength that the classifier was trained with."""

    classifier: str = MISSING
    images: list[int] | None = None
    count: int = 4
    classes: list[int] | None = None
    part: str = "train"
    directions: int = 3
    steps: list[float] = field(default_factory=lambda: [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    lambda_: float | None = None
    device: str = "auto"
    data_dir: str | None = None
    output: str | None = None


def checked(options: DirectionsOptions, classifier: "FinishedRun") -> tuple[float, list[int]]:
    """Check the options, and return lambda and the classes to take images from.

    Raises:
        UserError: an option is out of range.
    """
    isda, classes = classifier.isda, classifier.source.num_classes
    if not 1 <= options.directions <= isda.feature_dim:
        raise UserError(f"directions={options.directions} must be a whole number from 1 to {isda.feature_dim}")
    steps = options.steps
    if not steps or len({*steps}) < len(steps) or not all(abs(one) <= LONGEST_STEP for one in steps):
        raise UserError(f"steps={steps} must be some numbers from -{LONGEST_STEP} to {LONGEST_STEP}, each once")
    strength = isda.lambda_0 if options.lambda_ is None else options.lambda_
    if not 0 <= strength <= LARGEST_LAMBDA:
        raise UserError(f"lambda={strength} must be a number from 0 to {LARGEST_LAMBDA}")
    wanted = list(range(classes)) if options.classes is None else options.classes
    if not wanted or len({*wanted}) < len(wanted) or not all(0 <= one < classes for one in wanted):
        raise UserError(f"classes={wanted} must be some of 0 to {classes - 1}, each once")
    return strength, wanted


def looked_for(
    classifier: "FinishedRun", split: "Split", indices: list[int], options: DirectionsOptions, strength: float
) -> list[dict[str, Any]]:
    """Return a row for each image and direction, with the nearest real image of every step."""
    from isda_repro.inversion.directions import neighbours
    from isda_repro.inversion.loading import feature_map

    names, rows = classifier.source.class_names, []
    features = feature_map(classifier).of_pixels(split.images).double().cpu()
    how: dict[str, Any] = {"directions": options.directions, "steps": sorted(options.steps), "strength": strength}
    for index in indices:
        label = int(split.targets[index])
        around = neighbours(index, features, classifier.isda.class_covariance(label).cpu(), **how)
        rows += [
            {
                "index": index,
                "class": names[label],
                "direction": number + 1,
                "share_of_variance": float(around.directions.share[number]),
                "nearest": nearest.tolist(),
                "classes": [names[one] for one in split.targets[nearest].tolist()],
                "distance": around.distances[number].tolist(),
                "moved": around.moved[number].tolist(),
            }
            for number, nearest in enumerate(around.indices)
        ]
    return rows


def picture(split: "Split", rows: list[dict[str, Any]], steps: list[float]) -> "Tensor":
    """Draw a row per direction: the image between the nearest images; images of another class are framed."""
    import torch

    from isda_repro.inversion.report import titled

    below = sum(step < 0 for step in steps)
    shown = torch.tensor([[*row["nearest"][:below], row["index"], *row["nearest"][below:]] for row in rows])
    images, labels = split.images[shown], split.targets[shown]
    columns = [f"{step:+g}" for step in steps]
    titles = [f"{row['class']} {row['index']}, direction {row['direction']}" for row in rows]
    return titled(images, [*columns[:below], "image", *columns[below:]], titles, labels != labels[:, below, None])


def page(found: dict[str, Any], command: str) -> str:
    """Return the picture, the settings and the numbers as Markdown."""
    steps, rows = found["steps"], found["rows"]
    same = sum(name == row["class"] for row in rows for name in row["classes"]) / (len(rows) * len(steps))
    lines = [
        "# Semantic directions in real images",
        "",
        f"![an image, moved along principal directions of its class]({PICTURE})",
        "",
        "A row: a principal direction of the covariance of the image's class. A column: k; there, the real image whose",
        "features are nearest to a + k sqrt(λ) times the deviation along the direction. Framed: of another class.",
        "",
        f"- features and covariances of `{found['classifier']}`, error on its {found['evaluated_on']} set "
        f"{found['error']:.2f}%",
        f"- among all {found['candidates']:,} images of its {found['part']} set; λ = {found['lambda']:g}",
        f"- {same:.0%} of the nearest images are of the image's own class",
        f"- `{command}`",
        f"- {' '.join(machine())}",
        "",
        "Of each step: how far the feature was moved, and how far the nearest image's features then are.",
        "",
        "| image | direction | of the variance | " + " | ".join(f"{step:+g}" for step in steps) + " |",
        "| --- | ---: | ---: " + "| ---: " * len(steps) + "|",
    ]
    for row in rows:
        pairs = (f"{moved:.2f}, {left:.2f}" for moved, left in zip(row["moved"], row["distance"], strict=True))
        named = f"{row['class']} {row['index']} | {row['direction']} | {row['share_of_variance']:.0%}"
        lines.append(f"| {named} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Find the nearest images, write the files and print the numbers."""
    options = parse_options(DirectionsOptions, arguments)
    from isda_repro.evaluation import load_finished_run
    from isda_repro.inversion.loading import choose_images, name_of, split_of
    from isda_repro.inversion.report import write_texts
    from isda_repro.sheets import write_picture

    classifier = load_finished_run(Path(options.classifier), options.device, options.data_dir)
    split, (strength, classes) = split_of(classifier.source, options.part), checked(options, classifier)
    indices = choose_images(split, options.images, options.count, classes).tolist()
    output = folder_for(Path(options.output or options.classifier), PICTURE, PAGE, NUMBERS)
    record = {
        "classifier": classifier.cfg.run_id,
        "error": classifier.result.test_error_final,
        "evaluated_on": classifier.source.evaluated_on,
        "part": name_of(classifier.source, options.part),
        "candidates": len(split),
        "lambda": strength,
        "steps": sorted(options.steps),
        "rows": looked_for(classifier, split, indices, options, strength),
    }
    write_picture(output / PICTURE, picture(split, record["rows"], record["steps"]))
    text = page(record, f"python scripts/directions.py {shlex.join(arguments)}")
    write_texts(output, {NUMBERS: json.dumps(record, indent=1, sort_keys=True, allow_nan=False), PAGE: text})
    print("\n".join([*text.splitlines()[-len(record["rows"]) - 2 :], str(output / PICTURE)]))


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
