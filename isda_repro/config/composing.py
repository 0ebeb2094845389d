"""Composition of the files of ``conf/`` with a command line; Hydra's errors become one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isda_repro.config.checks import ConfigError
from isda_repro.config.quoting import advice, literal
from isda_repro.config.rules import CONF_DIR, DECLARED, register_resolvers, require_conf
from isda_repro.config.targets import check_targets


def compose_from(
    root: str, overrides: Sequence[str], freeze_it: Callable[[DictConfig, Sequence[str]], DictConfig]
) -> DictConfig:
    """Compose ``conf/<root>.yaml`` with the overrides, and freeze the result with ``freeze_it``."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    require_conf()
    register_resolvers()
    with _apart(), explain(), initialize_config_dir(str(CONF_DIR), version_base=None):
        cfg = hydra_compose(root, [literal(_of_settings(one)) for one in overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return freeze_it(cfg, overrides)


def _of_settings(override: str) -> str:
    """Return an override, unless it is for Hydra itself: that starts no runs here, but could read another ``conf/``."""
    if re.match(r"[+~]*hydra\b", override):
        raise ConfigError(f"{override!r} is for Hydra's own command line, python train.py; it has no place here")
    return override


@contextmanager
def _apart() -> Iterator[None]:
    """Clear Hydra's global state within the block and restore it afterwards, because compositions can be nested."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    if not GlobalHydra().is_initialized():
        yield
        return
    around = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        Singleton.set_state(around)


@contextmanager
def explain() -> Iterator[None]:
    """Turn Hydra's message about a mistyped command line, often five lines, into a one-sentence ConfigError."""
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )

    try:
        yield
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        stems = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
        options = ", ".join(option for option in error.options or stems if not option.startswith("_"))
        raise ConfigError(f"there is no {group}={name}; {group}= can be {options}") from error
    except OverrideParseException as error:
        raise ConfigError(advice(error.override)) from error
    except (ConfigCompositionException, HydraException) as error:
        raise ConfigError(_one_sentence(str(error), error.__cause__)) from error
    except OmegaConfBaseException as error:
        first: BaseException | None = error
        while first is not None and not isinstance(first, ConfigError):  # a sentence that a resolver raised
            first = first.__cause__ or first.__context__
        raise ConfigError(" ".join(str(first or error).splitlines()[:2])) from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        raise ConfigError("model=, dataset=, loss= and the other groups each take a name, not null") from error


def _one_sentence(message: str, cause: BaseException | None) -> str:
    """Shorten Hydra's message, and replace its advice to add an unknown key with ``+`` by similar keys that exist."""
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return " ".join(message.split("\nSee https")[0].split())
    key, known = unknown[1].partition("@")[0], _known_keys()
    inside = str(getattr(cause, "full_key", None) or key)
    if inside.startswith(f"{key}.") and inside not in known:  # from a value such as {key: value}
        key = inside
    if key in known and "." not in key:
        return f"{key}= is no setting of this program; train.py trains classifiers, scripts/train_gan.py generators"
    if key in known:
        return f"{key!r} is a setting of other choices of {key.partition('.')[0]}=, not of the one made"
    if key.startswith("dataset.augment."):
        return f"unknown setting {key!r}; a data set can declare {', '.join(DECLARED)} there"
    near = difflib.get_close_matches(key, known, n=3)
    return f"unknown setting {key!r}" + (
        f"; did you mean {' or '.join(near)}?" if near else "; `python train.py --cfg job` lists all"
    )


def _known_keys() -> list[str]:
    """Return every key that a command line can set, for suggestions."""
    keys: list[str] = []
    for path in sorted(CONF_DIR.rglob("*.yaml")):
        group = path.parent.relative_to(CONF_DIR).as_posix().removeprefix(".")
        if group != "table":
            keys += [group, *_keys_below(OmegaConf.to_container(OmegaConf.load(path)), group)]
    return sorted(set(keys))


def _keys_below(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return []
    names = {f"{prefix}.{key}" if prefix else str(key): value for key, value in node.items()}
    return [*names, *(name for key, value in names.items() for name in _keys_below(value, key))]


@explain()
def settled(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a composed configuration as plain containers, with all interpolations resolved, without ``hydra``.

    Raises:
        ConfigError: a setting has no value, or an override adds a key that nothing reads.
    """
    _refuse_additions(cfg, overrides)
    for key in ("choice", "checkpoint", *(path.name for path in CONF_DIR.iterdir() if path.is_dir())):
        if key in cfg and not isinstance(cfg[key], DictConfig):
            raise ConfigError(f"{key}={cfg[key]} replaces all settings in it; set {key}.<setting>")
    for group, name in cfg.choice.items():
        if str(name).startswith("_"):
            raise ConfigError(f"there is no {group}={name}: a file whose name begins with _ is a part of others")
    ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if missing := sorted(OmegaConf.missing_keys(ours)):
        raise ConfigError(f"{'=, '.join(missing)}= has no default: give it a value")
    plain = cast(dict[str, Any], OmegaConf.to_container(ours, resolve=True, throw_on_missing=True))
    check_targets(plain)
    return plain


def _refuse_additions(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse overrides that add or delete keys, or that set names under ``choice``.

    Hydra suggests ``+key=value`` for an unknown key, which would be ignored and only change the run's name. Nodes with
    a ``_target_`` are exempt, because their keys are arguments.
    """
    for override in overrides:
        if override.lstrip("+").startswith("choice."):
            raise ConfigError(f"{override!r}: the names under choice follow from model=, dataset= and so on")
        if override.startswith("~"):
            raise ConfigError(f"{override!r} deletes a setting that the program reads; give it another value instead")
        if not override.startswith("+"):
            continue
        key = override.lstrip("+").split("=", 1)[0]
        parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else None
        if not (isinstance(parent, DictConfig) and "_target_" in parent):
            raise ConfigError(
                f"{override!r} adds the key {key!r}, which nothing reads; only nodes with a _target_ take new keys"
            )
