"""Configuration of generators: composing, freezing, and reading frozen files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import naming
from isda_repro.config.checks import (
    TRAINING_SELECTION,
    ConfigError,
    check_life,
    check_limits,
    check_seed,
    check_tracking,
    is_count,
    require,
)
from isda_repro.config.composing import compose_from, settled
from isda_repro.config.frozen import read_frozen_as
from isda_repro.config.naming import dataset_name, request, safe_name
from isda_repro.config.plain_yaml import UnreadableError, read_bounded

ROOT = "train_gan"
OF_CLASSIFIERS = ("recipe", "faithful")  # groups that data set configs refer to, but that only classifiers use
OF_NETWORKS = ("mean", "std", "augment")  # keys of a data set that only classifiers use
NOT_READ = (
    *(f"dataset.{name}" for name in (*OF_NETWORKS, "test_limit")),
    *("compute.micro_batch", "compute.sync_bn", "compute.compile", "compute.cuda_graph"),
)


def compose_generator(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the frozen configuration that ``python scripts/train_gan.py OVERRIDES`` would run."""
    return compose_from(ROOT, overrides, freeze_generator)


def freeze_generator(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Resolve, check and name a composed configuration, without the settings that only classifiers use.

    Raises:
        ConfigError: a setting is wrong, or an override sets a key that generators do not read.
    """
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key.partition(".")[0] in OF_CLASSIFIERS or key in NOT_READ or key.startswith("dataset.augment."):
            raise ConfigError(f"{override!r} sets what trains no generator; a generator's own settings begin with gan.")
    if "train_crop" in cfg.dataset:
        raise ConfigError("gan= is for small images in memory: dataset=cifar10, cifar100 or digits")
    plain = settled(cfg, overrides)
    for group in OF_CLASSIFIERS:
        plain.pop(group, None)
    for key in OF_NETWORKS:
        plain["dataset"].pop(key, None)
    check_generator(plain)
    check_tracking(plain["tracking"])
    return OmegaConf.create({"run_id": generator_id(plain), "numerics_version": naming.NUMERICS_VERSION, **plain})


def generator_overrides(cfg: Mapping[str, Any]) -> list[str]:
    """Return the overrides for ``scripts/train_gan.py`` that train the generator of a classifier's configuration.

    The generator is trained on the same images as the classifier: images that are held out or beyond a limit are
    excluded from both.
    """
    synthetic, dataset = cfg["synthetic"], cfg["dataset"]
    limits = [f"dataset.{key}={dataset[key]}" for key in TRAINING_SELECTION if dataset.get(key) is not None]
    settings = (f"{key}={'null' if value is None else value}" for key, value in (synthetic["settings"] or {}).items())
    named = [f"gan={synthetic['kind']}", f"dataset={cfg['choice']['dataset']}", f"seed={synthetic['seed']}"]
    return [*named, *limits, *settings]


def check_generator(cfg: Mapping[str, Any]) -> None:
    """Check the settings of a generator.

    Raises:
        ConfigError: for the first wrong setting, with its key, its value and the values that it can have.
    """
    if "gan" not in cfg:
        raise ConfigError("it has no gan, so it is not a frozen run of generators")
    gan = cfg["gan"]
    check_seed(cfg)
    for key in ("epochs", "batch_size"):
        require(is_count(gan[key]), f"gan.{key}", gan[key], "a whole number from 1 on")
    require(gan["kind"] == cfg["choice"]["gan"], "gan.kind", gan["kind"], "left alone; choose gan=")
    require(isinstance(gan["flip"], bool), "gan.flip", gan["flip"], "true or false")
    classes = gan.get("classes")
    if classes is not None:
        allowed = "the numbers of some classes, each once, as [1,7]; null: all"
        are_numbers = isinstance(classes, list) and all(is_count(one) or one == 0 for one in classes)
        require(are_numbers and len({*classes}) == len(classes) > 0, "gan.classes", classes, allowed)
        require(not gan["game"].get("one_for_all"), "gan.classes", classes, "null with gan.game.one_for_all=true")
    for node in ("game", "optimizer"):
        require(isinstance(gan[node], Mapping), f"gan.{node}", gan[node], f"left alone; set gan.{node}.<setting>")
    check_limits(cfg["dataset"])
    check_life(cfg)


def generator_id(cfg: Mapping[str, Any]) -> str:
    """Return the run id: ``<gan>-<dataset>-s<seed>-<hash of the request>``."""
    requested = json.dumps({**request(cfg), "numerics_version": naming.NUMERICS_VERSION}, sort_keys=True)
    digest = hashlib.sha256(requested.encode()).hexdigest()[:10]
    return f"{safe_name(cfg['choice']['gan'])}-{safe_name(dataset_name(cfg))}-s{cfg['seed']}-{digest}"


def is_frozen_generator(path: Path) -> bool:
    """Return whether a file is the configuration of a generator, provided that it is a frozen configuration at all."""
    try:
        return "\ngan:\n" in read_bounded(path)
    except UnreadableError:
        return False


def read_frozen_generator(path: Path) -> DictConfig:
    """Read the ``config.yaml`` of a generator.

    Raises:
        ConfigError: it is not a generator's, was edited since, or was frozen by code with other numerics.
    """
    return read_frozen_as(path, check_generator, generator_id)
