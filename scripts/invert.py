"""Show ISDA's augmented features as images, as in Appendix C (Figures 3 and 5). From the repository root:

python scripts/invert.py generator=runs/<run_id> classifier=runs/<run_id>     # of gan=wgan, and of loss=isda
python scripts/invert.py generator=... classifier=... "images=[7,12]" augmentations=7 eta=0.01 lambda=0.5
python scripts/invert.py generator=... classifier=... output=results/inversion

Step I finds the input from which the generator makes a given image; Step II finds the input of an image whose features
are ISDA's augmented features. Writes inversion.png (original, reconstruction, augmentations), inversion.md (the
settings, and how far both objectives fell, which is also printed) and inversion.json into output=, by default the
classifier's folder. Also: count=8 (number of images if images= is not given: the first ones of each class),
part=train|test (part of the data set that they are from), iterations=10000, seed=0, at_once=64 (searches run together),
device=auto, data_dir=.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from isda_repro.errors import check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config.options import parse_options
from isda_repro.files import folder_for
from isda_repro.measurements import machine


@dataclass
class InvertOptions:
    """Options of this script; ``lambda_``: null for the final strength that the classifier was trained with."""

    generator: str = MISSING
    classifier: str = MISSING
    images: list[int] | None = None
    count: int = 8
    part: str = "train"
    augmentations: int = 5
    eta: float = 0.01
    lambda_: float | None = None
    iterations: int = 10_000
    seed: int = 0
    at_once: int = 64
    device: str = "auto"
    data_dir: str | None = None
    output: str | None = None


def main(arguments: list[str]) -> None:
    """Load both runs, invert the images, write the files and print the numbers."""
    options = parse_options(InvertOptions, arguments)
    from isda_repro.inversion import STEP_ONE, STEP_TWO, Settings, invert
    from isda_repro.inversion.loading import choose_images, load_reversal, name_of, split_of
    from isda_repro.inversion.report import (
        NUMBERS,
        PAGE,
        PICTURE,
        numbers_of,
        page,
        sheet,
        table,
        titled,
        write_texts,
    )
    from isda_repro.inversion.search_progress import InversionProgress
    from isda_repro.sheets import write_picture

    folders = Path(options.generator), Path(options.classifier)
    reversal, classifier = load_reversal(*folders, options.device, options.data_dir)
    isda, split = classifier.isda, split_of(classifier.source, options.part)
    settings = Settings(
        eta=options.eta,
        strength=isda.lambda_0 if options.lambda_ is None else options.lambda_,
        augmentations=options.augmentations,
        seed=options.seed,
        first=replace(STEP_ONE, iterations=options.iterations),
        second=replace(STEP_TWO, iterations=options.iterations),
        at_once=options.at_once,
    )
    indices = choose_images(split, options.images, options.count, reversal.generator.classes)
    images, labels = split.images[indices], split.targets[indices]
    output, begin = folder_for(Path(options.output or options.classifier), PICTURE, PAGE, NUMBERS), time.perf_counter()
    with InversionProgress(settings.iterations(len(images))) as bar:
        inversion = invert(reversal, images, labels, indices, isda.class_covariance, settings, bar)
    names = [classifier.source.class_names[label] for label in labels.tolist()]
    known = [{"index": index, "class": name} for index, name in zip(indices.tolist(), names, strict=True)]
    record = {
        "generator": folders[0].resolve().name,
        "classifier": classifier.cfg.run_id,
        "error": classifier.result.test_error_final,
        "evaluated_on": classifier.source.evaluated_on,
        "part": name_of(classifier.source, options.part),
        "seconds": time.perf_counter() - begin,
        **numbers_of(inversion, settings, known),
    }
    columns = ["original", "restored", "augmented", *[""] * (settings.augmentations - 1)]
    rows = [f"{one['class']} {one['index']}" for one in known]
    write_picture(output / PICTURE, titled(sheet(images, inversion), columns, rows))
    text = page(record, f"python scripts/invert.py {shlex.join(arguments)}", machine())
    write_texts(output, {NUMBERS: json.dumps(record, indent=1, sort_keys=True), PAGE: text})
    print("\n".join([*table(record), str(output / PICTURE)]))


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
