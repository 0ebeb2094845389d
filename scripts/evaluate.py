"""Evaluate a finished run's weights again:  python scripts/evaluate.py run=runs/<run_id> [data_dir=data] [device=auto]

Prints the loss and error on the images that the run was evaluated on, beside the error that its result reports.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from isda_repro.checks import ConfigError
from isda_repro.config import build, read_frozen
from isda_repro.errors import one_sentence_errors
from isda_repro.options import parse_options


@dataclass
class EvaluateOptions:
    """``run``: a run's folder; ``data_dir``: where the data is, if not where it was; ``device``: auto, cpu or gpu."""

    run: str = MISSING
    data_dir: str | None = None
    device: str = "auto"


def main(arguments: list[str]) -> None:
    """Load, evaluate, compare."""
    options = parse_options(EvaluateOptions, arguments)
    folder = Path(options.run)
    if not (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is not a run's folder (it has no config.yaml); give run=runs/<run_id>")

    from isda_repro.tables.records import read_result
    from isda_repro.training import checkpoint, parts
    from isda_repro.training.compute import resolve
    from isda_repro.training.evaluate import evaluate

    cfg = read_frozen(folder / "config.yaml")
    if options.data_dir is not None and "data_dir" in cfg.dataset.source:
        cfg.dataset.source.data_dir = options.data_dir
    if options.device not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"device={options.device} must be one of auto, cpu, gpu")
    compute = resolve({**OmegaConf.to_container(cfg.compute), "device": options.device})  # type: ignore[dict-item]
    compute.apply()
    state = checkpoint.load(folder / "checkpoint.pt")
    source = build(cfg.dataset.source)
    network = parts.build_network(cfg, source, compute)
    network.load_state_dict(state["network"])
    _, batches = parts.build_loaders(cfg, source, compute)
    loss, error = evaluate(network, batches.epoch(0), compute)

    print(f"{cfg.run_id}, epoch {state['epoch']}, {len(source.test):,} images of {source.evaluated_on}")
    print(f"loss {loss:.4f}, error {error:.2f}%")
    if (folder / "result.json").exists():
        print(f"its result reports a final error of {read_result(folder / 'result.json').test_error_final:.2f}%")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
