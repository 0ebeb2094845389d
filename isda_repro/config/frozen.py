"""Reading and writing of frozen configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isda_repro.config import naming
from isda_repro.config.checks import ConfigError
from isda_repro.config.rules import CONF_DIR
from isda_repro.files import atomic_write


def write_frozen(cfg: DictConfig, path: Path) -> None:
    """Write a frozen configuration as YAML, atomically: the run may have been started from this very file."""
    with atomic_write(path) as file:
        file.write(OmegaConf.to_yaml(cfg).encode())


def read_frozen_as(
    path: Path, check_it: Callable[[Mapping[str, Any]], None], name_it: Callable[[Mapping[str, Any]], str]
) -> DictConfig:
    """Read a frozen configuration of one kind of run.

    If the file is in the folder of its run, ``runs_dir`` is set to the parent folder, so that a run that was moved
    continues in its new place.

    Args:
        path: ``config.yaml`` of a run.
        check_it: checks the settings and raises ConfigError.
        name_it: returns the run id of the settings.

    Raises:
        ConfigError: it is not a frozen configuration, was edited since, or was frozen by code with other numerics.
    """
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {str(error).splitlines()[0]}") from error
    except Exception as error:  # PyYAML's own hierarchy, which OmegaConf lets through
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(cfg, DictConfig) or "run_id" not in cfg or "numerics_version" not in cfg:
        raise ConfigError(f"{path} is not a frozen run (it has no run_id); give settings as key=value instead")
    if cfg.numerics_version != naming.NUMERICS_VERSION:
        raise ConfigError(
            f"{path} was frozen under numerics version {cfg.numerics_version}, this code has "
            f"{naming.NUMERICS_VERSION}: check out the older code, or compose the run anew"
        )
    defaults = cast(DictConfig, OmegaConf.load(CONF_DIR / "train.yaml"))
    for key in ("checkpoint", "force"):  # newer than some frozen files, and without influence on a result
        if key not in cfg:
            cfg[key] = defaults[key]
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg))
    stated = plain.pop("run_id")
    plain.pop("numerics_version")
    try:
        check_it(plain)
        found = name_it(plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a whole frozen run: {error} is missing or damaged") from error
    if stated != found:
        raise ConfigError(f"{path} was edited after it was frozen as {stated}: compose a new run instead")
    if path.resolve().parent.name == stated:  # the run continues in the folder of its file, which may have been moved
        cfg.runs_dir = str(path.resolve().parent.parent)
    return cfg
