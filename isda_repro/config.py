"""From what a user types to one frozen, checked, named configuration.

Hydra is met here, in ``train.py`` and in ``scripts/``, and nowhere else. The steps, in this order:

1. ``compose`` (or Hydra's own command line) puts the files of ``conf/`` and the overrides together;
2. ``freeze`` resolves every rule, checks fields against each other, and names the run;
3. ``build`` makes an object of a node that has a ``_target_``.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isda_repro.checks import ConfigError, check, generator_kind, is_count
from isda_repro.errors import UserError
from isda_repro.files import sha256, written_whole

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

NUMERICS_VERSION = 2
"""Raise it whenever the same request would give other numbers: every run then gets a new name."""

NOT_REQUESTED = (
    *("choice", "data_dir", "runs_dir", "dataset.source.data_dir", "compute.device", "tracking"),
    "compute.timeout_minutes",
    *("dataset.source.root", "dataset.workers"),
    *("checkpoint", "force", "model.weights"),  # model.weights_sha256 is requested instead
)
"""Keys that cannot change a result. They are no part of a run's identity, and stay out of ``result.json``."""


# ------------------------------------------------------------------------------------------------- rules inside YAML


def _match(key: object, rules: Mapping[str, Any]) -> Any:
    """``${match:KEY, {PATTERN: VALUE, ...}}``: the value of the first pattern that the key fits (fnmatch)."""
    for pattern, value in rules.items():
        if fnmatch.fnmatchcase(str(key), str(pattern)):
            return OmegaConf.create(value) if isinstance(value, list) else value
    raise ConfigError(f"no rule fits {key!r}: the patterns are {', '.join(map(str, rules))}; set the value yourself")


def _rescale(milestones: Sequence[int], paper_epochs: int, epochs: object) -> ListConfig:
    """``${rescale:[80,120],160,${recipe.epochs}}``: milestones in proportion to another number of epochs.

    No drop comes before epoch 2, and one that would fall past the end is left out.
    """
    if not is_count(epochs):  # the checks that follow say so properly
        return OmegaConf.create(list(milestones))
    return OmegaConf.create(rescaled(milestones, paper_epochs, cast(int, epochs)))


def rescaled(milestones: Sequence[int], epochs: int, length: int) -> list[int]:
    """The milestones of ``epochs`` epochs, in proportion to ``length`` epochs."""
    scaled = [max(2, math.floor(milestone * length / epochs + 0.5)) for milestone in milestones]
    return [milestone for milestone in scaled if milestone <= length]


def lambda_0_of(model: object, dataset: object, loss: object) -> dict[str, Any]:
    """The entry of ``conf/lambda_0.yaml`` for a network, a data set and a loss: its ``value`` and its ``source``.

    Raises:
        ConfigError: none fits.
    """
    names = {"model": str(model), "dataset": str(dataset), "loss": str(loss)}
    for entry in cast(list[dict[str, Any]], OmegaConf.to_container(OmegaConf.load(CONF_DIR / "lambda_0.yaml"))):
        if all(fnmatch.fnmatchcase(name, str(entry.get(key, "*"))) for key, name in names.items()):
            return entry
    chosen = " ".join(f"{key}={name}" for key, name in names.items())
    raise ConfigError(f"conf/lambda_0.yaml has no entry for {chosen}: give loss.lambda_0=")


def register_resolvers() -> None:
    """Teach OmegaConf the rules that ``conf/`` is written with. May be called any number of times."""
    OmegaConf.register_new_resolver("match", _match, replace=True)
    OmegaConf.register_new_resolver("rescale", _rescale, replace=True)
    OmegaConf.register_new_resolver("lambda_0", lambda *names: lambda_0_of(*names)["value"], replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(str(path)).expanduser().resolve().name, replace=True
    )


# --------------------------------------------------------------------------------------------------------- composing


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The frozen configuration that ``python train.py OVERRIDES`` would run."""
    return compose_from("train", overrides, freeze)


def compose_from(
    root: str, overrides: Sequence[str], freeze_it: Callable[[DictConfig, Sequence[str]], DictConfig]
) -> DictConfig:
    """What ``conf/<root>.yaml`` and the overrides compose, frozen."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    with explain(), initialize_config_dir(str(CONF_DIR), version_base=None):
        cfg = hydra_compose(root, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return freeze_it(cfg, overrides)


@contextmanager
def explain() -> Iterator[None]:
    """Turn what Hydra says of a mistyped command line, often five lines, into one sentence."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException

    try:
        yield
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = ", ".join(option for option in error.options or () if not option.startswith("_"))
        raise ConfigError(f"there is no {group}={name}; {group}= can be {options}") from error
    except (ConfigCompositionException, HydraException) as error:
        raise ConfigError(_one_sentence(str(error))) from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        raise ConfigError("model=, dataset=, loss= and the other groups each take a name, not null") from error


def _one_sentence(message: str) -> str:
    """What Hydra wrote, without its advice to add the unknown key with a plus sign."""
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return " ".join(message.split("\nSee https")[0].split())
    key, known = unknown[1].partition("@")[0], _known_keys()
    if key in known:
        return f"{key!r} is a setting of other choices of {key.partition('.')[0]}=, not of the one made"
    near = difflib.get_close_matches(key, known, n=3)
    return f"unknown setting {key!r}" + (
        f"; did you mean {' or '.join(near)}?" if near else "; `python train.py --cfg job` lists all"
    )


def _known_keys() -> list[str]:
    """Every key that a command line can set, for suggestions."""
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


def freeze(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Resolve, check and name a composed configuration; nothing of Hydra's remains in it.

    Raises:
        ConfigError: a setting is wrong, or an override adds a key that nothing reads.
    """
    plain = settled(cfg, overrides)
    check(plain)
    if plain["model"]["weights"] is not None:
        plain["model"]["weights_sha256"] = weights_digest(plain["model"])
    identity = {"run_id": run_id(plain), "numerics_version": NUMERICS_VERSION}
    return OmegaConf.create({**identity, **plain})


def settled(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """A composed configuration with every rule resolved, as plain containers, without Hydra's own part.

    Raises:
        ConfigError: a setting has no value, or an override adds a key that nothing reads.
    """
    _refuse_additions(cfg, overrides)
    for group, name in cfg.choice.items():
        if str(name).startswith("_"):
            raise ConfigError(f"there is no {group}={name}: a file whose name begins with _ is a part of others")
    ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if missing := sorted(OmegaConf.missing_keys(ours)):
        raise ConfigError(f"{'=, '.join(missing)}= has no default: give it a value")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(ours, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error.__cause__ or error).splitlines()[:2])) from error


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


def _refuse_additions(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Hydra suggests ``+key=value`` for an unknown key, and would then let it pass under a new run name."""
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


# ---------------------------------------------------------------------------------------------------- frozen configs


def write_frozen(cfg: DictConfig, path: Path) -> None:
    """Write a frozen configuration as YAML; the run may have been started from this very file, which stays whole."""
    with written_whole(path) as file:
        file.write(OmegaConf.to_yaml(cfg).encode())


def read_frozen(path: Path) -> DictConfig:
    """Read ``runs/<run_id>/config.yaml``.

    Raises:
        ConfigError: not a frozen configuration, edited since, or frozen by code with other numerics.
    """
    return read_frozen_as(path, check, run_id)


def read_frozen_as(
    path: Path, check_it: Callable[[Mapping[str, Any]], None], name_it: Callable[[Mapping[str, Any]], str]
) -> DictConfig:
    """Likewise, of a kind of run with checks and names of its own."""
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {str(error).splitlines()[0]}") from error
    except Exception as error:  # PyYAML's own hierarchy, which OmegaConf lets through
        raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(cfg, DictConfig) or "run_id" not in cfg or "numerics_version" not in cfg:
        raise ConfigError(f"{path} is not a frozen run (it has no run_id); give settings as key=value instead")
    if cfg.numerics_version != NUMERICS_VERSION:
        raise ConfigError(
            f"{path} was frozen under numerics version {cfg.numerics_version}, this code has {NUMERICS_VERSION}: "
            "check out the older code, or compose the run anew"
        )
    defaults = cast(DictConfig, OmegaConf.load(CONF_DIR / "train.yaml"))
    for key in ("checkpoint", "force"):  # younger than some frozen files, and without influence on a result
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
    if path.resolve().parent.name == stated:  # the run lives where its file lies, wherever it was begun
        cfg.runs_dir = str(path.resolve().parent.parent)
    return cfg


# ----------------------------------------------------------------------------------------------------- a run's name


_SEED = "\0seed\0"  # where the seed comes; no setting can be this


def request(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for: the settings that can change the result.

    Nulls are left out, and what holds nothing else: a new option, or a new group of them, starts as nulls.
    """
    plain = cfg if isinstance(cfg, dict) else cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, cfg)))
    identity = ("run_id", "numerics_version")
    return cast(dict[str, Any], _pruned({key: value for key, value in plain.items() if key not in identity}, ""))


def _pruned(node: Any, path: str) -> Any:
    if isinstance(node, Mapping):
        below = {key: _pruned(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        asked = {k: v for k, v in below.items() if v is not None and v != {}}
        return {k: v for k, v in asked.items() if (f"{path}.{k}" if path else k) not in NOT_REQUESTED}
    if isinstance(node, list):
        return [_pruned(value, path) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def run_id(cfg: Mapping[str, Any]) -> str:
    """``<model>-<dataset>-<augmentation>-<loss>-s<seed>-<hash of the request>``."""
    return requested_run_id(request(cfg), cfg["choice"])


def requested_run_id(requested: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    """The same, of what ``request`` gave: runs that have finished keep their request and the names chosen."""
    return run_names(requested, choice)(requested["seed"])


def run_names(requested: Mapping[str, Any], choice: Mapping[str, Any]) -> Callable[[int], str]:
    """Seed -> run id, of runs that differ in their seed alone: to name thousands takes little longer than one."""
    body = {**requested, "numerics_version": NUMERICS_VERSION, "seed": _SEED}
    head, tail = json.dumps(body, sort_keys=True, separators=(",", ":")).encode().split(json.dumps(_SEED).encode())
    begun, cell = hashlib.sha256(head), cell_name({**requested, "choice": choice})

    def name(seed: int) -> str:
        digest = begun.copy()
        digest.update(json.dumps(seed).encode() + tail)
        return f"{cell}-s{seed}-{digest.hexdigest()[:10]}"

    return name


def model_name(cfg: Mapping[str, Any]) -> str:
    """The model that was chosen; of timm's, which one."""
    chosen = str(cfg["choice"]["model"])
    return f"timm_{cfg['model']['name']}".replace("/", "_") if chosen == "timm" else chosen


def dataset_name(cfg: Mapping[str, Any]) -> str:
    """The data set that was chosen; of folders, which one."""
    chosen = str(cfg["choice"]["dataset"])
    return f"folder_{cfg['dataset']['name']}" if chosen == "folder" else chosen


def cell_name(cfg: Mapping[str, Any]) -> str:
    """``<model>-<dataset>-<augmentation>-<loss>[-<generator>]``: what the runs of all seeds have in common."""
    choice, kind = cfg["choice"], generator_kind(cfg)
    parts = [model_name(cfg), dataset_name(cfg), choice["augmentation"], choice["loss"], *([kind] if kind else [])]
    return "-".join(parts)


# ---------------------------------------------------------------------------------------------------------- building


def build_model(cfg: DictConfig, num_classes: int) -> Any:
    """The network of ``cfg.model`` as its class draws it; ``model.weights`` is for whoever wants it loaded."""
    arguments = [str(key) for key in cfg.model if key not in ("weights", "weights_sha256")]
    return build(OmegaConf.masked_copy(cfg.model, arguments), num_classes=num_classes)


def build_loss(cfg: DictConfig, **arguments: Any) -> Any:
    """The loss of ``cfg.loss``; what ``loss.sync`` asks for is for whoever starts several processes."""
    known = [str(key) for key in cfg.loss if key != "sync"]
    return build(OmegaConf.masked_copy(cfg.loss, known), **arguments)


def target_class(node: DictConfig) -> type:
    """The class that a node's ``_target_`` names."""
    from hydra.utils import get_class

    return get_class(node["_target_"])


def build(node: DictConfig, **arguments: Any) -> Any:
    """Make the object that a node's ``_target_`` names.

    Raises:
        UserError: the object's own, or in one sentence what it refused.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = cast(dict[str, Any], OmegaConf.to_container(node))
    try:
        return instantiate(plain, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, ValueError | TypeError):
            given = ", ".join(f"{key}={value}" for key, value in plain.items() if key != "_target_")
            raise ConfigError(f"{plain['_target_']} cannot be made with {given}: {error.__cause__}") from error
        if error.__cause__ is not None:  # a defect of the program, which Hydra's error would hide
            raise error.__cause__ from error
        raise
