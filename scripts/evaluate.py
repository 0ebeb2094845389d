"""Evaluate a finished run again, or any file of weights, or let it predict other images. From the repository root:

python scripts/evaluate.py run=runs/<run_id>                        # also data_dir=data device=auto
python scripts/evaluate.py model=resnet32 dataset=cifar10 model.weights=FILE    # the settings of train.py
python scripts/evaluate.py model=timm model.name=resnet18 dataset=cifar10 recipe=resnet model.weights=FILE

Prints the loss, the error, the expected calibration error (before and after temperature scaling) and the worst classes,
and for a run also the error that its result reports. Each of the commands also takes

output=FOLDER                  writes per_class.csv, confusion.csv, predictions.csv, summary.json, and two pictures,
                               each also as SVG: confusion.png and calibration.png
images=photo.jpg               predicts this image instead, which has no label: prints the five likeliest classes
"images=[a.png,b.png,FOLDER]"  several images, or all in and below a folder; output=FOLDER writes predictions.csv

Images are prepared as those that the run is evaluated on. For CIFAR and the digits, whose images have one size, the
shorter side of an image is scaled to that size, and the centre is taken. An image that cannot be read is named, the
others are predicted, and the exit status is 2.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from omegaconf import DictConfig

from isda_repro.config import compose, model_name
from isda_repro.config.checks import ConfigError
from isda_repro.config.options import parse_options
from isda_repro.console import say
from isda_repro.files import folder_for

if TYPE_CHECKING:
    from isda_repro.evaluation import Classifier

OWN = ("output", "images", "--help", "-h")  # arguments beside the settings of train.py


@dataclass
class EvaluateOptions:
    """``run``: folder of a run; ``data_dir``: folder of the data, if it has moved; ``device``: auto, cpu or gpu."""

    run: str | None = None
    data_dir: str | None = None
    device: str = "auto"
    output: str | None = None
    images: Any = None  # a path, or a list of paths


def of_a_file(settings: list[str]) -> tuple[DictConfig, Path]:
    """Return the configuration that the settings compose, and its file of weights.

    Raises:
        ConfigError: there is no ``model.weights``.
    """
    cfg = compose(settings)
    if cfg.model.weights is None:
        raise ConfigError("give run=runs/<run_id>, or model= and dataset= with model.weights=FILE")
    return cfg, Path(cfg.model.weights)


def evaluate(classifier: "Classifier", about: dict[str, str], output: Path | None) -> None:
    """Evaluate a classifier on the images of its data set, print the measures, and write the files."""
    from isda_repro.evaluation import predict_test
    from isda_repro.evaluation.outputs import FILES, Measured, write_evaluation

    if output is not None:
        folder_for(output, *FILES)
    predictions, source = predict_test(classifier), classifier.source
    measured = Measured(predictions, source)
    about = {**about, "dataset": source.name, "evaluated_on": source.evaluated_on}
    images = f"{len(predictions.images):,} images of {source.name} ({source.evaluated_on})"
    say("\n".join([f"{about['model']} on {images}", *measured.lines()]))
    if output is not None:
        write_evaluation(output, measured, about)
        say(f"written to {output}: {', '.join(FILES)}")


def predict(classifier: "Classifier", paths: Sequence[str], output: Path | None) -> None:
    """Predict images without labels, print the likeliest classes of each, and write them.

    Raises:
        UserError: some images could not be read; the others have been predicted.
    """
    from isda_repro.evaluation import predict_images
    from isda_repro.evaluation.outputs import PREDICTIONS, prediction_line, predictions_csv
    from isda_repro.files import write_output

    if output is not None:
        folder_for(output, PREDICTIONS)
    source = classifier.source
    height, width = source.test.image_size
    say(f"each image is scaled and cropped to {height} x {width} pixels, as those of {source.name}")
    predictions, names = predict_images(classifier, paths), source.class_names
    for row in range(len(predictions.images)):
        say(prediction_line(predictions, row, names))
    if output is not None:
        write_output(output / PREDICTIONS, predictions_csv(predictions, names))
        say(f"written to {output}: {PREDICTIONS}")
    if predictions.unreadable:
        count = f"{predictions.unreadable:,} of {len(paths):,} images"
        raise UserError(f"{count} could not be read, as the warnings say; the others have their predictions")


def main(arguments: list[str]) -> None:
    """Evaluate a run's folder, or the weights that settings of train.py name."""
    keys = [argument.partition("=")[0] for argument in arguments]
    own = [argument for argument, key in zip(arguments, keys, strict=True) if "run" in keys or key in OWN]
    options = parse_options(EvaluateOptions, own)
    from isda_repro.evaluation import find_images, finished_run_config, load_classifier
    from isda_repro.runs.records import read_result

    paths = None if options.images is None else find_images(options.images)
    if options.run is None:
        cfg, weights = of_a_file([argument for argument in arguments if argument not in own])
    else:
        cfg, weights = finished_run_config(Path(options.run), options.device, options.data_dir)
    classifier = load_classifier(cfg, weights, of_run=options.run is not None)
    say(classifier.taken)
    output = None if options.output is None else Path(options.output)
    if paths is not None:
        predict(classifier, paths, output)
        return
    evaluate(classifier, {"model": model_name(cfg), "weights": str(weights)}, output)
    if options.run is not None and (result := Path(options.run) / "result.json").exists():
        say(f"its result reports a final error of {read_result(result).test_error_final:.2f}%")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
