"""Loading a trained classifier and the data set whose classes it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from isda_repro.config import build
from isda_repro.data import Source
from isda_repro.models import Network
from isda_repro.models.weights import load_weights
from isda_repro.training import builders
from isda_repro.training.checkpoint import load
from isda_repro.training.compute import Compute, resolve_compute
from isda_repro.training.resume import check_classes


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Args:
        cfg: frozen configuration.
        compute: device and precision.
        source: its data set, which has the names of the classes.
        network: the trained network, on the device.
        taken: one sentence that says which weights were loaded.
    """

    cfg: DictConfig
    compute: Compute
    source: Source
    network: Network
    taken: str


def load_classifier(cfg: DictConfig, weights: Path, *, of_run: bool) -> Classifier:
    """Load the data set and the network of a configuration, and the network's weights from a file.

    Args:
        cfg: frozen configuration; ``model.weights`` is not read.
        weights: a file of weights, of any kind that ``load_weights`` reads.
        of_run: the weights are those of a run, whose classes have to be those of the data.

    Raises:
        UserError: the data or the weights are missing or damaged, or do not fit.
    """
    compute = resolve_compute(cfg.compute)
    compute.apply()
    source: Source = build(cfg.dataset.source)
    if of_run:
        check_classes(load(weights), source, weights)
    network = builders.build_network(cfg, source, compute)
    return Classifier(cfg, compute, source, network, load_weights(network, weights, new_head=False))
