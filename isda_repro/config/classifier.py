"""A classifier's configuration, from what a user types to what is run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import naming
from isda_repro.config.checks import ConfigError, check, generator_kind
from isda_repro.config.composing import compose_from, settled
from isda_repro.config.frozen import read_frozen_as
from isda_repro.config.generator import compose_generator, generator_overrides
from isda_repro.config.naming import run_id
from isda_repro.files import sha256


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The frozen configuration that ``python train.py OVERRIDES`` would run."""
    return compose_from("train", overrides, freeze)


def freeze(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Resolve, check and name a composed configuration; nothing of Hydra's remains in it.

    Raises:
        ConfigError: a setting is wrong, or an override adds a key that nothing reads.
    """
    plain = settled(cfg, overrides)
    del plain["dataset"]["augment"]  # the model and the augmentation have what they made of it
    check(plain)
    if plain["model"]["weights"] is not None:
        plain["model"]["weights_sha256"] = weights_digest(plain["model"])
    if generator_kind(plain) is not None and plain["synthetic"]["generator"] is None:
        plain["synthetic"]["generator"] = compose_generator(generator_overrides(plain)).run_id
    identity = {"run_id": run_id(plain), "numerics_version": naming.NUMERICS_VERSION}
    return OmegaConf.create({**identity, **plain})


def weights_digest(model: Mapping[str, Any]) -> str:
    """What is in the file ``model.weights``, in one number, of which a run's name is made; the path may differ.

    Raises:
        ConfigError: there is no such file, or another than when it was frozen.
    """
    path, expected = Path(model["weights"]), model["weights_sha256"]
    if not path.is_file():
        raise ConfigError(f"model.weights={path} is no file")
    found = sha256(path)
    if expected not in (None, found):
        raise ConfigError(f"model.weights={path} is not the file it was (its SHA-256 is {found}, not {expected})")
    return found


def rescaled_milestones(cfg: DictConfig) -> str | None:
    """One sentence if ``recipe.epochs`` alone was changed and the milestones followed it; before ``freeze`` only."""
    rules = cast(dict[str, Any], OmegaConf.to_container(cfg.recipe.schedule))
    rule = re.search(r"rescale:(\[.*?\]),(\d+)", str(rules.get("milestones")))
    if rule is None or int(rule[2]) == cfg.recipe.epochs:
        return None
    now = list(cfg.recipe.schedule.milestones)
    return f"recipe.epochs={cfg.recipe.epochs} instead of {rule[2]}: the rate drops at {rule[1]} became {now}"


def read_frozen(path: Path) -> DictConfig:
    """Read ``runs/<run_id>/config.yaml``.

    Raises:
        ConfigError: not a frozen configuration, edited since, or frozen by code with other numerics.
    """
    return read_frozen_as(path, check, run_id)
