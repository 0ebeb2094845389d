"""Checks of a composed configuration: the range of each field, and fields that depend on each other."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from isda_repro.console import UNPRINTABLE, one_line
from isda_repro.errors import UserError

TRAINING_SELECTION = ("train_limit", "holdout", "imbalance")
"""Settings of a data set that choose the images to train on; a generator has those of its classifier."""

MODEL_COUNTS = ("depth", "width", "growth", "first_channels", "cardinality", "base_width", "se_reduction", "image_size")


NOT_OF_MODELS = {  # arguments of timm's constructor that `model.` must not set, and what to use instead
    "checkpoint_path": "weights from a file are model.weights=",
    "num_classes": "the data set has its number of classes",
    "features_only": "a network without its classifier has no logits",
    "drop_rate": "it is model.dropout=",
    "pretrained_cfg": "weights from a file are model.weights=",
    "pretrained_cfg_overlay": "weights from a file are model.weights=",
    "cache_dir": "downloads go into the cache that HF_HOME names",
}


class ConfigError(UserError):
    """A setting is wrong; the message is one sentence that says which setting, why, and what to do."""


GENERATORS = ("wgan", "cgan", "acgan", "infogan")


def is_count(value: object) -> bool:
    """Return whether ``value`` is an integer of at least 1 (and not True)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Return whether ``value`` is a finite number (and not a boolean)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT


LARGEST_FLOAT = sys.float_info.max  # an integer can be larger, and NaN is not comparable
LARGEST_SEED = 2**63 - 1
LONGEST_TEXT = 4096  # characters, the length of the longest path on Linux
PATHS = ("data_dir", "runs_dir", "model.weights", "dataset.source.data_dir", "dataset.source.root")
"""Keys whose values are paths."""

NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python reads such bytes in arguments and file names


def check_texts(node: object, key: str = "") -> None:
    """Check all texts of a configuration, which end up in logs, tables, file names and job scripts.

    Raises:
        ConfigError: a text has a control character, such as a newline; has ``${``, which would be read as a reference
            to another setting; is longer than ``LONGEST_TEXT``; or is not UTF-8 and not a path.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            check_texts(name, f"the name of a setting in {key}" if key else "the name of a setting")
            check_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            check_texts(value, key)
    elif isinstance(node, str):
        if UNPRINTABLE.search(node):
            raise ConfigError(f"{key}={node[:100]!a} has a control character: use another name")
        if "${" in node:
            raise ConfigError(f"{key}={node[:100]!a} has ${{, which refers to another setting: use another name")
        if len(node) > LONGEST_TEXT:
            raise ConfigError(f"{key}={node[:40]!a}... has {len(node):,} characters, and can have {LONGEST_TEXT:,}")
        if key not in PATHS and NOT_UTF8.search(node):
            raise ConfigError(f"{key}={node[:100]!a} has bytes that are not UTF-8: use another name")


def generator_kind(cfg: Mapping[str, Any]) -> str | None:
    """Return the kind of generator whose images are trained on, or None.

    Frozen files may be older than this setting.
    """
    kind: str | None = (cfg.get("synthetic") or {}).get("kind")
    return kind


def check(cfg: Mapping[str, Any]) -> None:
    """Check the settings of a classifier.

    Raises:
        ConfigError: for the first wrong setting, with its key, its value and the values that it can have.
    """
    recipe, dataset = cfg["recipe"], cfg["dataset"]
    check_seed(cfg)
    for key in ("epochs", "batch_size"):
        require(is_count(recipe[key]), f"recipe.{key}", recipe[key], "a whole number from 1 on")
    passes = recipe.get("passes")
    require(passes is None or is_count(passes), "recipe.passes", passes, "a whole number from 1 on, or null")
    mixup = recipe.get("mixup")
    require(mixup is None or (is_number(mixup) and mixup > 0), "recipe.mixup", mixup, "a number above 0, or null")
    if mixup is not None and generator_kind(cfg) is not None:
        raise ConfigError(f"recipe.mixup={mixup} mixes real images: leave out synthetic={generator_kind(cfg)}")
    _check_loss(cfg["loss"])
    check_limits(dataset)
    _check_streamed(dataset)
    for key in ("mean", "std"):
        value, few = dataset[key], key == "mean"
        if value == "auto" and "train_crop" in dataset:
            continue
        numbers = isinstance(value, list) and all(is_number(one) and (few or one > 0) for one in value)
        require(numbers, f"dataset.{key}", value, "a number per channel, [0.5,0.5,0.5]" + ("" if few else ", above 0"))
    require(is_number(recipe["lr"]) and recipe["lr"] > 0, "recipe.lr", recipe["lr"], "a number above 0")
    decay, momentum = recipe["weight_decay"], recipe["momentum"]
    require(is_number(decay) and decay >= 0, "recipe.weight_decay", decay, "a number from 0 on")
    require(is_number(momentum) and 0 <= momentum < 1, "recipe.momentum", momentum, "a number in [0, 1)")
    require(not recipe["nesterov"] or momentum > 0, "recipe.nesterov", True, "false where recipe.momentum is 0")
    for key in MODEL_COUNTS:
        value = cfg["model"].get(key, 1)
        may_be_null = value is None and key in ("first_channels", "se_reduction")
        require(may_be_null or is_count(value), f"model.{key}", value, "a whole number from 1 on")
    for key in ("pretrained", "checkpointed", "stem_bias"):
        value = cfg["model"].get(key, False)
        require(isinstance(value, bool), f"model.{key}", value, "true or false")
    drawn = cfg["model"].get("official_init")
    require(drawn is None or isinstance(drawn, bool), "model.official_init", drawn, "true, false or null")
    for key, instead in NOT_OF_MODELS.items():
        if key in cfg["model"]:
            raise ConfigError(f"model.{key} cannot be set: {instead}")
    dropout = cfg["model"].get("dropout")
    require(
        dropout is None or (is_number(dropout) and 0 <= dropout < 1), "model.dropout", dropout, "a number in [0, 1)"
    )
    weights = cfg["model"].get("weights")
    require(
        weights is None or (isinstance(weights, str) and weights != ""), "model.weights", weights, "a file, or null"
    )
    if weights is not None and cfg["model"].get("pretrained"):
        raise ConfigError(f"model.weights={weights} and model.pretrained=true exclude each other: leave one out")
    _check_milestones(recipe)
    check_life(cfg)
    _check_synthetic(cfg.get("synthetic") or {})
    _check_choices(cfg)


def check_seed(cfg: Mapping[str, Any]) -> None:
    """Check that the seed is an integer from 0 to ``LARGEST_SEED``."""
    seed = cfg["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2^63 - 1")


def check_limits(dataset: Mapping[str, Any]) -> None:
    """Check the settings that choose a part of a data set, and its source."""
    for key in ("train_limit", "test_limit", "holdout"):
        value = dataset[key]
        require(value is None or is_count(value), f"dataset.{key}", value, "a whole number from 1 on, or null")
    imbalance = dataset.get("imbalance")  # missing in files that were frozen before this setting existed
    is_ratio = imbalance is None or (is_number(imbalance) and imbalance > 1)
    require(is_ratio, "dataset.imbalance", imbalance, "a number above 1, or null")
    require(isinstance(dataset["source"], Mapping), "dataset.source", dataset["source"], "left alone; choose dataset=")


def check_life(cfg: Mapping[str, Any]) -> None:
    """Check the settings that runs of every kind have: compute, checkpoint, folders, ``force``, tracking, all texts."""
    check_texts(cfg)
    _check_chosen(cfg["choice"])
    compute, tracking = cfg["compute"], cfg["tracking"]
    waits = compute.get("timeout_minutes", 10)  # missing in files that were frozen before this setting existed
    require(is_number(waits) and waits > 0, "compute.timeout_minutes", waits, "a number above 0")
    micro = compute["micro_batch"]
    require(micro is None or is_count(micro), "compute.micro_batch", micro, "a whole number from 1 on, or null")
    require(
        isinstance(cfg["checkpoint"], Mapping), "checkpoint", cfg["checkpoint"], "left alone; set checkpoint.minutes"
    )
    minutes, steps = cfg["checkpoint"]["minutes"], cfg["checkpoint"]["steps"]
    above_zero = is_number(minutes) and minutes > 0
    require(minutes is None or above_zero, "checkpoint.minutes", minutes, "a number above 0, or null")
    require(steps is None or is_count(steps), "checkpoint.steps", steps, "a whole number from 1 on, or null")
    require(isinstance(cfg["force"], bool), "force", cfg["force"], "true or false")
    for key in ("runs_dir", "data_dir"):
        require(isinstance(cfg[key], str) and bool(cfg[key]), key, cfg[key], "a folder's name")
    _check_among(
        {
            "compute.device": (compute["device"], ("auto", "cpu", "gpu")),
            "compute.precision": (compute["precision"], ("auto", "fp32", "bf16")),
            "compute.tf32": (compute["tf32"], ("auto", True, False)),
            "compute.channels_last": (compute["channels_last"], ("auto", True, False)),
            "compute.compile": (compute["compile"], ("auto", True, False)),
            "compute.cuda_graph": (compute.get("cuda_graph", "auto"), ("auto", True, False)),
            "compute.sync_bn": (compute.get("sync_bn"), (None, True)),
            "compute.deterministic": (compute["deterministic"], (True, False)),
            "tracking.mode": (tracking["mode"], ("none", "offline", "online")),
        }
    )


NOT_IN_NAMES = "/\\#?%:"
"""Characters that W&B takes neither in the name of a project nor, since both are parts of addresses, of an entity."""


def check_tracking(tracking: Mapping[str, Any]) -> None:
    """Check the names that W&B gets, when a run is composed or started: W&B itself refuses them when it has ended.

    Raises:
        ConfigError: for the first name that W&B does not take.
    """
    for key in ("project", "entity"):
        name = tracking.get(key)
        if key == "project" and isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            alone = "tracking.entity={} tracking.project={}".format(*name.split("/"))
            raise ConfigError(f"tracking.project={name} must be the project alone: {alone}")
        known = name is None or (_is_text(name, 128) and not set(name) & set(NOT_IN_NAMES))
        require(known, f"tracking.{key}", name, f"a name of at most 128 characters without {NOT_IN_NAMES}, or null")
    group, metric = tracking.get("group"), tracking.get("table_metric")
    require(group in (None, "") or _is_text(group, 128), "tracking.group", group, "a name of at most 128 characters")
    require(metric is None or _is_text(metric, 128), "tracking.table_metric", metric, "a field of the result, or null")
    for key, longest in (("tags", 64), ("tables", 128)):
        words = tracking.get(key, [])
        are_words = isinstance(words, list) and all(_is_text(word, longest) for word in words)
        require(are_words, f"tracking.{key}", words, f"a list of words of at most {longest} characters each")


def _is_text(value: object, longest: int) -> bool:
    """Return whether a value is text of 1 to ``longest`` characters, without control characters and stray bytes."""
    return (
        isinstance(value, str)
        and value.strip() != ""
        and len(value) <= longest
        and not (UNPRINTABLE.search(value) or NOT_UTF8.search(value))
    )


def _check_chosen(choice: Mapping[str, Any]) -> None:
    """Check that the choices are names of files, which a run's name is made of."""
    for group, name in choice.items():
        is_name = isinstance(name, str) and re.fullmatch(r"[\w+-][\w.+-]{0,63}", name) is not None
        require(is_name, f"choice.{group}", name, "the name of a file in conf/, without a path")


def _check_synthetic(synthetic: Mapping[str, Any]) -> None:
    """Check that a kind of generator, its share of each batch and its other settings are given, or none of them."""
    kind, fraction = synthetic.get("kind"), synthetic.get("fraction")
    if kind is None:
        for key, value in synthetic.items():
            require(value is None, f"synthetic.{key}", value, "null without a generator; choose synthetic=")
        return
    require(kind in GENERATORS, "synthetic.kind", kind, f"one of {', '.join(GENERATORS)}")
    is_share = isinstance(fraction, int | float) and 0.001 <= fraction <= 0.999  # True, NaN and infinity are not
    require(is_share, "synthetic.fraction", fraction, "a number from 0.001 to 0.999")
    covers, settings, seed = synthetic["covers_all"], synthetic["settings"], synthetic["seed"]
    require(covers is None or covers is True, "synthetic.covers_all", covers, "true or null")
    is_its = settings is None or (
        isinstance(settings, Mapping) and all(str(one).startswith("gan.") for one in settings)
    )
    require(is_its, "synthetic.settings", settings, "the generator's settings with their values, {gan.epochs:50}")
    is_seed = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    require(is_seed, "synthetic.seed", seed, "a whole number from 0 on")
    name, source = synthetic.get("generator"), synthetic["source"]
    is_name = name is None or (isinstance(name, str) and name != "" and "/" not in name and not name.startswith("."))
    require(is_name, "synthetic.generator", name, "null, or the name of a run in runs_dir")
    require(isinstance(source, Mapping), "synthetic.source", source, "left alone; choose synthetic=")


def _check_milestones(recipe: Mapping[str, Any]) -> None:
    schedule = recipe["schedule"]
    require(isinstance(schedule, Mapping), "recipe.schedule", schedule, "left alone; set recipe.schedule.milestones")
    gamma, milestones = schedule.get("gamma", 1), schedule.get("milestones", [])
    require(is_number(gamma) and 0 < gamma <= 1, "recipe.schedule.gamma", gamma, "a number in (0, 1]")
    require(isinstance(milestones, list), "recipe.schedule.milestones", milestones, "a list of epochs, [80,120]")
    for milestone in milestones:
        if not is_count(milestone):
            raise ConfigError(f"recipe.schedule.milestones has {milestone!r}: each must be an epoch, counted from 1")
        if milestone > recipe["epochs"]:
            raise ConfigError(
                f"recipe.schedule.milestones has {milestone}, past the last epoch (recipe.epochs={recipe['epochs']}): "
                "give milestones within the run, or leave them out and they follow recipe.epochs"
            )
    warmup = schedule.get("warmup_epochs")
    require(
        warmup is None or is_count(warmup), "recipe.schedule.warmup_epochs", warmup, "a whole number from 1 on, or null"
    )
    if list(milestones) != sorted(milestones):
        raise ConfigError(f"recipe.schedule.milestones={list(milestones)} must be in rising order")


def _check_streamed(dataset: Mapping[str, Any]) -> None:
    """Check the settings that only data sets on disk have."""
    if "train_crop" not in dataset:
        return
    require(is_count(dataset["image_size"]), "dataset.image_size", dataset["image_size"], "a whole number from 1 on")
    require(dataset["unreadable"] in ("stop", "skip"), "dataset.unreadable", dataset["unreadable"], "stop or skip")
    for key in ("train_crop", "test_crop"):
        crop = dataset.get(key, {})
        require(isinstance(crop, Mapping), f"dataset.{key}", crop, "left alone; set the keys in it")
    workers = dataset["workers"]
    require(
        workers == "auto" or is_count(workers) or (workers == 0 and not isinstance(workers, bool)),
        "dataset.workers",
        workers,
        "auto, or a number of processes from 0 on",
    )
    name = dataset.get("name", "name")
    is_name = isinstance(name, str) and name != "" and not set(name) & set("/\\\0")
    require(is_name, "dataset.name", name, "a name without / and \\, which dataset.name= can give")


def _check_loss(loss: Mapping[str, Any]) -> None:
    """Check the arguments of a loss that can be off, if it takes them, and that it has none of the trainer's."""
    for key in ("num_classes", "feature_dim", "process_group", "ignore_index"):
        if key in loss:
            raise ConfigError(f"loss.{key} cannot be set: it follows from the data, the network and the processes")
    prior, smoothing, weight = (loss.get(key) for key in ("prior", "label_smoothing", "weight"))
    require(prior is None or (is_number(prior) and prior >= 0), "loss.prior", prior, "a number from 0 on, or null")
    is_share = smoothing is None or (is_number(smoothing) and 0 <= smoothing <= 1)
    require(is_share, "loss.label_smoothing", smoothing, "a number in [0, 1], or null")
    if weight in (None, "balanced") or "label_smoothing" not in loss:  # the weight of another loss is something else
        return
    are_weights = isinstance(weight, list) and weight and all(is_number(one) and one > 0 for one in weight)
    require(bool(are_weights), "loss.weight", weight, "a number above 0 for each class, [1,2,...], balanced, or null")


def _check_choices(cfg: Mapping[str, Any]) -> None:
    faithful = cfg["faithful"]
    allowed: dict[str, tuple[Any, Sequence[Any]]] = {
        "loss.sync": (cfg["loss"].get("sync"), (None, False)),
        "loss.reduction": (cfg["loss"].get("reduction", "mean"), ("mean",)),
        "faithful.progress": (faithful["progress"], ("iteration", "epoch")),
        "faithful.crop_padding": (faithful["crop_padding"], ("zeros", "reflect")),
        "faithful.channel_statistics": (faithful["channel_statistics"], ("dataset", "cifar10")),
        "faithful.cosine_ends_at_zero": (faithful["cosine_ends_at_zero"], (True, False)),
        "recipe.nesterov": (cfg["recipe"]["nesterov"], (True, False)),
        "recipe.schedule.ends_at_zero": (cfg["recipe"]["schedule"].get("ends_at_zero", False), (True, False)),
        "augmentation.flip": (cfg["augmentation"].get("flip", False), (True, False)),
    }
    _check_among(allowed)


def _check_among(allowed: Mapping[str, tuple[Any, Sequence[Any]]]) -> None:
    """Check for each key that its value is one of the allowed values."""
    for key, (value, values) in allowed.items():
        same = any(value == candidate and type(value) is type(candidate) for candidate in values)
        require(same, key, value, "one of " + ", ".join("null" if v is None else str(v).lower() for v in values))


def require(holds: bool, key: str, value: object, what: str) -> None:
    """Raise a ConfigError about the setting ``key`` unless ``holds``; ``what`` says what its value must be."""
    if not holds:
        raise ConfigError(f"{key}={one_line(value)} must be {what}")
