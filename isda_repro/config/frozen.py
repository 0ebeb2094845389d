"""Reading and writing of frozen configurations.

A frozen configuration is data, and may come from somebody else: it refers to nothing (no ``${...}``), instantiates only
what ``conf/`` can, and its run stays in ``runs_dir``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import naming
from isda_repro.config.checks import ConfigError
from isda_repro.config.plain_yaml import UnreadableError, parse_plain, read_bounded
from isda_repro.config.rules import CONF_DIR, require_conf
from isda_repro.config.targets import check_targets
from isda_repro.errors import UserError
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
    require_conf()
    plain = _read_plain(path)
    newer = {"checkpoint", "force"} - plain.keys()  # than this frozen file, and without influence on a result
    if newer:
        plain |= {key: value for key, value in _train_yaml().items() if key in newer}
    stated, version = plain.pop("run_id"), plain.pop("numerics_version")
    try:
        check_it(plain)
        check_targets(plain)
        found = name_it(plain)
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path} is not a whole frozen run: {str(error)[:100]!a} is missing or damaged") from error
    if stated != found:
        raise ConfigError(f"{path} was edited after it was frozen as {str(stated)[:100]}: compose a new run instead")
    cfg = OmegaConf.create({"run_id": stated, "numerics_version": version, **plain})
    if path.resolve().parent.name == stated:  # the run continues in the folder of its file, which may have been moved
        cfg.runs_dir = str(path.resolve().parent.parent)
    return cfg


def refuse_elsewhere(cfg: DictConfig, path: Path) -> None:
    """Refuse to run a frozen file that is not in the folder of its run and names another ``runs_dir`` than the default.

    A run writes into ``runs_dir`` and moves files there. Whoever runs a file that somebody else has made must have
    chosen that place: by where the file lies, or by starting the program where ``runs`` is.

    Raises:
        ConfigError: the run would write to another place.
    """
    if path.resolve().parent.name != cfg.run_id and cfg.runs_dir != _train_yaml()["runs_dir"]:
        place = Path(cfg.runs_dir) / cfg.run_id / "config.yaml"
        raise ConfigError(f"{path} would write to runs_dir={cfg.runs_dir}: if that is right, move it to {place} first")


def _train_yaml() -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF_DIR / "train.yaml")))


def _read_plain(path: Path) -> dict[str, Any]:
    """Read a frozen file as plain containers, and check that this code can run it."""
    try:
        plain = parse_plain(read_bounded(path))
    except UnreadableError as error:
        raise ConfigError(f"{path} {error}") from error
    if not isinstance(plain, dict) or "run_id" not in plain or "numerics_version" not in plain:
        raise ConfigError(f"{path} is not a frozen run (it has no run_id); give settings as key=value instead")
    if (version := plain["numerics_version"]) != naming.NUMERICS_VERSION:
        raise ConfigError(
            f"{path} was frozen under numerics version {str(version)[:20]}, this code has "
            f"{naming.NUMERICS_VERSION}: check out the older code, or compose the run anew"
        )
    return plain
