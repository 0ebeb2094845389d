"""OmegaConf resolvers that the files of ``conf/`` use, such as ``${rescale:...}``."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from isda_repro.config.checks import ConfigError, is_count
from isda_repro.files import expanded

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


def require_conf() -> None:
    """Raise ConfigError if this package was installed without ``conf/``, which is only in a checkout."""
    if not (CONF_DIR / "train.yaml").is_file():
        raise ConfigError(f"{CONF_DIR} is missing: install a checkout of this project with `pip install -e .`")


def _match(key: object, rules: Mapping[str, Any]) -> Any:
    """Resolve ``${match:KEY, {PATTERN: VALUE, ...}}``: the value of the first pattern (fnmatch) that fits the key."""
    for pattern, value in rules.items():
        if fnmatch.fnmatchcase(str(key), str(pattern)):
            return OmegaConf.create(value) if isinstance(value, list) else value
    raise ConfigError(f"no rule fits {key!r}: the patterns are {', '.join(map(str, rules))}; set the value yourself")


def _rescale(milestones: Sequence[int], paper_epochs: int, epochs: object) -> ListConfig:
    """Resolve ``${rescale:[80,120],160,${recipe.epochs}}``: milestones in proportion to another number of epochs."""
    if not is_count(epochs):  # `check` reports it later with a better message
        return OmegaConf.create(list(milestones))
    return OmegaConf.create(rescaled(milestones, paper_epochs, cast(int, epochs)))


def rescaled(milestones: Sequence[int], epochs: int, length: int) -> list[int]:
    """Scale milestones from a run of ``epochs`` epochs to one of ``length`` epochs.

    Milestones are rounded to the nearest epoch and are at least 2; those past the end are left out.
    """
    scaled = [max(2, math.floor(milestone * length / epochs + 0.5)) for milestone in milestones]
    return [milestone for milestone in scaled if milestone <= length]


def lambda_0_of(model: object, dataset: object, loss: object) -> dict[str, Any]:
    """Return the entry of ``conf/lambda_0.yaml`` for a model, a data set and a loss, with its ``value`` and ``source``.

    The first entry whose patterns match counts.

    Raises:
        ConfigError: no entry matches.
    """
    names = {"model": str(model), "dataset": str(dataset), "loss": str(loss)}
    for entry in cast(list[dict[str, Any]], OmegaConf.to_container(OmegaConf.load(CONF_DIR / "lambda_0.yaml"))):
        if all(fnmatch.fnmatchcase(name, str(entry.get(key, "*"))) for key, name in names.items()):
            return entry
    chosen = " ".join(f"{key}={name}" for key, name in names.items())
    raise ConfigError(f"conf/lambda_0.yaml has no entry for {chosen}: give loss.lambda_0=")


DECLARED = {
    "image_size": "the side of its images in pixels",
    "padding": "the number of pixels padded at each side before the random crop (0: no crop)",
    "flip": "true if half of the images may be mirrored, else false",
    "cutout_length": "the side of Cutout's square in pixels",
    "autoaugment_policy": "cifar10 or imagenet",
    "autoaugment_cutout_length": "the side in pixels of the square blanked after AutoAugment (0: none)",
}
"""Keys that a data set can declare under ``dataset.augment``, and the values that they can have."""


def _declared(name: str, *, _root_: DictConfig) -> Any:
    """Resolve ``${declared:NAME}``: the data set's ``dataset.augment.NAME``.

    Raises:
        ConfigError: the data set does not declare it.
    """
    value = OmegaConf.select(_root_, f"dataset.augment.{name}")
    if value is None:
        group, dataset = "model" if name == "image_size" else "augmentation", _root_.choice.dataset
        raise ConfigError(
            f"{group}={_root_.choice[group]} needs dataset.augment.{name}=, which dataset={dataset} does not declare: "
            f"give {DECLARED[name]}, here or in conf/dataset/{dataset}.yaml"
        )
    return value


def _half(value: object) -> object:
    """Resolve ``${half:${dataset.image_size}}``, rounded down; any other value than a count is returned unchanged."""
    return cast(int, value) // 2 if is_count(value) else value


def _folder_name(path: object) -> str:
    """Resolve ``${folder_name:${data_dir}}``; bytes that are no UTF-8 become ``_``, since names go into JSON."""
    return re.sub("[\ud800-\udfff]", "_", expanded(str(path)).resolve().name)


def _choices(*groups: str) -> str:
    """Resolve ``${choices:model,loss}`` for ``--help``: one line per group, without files whose names begin with _."""
    from hydra.core.global_hydra import GlobalHydra

    options = GlobalHydra.instance().config_loader().get_group_options
    names = ([name for name in sorted(options(group)) if not name.startswith("_")] for group in groups)
    return "\n".join(f"{group}: {', '.join(its)}" for group, its in zip(groups, names, strict=True))


def register_resolvers() -> None:
    """Register the resolvers that ``conf/`` uses; calling it again is allowed."""
    OmegaConf.register_new_resolver("match", _match, replace=True)
    OmegaConf.register_new_resolver("rescale", _rescale, replace=True)
    OmegaConf.register_new_resolver("lambda_0", lambda *names: lambda_0_of(*names)["value"], replace=True)
    OmegaConf.register_new_resolver("declared", _declared, replace=True)
    OmegaConf.register_new_resolver("half", _half, replace=True)
    OmegaConf.register_new_resolver("choices", _choices, replace=True)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
