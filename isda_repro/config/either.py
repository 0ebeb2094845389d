"""Classifiers and generators by one name, for whoever runs both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from isda_repro.config.classifier import compose, read_frozen
from isda_repro.config.generator import compose_generator, is_frozen_generator, read_frozen_generator


def compose_run(overrides: Sequence[str] = ()) -> DictConfig:
    """The frozen configuration of a generator where the first override is ``gan=``, else of a classifier."""
    return (compose_generator if overrides and overrides[0].startswith("gan=") else compose)(overrides)


def read_frozen_run(path: Path) -> DictConfig:
    """Read ``runs/<run_id>/config.yaml`` of either.

    Raises:
        ConfigError: not a frozen configuration, edited since, or frozen by code with other numerics.
    """
    return (read_frozen_generator if is_frozen_generator(path) else read_frozen)(path)
