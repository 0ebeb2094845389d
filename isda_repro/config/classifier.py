"""Configuration of classifiers: composing, freezing, and reading frozen files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import naming
from isda_repro.config.checks import ConfigError, check, check_tracking, generator_kind
from isda_repro.config.composing import compose_from, settled
from isda_repro.config.frozen import read_frozen_as
from isda_repro.config.generator import compose_generator, generator_overrides
from isda_repro.config.naming import run_id
from isda_repro.files import sha256

OFF_AT_ZERO = (("recipe", "mixup"), ("loss", "label_smoothing"), ("loss", "prior"))
"""Groups and keys of the options that 0 turns off, as null does; such a run keeps the name of one without them."""


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the frozen configuration that ``python train.py OVERRIDES`` would run."""
    return compose_from("train", overrides, freeze)


def freeze(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Resolve, check and name a composed configuration; the result contains nothing of Hydra's.

    Raises:
        ConfigError: a setting is wrong, or an override adds a key that nothing reads.
    """
    plain = settled(cfg, overrides)
    del plain["dataset"]["augment"]  # the model and the augmentation hold the values resolved from it
    for group, key in OFF_AT_ZERO:
        if plain[group].get(key) == 0 and not isinstance(plain[group][key], bool):
            plain[group][key] = None
    check(plain)
    check_tracking(plain["tracking"])
    if plain["model"]["weights"] is not None:
        plain["model"]["weights_sha256"] = weights_digest(plain["model"])
    elif (digest := plain["model"].get("weights_sha256")) is not None:
        raise ConfigError(f"model.weights_sha256={digest} is that of a file: name it by model.weights=")
    if generator_kind(plain) is not None and plain["synthetic"]["generator"] is None:
        plain["synthetic"]["generator"] = compose_generator(generator_overrides(plain)).run_id
    identity = {"run_id": run_id(plain), "numerics_version": naming.NUMERICS_VERSION}
    return OmegaConf.create({**identity, **plain})


def weights_digest(model: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the file ``model.weights``. It is part of the run's name, while the path is not.

    Raises:
        ConfigError: there is no such file, or its SHA-256 is not ``model.weights_sha256``.
    """
    path, expected = Path(model["weights"]), model["weights_sha256"]
    if not path.is_file():
        raise ConfigError(f"model.weights={path} is no file")
    found = sha256(path)
    if expected not in (None, found):
        raise ConfigError(f"model.weights={path} is not the file it was (its SHA-256 is {found}, not {expected})")
    return found


def rescaled_milestones(cfg: DictConfig) -> str | None:
    """Return a sentence if ``recipe.epochs`` was changed and the milestones were rescaled with it, else None.

    The configuration must not be frozen yet: freezing resolves the rule that is looked for.
    """
    rules = cast(dict[str, Any], OmegaConf.to_container(cfg.recipe.schedule))
    rule = re.search(r"rescale:(\[.*?\]),(\d+)", str(rules.get("milestones")))
    if rule is None or int(rule[2]) == cfg.recipe.epochs:
        return None
    now = list(cfg.recipe.schedule.milestones)
    return f"recipe.epochs={cfg.recipe.epochs} instead of {rule[2]}: the rate drops at {rule[1]} became {now}"


def read_frozen(path: Path) -> DictConfig:
    """Read ``runs/<run_id>/config.yaml`` of a classifier.

    Raises:
        ConfigError: it is not a frozen configuration, was edited since, or was frozen by code with other numerics.
    """
    return read_frozen_as(path, check, run_id)
