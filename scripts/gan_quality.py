"""Measure the quality of generated images with a classifier trained on real ones. From the repository root:

python scripts/gan_quality.py generator=runs/<run_id> classifier=runs/<run_id>      # also images=10000 device=auto

Prints, and writes to quality.json in the generator's folder: the share of generated images that the classifier assigns
to the requested class, overall and for each class, and the Frechet distance to real images in the classifier's
features. This is not the FID of the literature, which uses another network: compare it only with values from the same
classifier.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from isda_repro.errors import check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config import build
from isda_repro.config.checks import ConfigError
from isda_repro.config.options import parse_options
from isda_repro.files import check_output, write_output


@dataclass
class QualityOptions:
    """Folders of two finished runs, the number of images to generate, and the device."""

    generator: str = MISSING
    classifier: str = MISSING
    images: int = 10000
    device: str = "auto"
    data_dir: str | None = None  # folder of the data, if it has moved


def measured(options: QualityOptions) -> dict[str, Any]:
    """Load both runs, generate images, and return the contents of quality.json.

    Raises:
        ConfigError: the runs are of different data sets, or the generator is not asked for classes.
    """
    import torch

    from isda_repro.config import read_frozen_generator
    from isda_repro.data import Normalise, Split
    from isda_repro.evaluation import load_finished_run
    from isda_repro.gan import load_generator
    from isda_repro.gan.quality import judge_by, quality
    from isda_repro.training import builders

    made = Path(options.generator) / "config.yaml"
    generator_cfg = read_frozen_generator(made)
    classifier = load_finished_run(Path(options.classifier), options.device, options.data_dir)
    cfg, source, compute = classifier.cfg, classifier.source, classifier.compute
    if generator_cfg.choice.dataset != cfg.choice.dataset or not isinstance(source.train, Split):
        of_generator, of_classifier = generator_cfg.choice.dataset, cfg.choice.dataset
        raise ConfigError(f"the generator is of dataset={of_generator}, the classifier of dataset={of_classifier}")
    generator = load_generator(build(generator_cfg.gan.game), made.with_name("checkpoint.pt"), compute.device)
    builders.check_made_like(generator, source, made.parent)
    if not generator.asked_for_classes:
        raise ConfigError(f"{generator_cfg.run_id} is asked for no class: none is right or wrong")
    mean, std = builders.normalisation_constants(cfg, source)
    width = source.train.image_size[1]
    normalise = Normalise(mean, std, image_width=width, device=compute.device, memory_format=compute.memory_format)

    def split(part: Split) -> tuple[Any, Any]:
        part = part.select(torch.isin(part.targets, torch.tensor(generator.classes)).nonzero()[:, 0])
        return part.images.to(compute.device), part.targets

    def by_class(accuracies: Sequence[float | None]) -> dict[str, float | None]:
        return {source.class_names[index]: accuracies[index] for index in generator.classes}

    found = quality(
        generator,
        judge_by(classifier.network, normalise),
        split(source.train),
        split(cast(Split, source.test)),
        count=options.images,
        seed=0,
    )
    return {
        "generator": generator_cfg.run_id,
        "classifier": cfg.run_id,
        "images": options.images,
        "real_images": source.evaluated_on,
        "accuracy": found.generated.accuracy,
        "accuracy_by_class": by_class(found.generated.accuracy_by_class),
        "accuracy_of_real": found.real.accuracy,
        "accuracy_of_real_by_class": by_class(found.real.accuracy_by_class),
        "frechet_distance_in_own_features": found.distance,
        "frechet_distance_of_training_images": found.real_distance,
    }


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.1f}%"


def main(arguments: list[str]) -> None:
    """Print the measurements and write quality.json."""
    options = parse_options(QualityOptions, arguments)
    if options.images < 2:
        raise ConfigError(f"images={options.images} must be a whole number from 2 on")
    path = Path(options.generator) / "quality.json"
    check_output(path)
    found = measured(options)
    print(f"{found['images']:,} images of {found['generator']}, judged by {found['classifier']}:")
    print(f"taken for the class asked for: {found['accuracy']:.1f}% (real images: {found['accuracy_of_real']:.1f}%)")
    for name, accuracy in found["accuracy_by_class"].items():
        print(f"  {name:<16} {_percent(accuracy):>6}  ({_percent(found['accuracy_of_real_by_class'][name])})")
    print(
        "Frechet distance to real images, in this classifier's features: "
        f"{found['frechet_distance_in_own_features']:.3f} "
        f"(of the training images: {found['frechet_distance_of_training_images']:.3f})"
    )
    write_output(path, json.dumps(found, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
