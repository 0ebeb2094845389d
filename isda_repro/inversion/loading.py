"""Trained networks, from their runs' folders."""

from __future__ import annotations

from pathlib import Path

from isda_repro.checks import ConfigError
from isda_repro.config import build, read_frozen_generator
from isda_repro.gan import load_generator
from isda_repro.inversion.features import FeatureMap
from isda_repro.inversion.objectives import Reversal
from isda_repro.training import parts
from isda_repro.training.finished import Finished, load_finished


def feature_map(classifier: Finished) -> FeatureMap:
    """f of a finished classifier."""
    mean, std = parts.normalisation(classifier.cfg, classifier.source)
    return FeatureMap(classifier.network, mean, std, classifier.compute.memory_format)


def load_reversal(
    generator: Path, classifier: Path, device: str = "auto", data_dir: str | None = None
) -> tuple[Reversal, Finished]:
    """G and f, fixed, and the classifier's run.

    Args:
        generator, classifier: folders of finished runs, of the same data set; the classifier's with loss=isda.
        device: auto, cpu or gpu.
        data_dir: where the data is, if not where it was.

    Raises:
        UserError: a run is missing, has not finished or is damaged; the two do not fit each other.
    """
    cfg = read_frozen_generator(generator / "config.yaml")
    finished = load_finished(classifier, device, data_dir)
    names = [one.choice.dataset for one in (cfg, finished.cfg)]
    if names[0] != names[1]:
        raise ConfigError(f"the generator is of dataset={names[0]}, the classifier of dataset={names[1]}")
    images = load_generator(build(cfg.gan.game), generator / "checkpoint.pt", finished.compute.device)
    parts.check_made_like(images, finished.source, generator)
    for network in images.generators:
        network.requires_grad_(False)
    return Reversal(images, feature_map(finished)), finished
