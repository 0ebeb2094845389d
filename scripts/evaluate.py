"""Evaluate a finished run again, or any file of weights. From the repository root:

python scripts/evaluate.py run=runs/<run_id>                        # also data_dir=data device=auto
python scripts/evaluate.py model=resnet32 dataset=cifar10 model.weights=FILE    # the settings of train.py
python scripts/evaluate.py model=timm model.name=resnet18 dataset=cifar10 recipe=resnet model.weights=FILE

Prints the loss and the error, and for a run also the error that its result reports.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from isda_repro.errors import check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING, DictConfig

from isda_repro.config import build, compose, model_name
from isda_repro.config.checks import ConfigError
from isda_repro.config.options import parse_options


@dataclass
class EvaluateOptions:
    """``run``: folder of a run; ``data_dir``: folder of the data, if it has moved; ``device``: auto, cpu or gpu."""

    run: str = MISSING
    data_dir: str | None = None
    device: str = "auto"


def of_a_file(settings: list[str]) -> tuple[DictConfig, Path]:
    """Return the configuration that the settings compose, and its file of weights.

    Raises:
        ConfigError: there is no ``model.weights``.
    """
    cfg = compose(settings)
    if cfg.model.weights is None:
        raise ConfigError("give run=runs/<run_id>, or model= and dataset= with model.weights=FILE")
    return cfg, Path(cfg.model.weights)


def evaluate_weights(cfg: DictConfig, weights: Path, *, of_run: bool) -> None:
    """Load the weights, evaluate them and print the loss and the error.

    ``of_run`` is True for the weights of a run, whose classes have to be those of the data.
    """
    from isda_repro.models.weights import load_weights
    from isda_repro.training import builders
    from isda_repro.training.checkpoint import load
    from isda_repro.training.compute import resolve_compute
    from isda_repro.training.evaluate import evaluate
    from isda_repro.training.resume import check_classes

    compute = resolve_compute(cfg.compute)
    compute.apply()
    source = build(cfg.dataset.source)
    if of_run:
        check_classes(load(weights), source, weights)
    network = builders.build_network(cfg, source, compute)
    print(load_weights(network, weights, new_head=False))
    _, batches = builders.build_loaders(cfg, source, compute)
    loss, error, top5 = evaluate(network, batches.epoch(0), compute)[:3]
    print(f"{model_name(cfg)} on {len(source.test):,} images of {source.name} ({source.evaluated_on})")
    print(f"loss {loss:.4f}, error {error:.2f}%" + ("" if top5 is None else f", top-5 error {top5:.2f}%"))


def main(arguments: list[str]) -> None:
    """Evaluate a run's folder, or the weights that settings of train.py name."""
    if not any(argument.startswith("run=") for argument in arguments):
        evaluate_weights(*of_a_file(arguments), of_run=False)
        return
    from isda_repro.runs.records import read_result
    from isda_repro.training.finished_run import finished_run_config

    options = parse_options(EvaluateOptions, arguments)
    evaluate_weights(*finished_run_config(Path(options.run), options.device, options.data_dir), of_run=True)
    if (result := Path(options.run) / "result.json").exists():
        print(f"its result reports a final error of {read_result(result).test_error_final:.2f}%")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
