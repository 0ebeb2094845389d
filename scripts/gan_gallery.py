"""Write a page about trained generators, with their last sample grids, settings and quality. From the repository root:

python scripts/gan_gallery.py runs=[runs/<run_id>,runs/<run_id>] output=results/generators/digits.md

The grids are copied into the folder of the page. Run ``gan_quality.py`` on each generator first.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isda_repro.errors import check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config import compose_generator, read_frozen_generator
from isda_repro.config.checks import GENERATORS, ConfigError
from isda_repro.config.options import parse_options
from isda_repro.files import SMALL, TEXTS, check_output, open_regular, write_output
from isda_repro.runs.generator_records import GeneratorResult, read_generator_result
from isda_repro.runs.strict_json import parsed

HEAD = (
    "| generator | epochs | its steps | seconds | classified as asked | Frechet distance | of training images |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)

NUMBERS = (
    *("images", "accuracy", "accuracy_of_real"),
    *("frechet_distance_in_own_features", "frechet_distance_of_training_images"),
)


@dataclass
class GalleryOptions:
    """``runs``: folders of finished generators; ``output``: file of the page."""

    runs: list[str] = MISSING
    output: str = MISSING


def described(folder: Path) -> tuple[GeneratorResult, dict[str, Any], Path]:
    """Return a generator's result, its quality, and the path of its last sample grid.

    Raises:
        ConfigError: quality.json is missing or damaged, or result.json is of no kind of generator.
    """
    result, quality = read_generator_result(folder / "result.json"), folder / "quality.json"
    try:
        with open_regular(quality, SMALL) as file:
            found = parsed(file.read())
        if not isinstance(found["classifier"], str) or not all(math.isfinite(found[name]) for name in NUMBERS):
            raise ValueError
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        written_by = f"python scripts/gan_quality.py generator={folder} classifier=... writes it"
        raise ConfigError(f"{quality} is not there, or not whole: {written_by}") from error
    if result.choices.get("gan") not in GENERATORS:
        raise ConfigError(f"{folder / 'result.json'} is damaged: it names no kind of generator")
    return result, found, folder / "samples" / f"epoch-{result.epochs:05}.png"


def page(runs: list[Path], output: Path) -> str:
    """Return the page as Markdown, and copy the grids next to ``output``.

    Raises:
        ConfigError: the generators were not judged in the same way, or two are of the same kind.
    """
    rows: list[str] = []
    pictures: list[str] = []
    all_described = [described(folder) for folder in runs]
    if len({(quality["classifier"], quality["images"]) for _, quality, _ in all_described}) != 1:
        raise ConfigError("runs= were judged by different classifiers, or on different numbers of images")
    for folder, (result, quality, grid) in zip(runs, all_described, strict=True):
        kind = result.choices["gan"]
        if any(row.startswith(f"| {kind} |") for row in rows):
            raise ConfigError(f"runs= has two generators of gan={kind}: a page shows one of each")
        rows.append(
            f"| {kind} | {result.epochs:,} | {result.generator_steps:,} | {result.timing['train']:,.0f} | "
            f"{quality['accuracy']:.1f}% | {quality['frechet_distance_in_own_features']:.3f} | "
            f"{quality['frechet_distance_of_training_images']:.3f} |"
        )
        copy = output.with_name(f"{output.stem}_{kind}.png")
        with open_regular(grid) as picture:
            write_output(copy, picture.read())
        pictures += ["", f"## {kind}", "", f"`{command(folder)}`", "", f"![generated images]({copy.name})"]
    first, quality, _ = all_described[0]
    ran_on = first.segments[-1]
    right = f"{quality['accuracy_of_real']:.1f}%"
    judge = f"{quality['classifier']} is right on {right} of real images of these classes that it has not seen"
    return "\n".join(
        [
            f"# Generated images of {first.choices['dataset']}",
            "",
            "A row is a class, a column one draw of noise. Classified as asked: the share of "
            f"{quality['images']:,} generated images",
            f"that a classifier takes for the class they were asked for; {judge}.",
            "Frechet distance: of generated images to these, in that classifier's features, beside that of its",
            "training images. It is not FID.",
            "",
            *HEAD,
            *rows,
            "",
            f"Seconds: of training, {ran_on.get('hardware')}, {ran_on.get('threads')} thread.",
            *pictures,
        ]
    )


def command(folder: Path) -> str:
    """Return the command that trains a generator, with the settings that differ from the defaults."""
    cfg = read_frozen_generator(folder / "config.yaml")
    kind, dataset = cfg.choice.gan, cfg.choice.dataset
    standard = compose_generator([f"gan={kind}", f"dataset={dataset}"])
    changed = _changed(cfg.gan, standard.gan, "gan") + _changed(cfg.dataset, standard.dataset, "dataset")
    seed = [f"seed={cfg.seed}"] if cfg.seed else []
    precision = cfg.compute.precision
    changed += [f"compute.precision={precision}"] if precision != standard.compute.precision else []
    return " ".join(["python scripts/train_gan.py", f"gan={kind}", f"dataset={dataset}", *seed, *changed])


def _changed(node: Any, standard: Any, prefix: str) -> list[str]:
    found = []
    for key in node:
        if key == "source":
            continue
        if hasattr(node[key], "keys"):
            found += _changed(node[key], standard.get(key) or {}, f"{prefix}.{key}")
        elif node[key] != standard.get(key):
            value = str(node[key]).lower() if isinstance(node[key], bool) else node[key]
            found.append(f"{prefix}.{key}={value}")
    return found


def main(arguments: list[str]) -> None:
    """Write the page."""
    options = parse_options(GalleryOptions, arguments)
    if not options.runs:
        raise ConfigError("runs= has no folder")
    output = Path(options.output)
    check_output(output, TEXTS)
    write_output(output, page([Path(folder) for folder in options.runs], output) + "\n")
    print(output)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
