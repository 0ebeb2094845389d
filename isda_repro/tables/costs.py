"""Estimated cost of a run, from its frozen settings alone, and the cost that ISDA adds (last two columns of Table 1).

``costs.json`` beside this file has the multiply-adds of every network in ``conf/model``, counted on the networks
themselves by ``python scripts/models.py data=isda_repro/tables/costs.json``. So nothing here needs torch.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from isda_repro.console import one_line, warn
from isda_repro.runs.strict_json import MOST_CHARACTERS, Positive, Text, read_json, reason, validated

# Settings that change neither a network's parameters nor its multiply-adds. Any other setting may, so a network whose
# other settings are not in costs.json has no known cost.
NO_MATTER = (
    *("weights", "weights_sha256", "official_init", "pretrained", "dropout", "checkpointed"),
    *("zero_init_last", "shift", "image_size"),
)
WITHOUT_BIAS = ("large_margin",)  # losses whose head has no bias


class Images(NamedTuple):
    """Sizes of a data set."""

    classes: int
    training: int
    pixels: int  # side length


DATASETS = {
    "digits": Images(10, 1437, 8),
    "cifar10": Images(10, 50_000, 32),
    "cifar100": Images(100, 50_000, 32),
    "imagenet": Images(1000, 1_281_167, 224),
    "imagenet_packed": Images(1000, 1_281_167, 224),
}
"""Sizes of the data sets. Folders are not here: their number of images is unknown until they are read."""


class Measured(NamedTuple):
    """Published training time of a network on CIFAR, and the networks of ours whose layers are similar."""

    network: str
    epochs: int
    hours: float
    like_it: tuple[str, ...]


SOURCE = "hysts/pytorch_image_classification"
ON_GTX_980 = (
    Measured("resnet110", 160, 3 + 6 / 60, ("resnet8", "resnet20", "resnet32", "resnet110", "se_resnet110")),
    Measured("wrn28_10", 200, 16 + 10 / 60, ("wrn16_8", "wrn28_10")),
    Measured("resnext29_8x64d", 300, 42 + 50 / 60, ("resnext29_8x64d",)),
    Measured("densenet_bc100_12", 300, 15 + 20 / 60, ("densenet_bc100_12",)),
    Measured("shake_shake26_2x32d", 1800, 33 + 49 / 60, ("shake_shake26_2x32d",)),
    Measured("shake_shake26_2x112d model.width=96", 1800, 101 + 32 / 60, ("shake_shake26_2x112d",)),
)
ON_V100 = Measured("wrn28_10", 200, 3 + 41 / 60, ())  # batches of 512; other networks' layers are smaller


WORTH_SAYING = 0.01  # hours


@dataclass(frozen=True)
class Estimate:
    """Estimated hours on one GPU, derived from a measurement that others published."""

    hours: float
    gpu: str
    at_least: bool  # a lower bound: the measured network has larger layers, which run at a higher rate

    def __str__(self) -> str:
        duration = f"{rounded(self.hours)} h" if self.hours >= WORTH_SAYING else "less than a minute"
        return f"{duration} {'or more ' if self.at_least else ''}on a {self.gpu}"


@dataclass(frozen=True)
class Cost:
    """Cost of a network and of its training. Evaluation and the loss are not included."""

    parameters: int  # including the head for the data set's classes
    multiply_adds: int  # of the forward pass of one image
    feature_dim: int
    petaflop: float  # of the whole training, see ``training_petaflop``
    estimates: tuple[Estimate, ...]

    def __str__(self) -> str:
        said = (str(one) for one in self.estimates if one.hours >= WORTH_SAYING or not one.at_least)
        return "; ".join(filter(None, (f"{counted(self.petaflop)} PFLOP", ", ".join(said))))


def cost_of(settings: Mapping[str, Any]) -> Cost | None:
    """Return the cost of training a run.

    Args:
        settings: frozen settings (``Run.settings``), or the ``request`` of a result together with its ``choice``.

    Returns:
        None if the cost is unknown: for a network that is not in costs.json (timm's, or another depth), and for images
        whose number or size is unknown (a folder's).
    """
    model, dataset, recipe = settings["choice"]["model"], settings["dataset"], settings["recipe"]
    images, network = DATASETS.get(settings["choice"]["dataset"]), _network(settings["model"])
    if images is None or network is None:
        return None
    pixels = dataset.get("image_size") or images.pixels
    body = network["body_multiply_adds"].get(str(pixels))
    if body is None:
        return None
    head = network["feature_dim"] * images.classes
    biases = 0 if settings["choice"]["loss"] in WITHOUT_BIAS else images.classes
    left = _left(images, dataset.get("holdout") or 0, dataset.get("imbalance") or 1)
    passes = recipe["epochs"] * (recipe.get("passes") or 1)
    petaflop = training_petaflop(body + head, min(dataset.get("train_limit") or left, left) * passes)
    return Cost(
        parameters=network["body_parameters"] + head + biases,
        multiply_adds=body + head,
        feature_dim=network["feature_dim"],
        petaflop=petaflop,
        estimates=tuple(estimates(model, petaflop, pixels)),
    )


def _left(images: Images, holdout: int, imbalance: float) -> int:
    """Return the number of training images beside a holdout, for classes of one size (``data.source.long_tailed``)."""
    left = images.training - holdout
    if imbalance == 1:
        return left
    last = images.classes - 1
    return sum(int(left // images.classes / imbalance ** (label / last)) for label in range(images.classes))


def training_petaflop(multiply_adds: int, images: int) -> float:
    """Return the operations of a training, in units of 1e15.

    A multiply-add is two operations. A training step costs three forward passes: one forward, and one each for the
    gradients of inputs and weights.

    Args:
        multiply_adds: of the forward pass of one image.
        images: images processed in the whole training.
    """
    return 3 * 2 * multiply_adds * images / 1e15


def estimates(model: str, petaflop: float, pixels: int) -> Iterator[Estimate]:
    """Yield estimated hours at the rates of the published trainings; on the GTX 980 only for images of CIFAR's size."""
    for measured in ON_GTX_980:
        if model in measured.like_it and pixels == DATASETS["cifar10"].pixels:
            yield Estimate(petaflop / rate(measured), "GTX 980", at_least=False)
    yield Estimate(petaflop / rate(ON_V100), "V100", at_least=True)


def rate(measured: Measured) -> float:
    """Return the rate of a published training in PFLOP per hour."""
    network, cifar = networks()[measured.network], DATASETS["cifar10"]
    multiply_adds = network["body_multiply_adds"][str(cifar.pixels)] + network["feature_dim"] * cifar.classes
    return training_petaflop(multiply_adds, cifar.training * measured.epochs) / measured.hours


def counted(petaflop: float) -> str:
    """Format a number of PFLOP: as an integer with thousands separators, or with one significant digit below 0.95."""
    return f"{petaflop:,.0f}" if petaflop >= 0.95 else f"{petaflop:.1g}"


def rounded(hours: float) -> str:
    """Format hours with at least two significant digits."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


# --------------------------------------------------------------------------------------------------- counted networks


@cache
def networks() -> dict[str, dict[str, Any]]:
    """Return the counted networks by their name and overrides.

    Each entry has the settings that determine its size, its ``feature_dim``, and its ``body``: the counts without the
    head.
    """
    text = (resources.files(__package__) / "costs.json").read_text(encoding="utf-8")
    counted: dict[str, dict[str, Any]] = json.loads(text)
    counted.pop("made_by", None)
    return counted


def size_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``model`` on which its size depends, or may depend."""
    return {str(key): value for key, value in model.items() if key not in NO_MATTER and value is not None}


def _network(model: Mapping[str, Any]) -> dict[str, Any] | None:
    asked = size_settings(model)
    return next((network for network in networks().values() if network["settings"] == asked), None)


# -------------------------------------------------------------------------------------------------- what ISDA adds


@dataclass(frozen=True)
class WallTime:
    """Our measurement with ``python benchmarks/overhead.py``: whole training steps, with CE and ISDA in turns."""

    percent: float  # extra time of a step in ISDA's criterion compared with CE's, relative to the step with CE: median
    low: float  # lower quartile over the turns
    high: float  # upper quartile
    step_percent: float  # the same from the medians of whole steps, which includes the noise of the network's time
    batch_size: Positive
    precision: Text
    hardware: Text
    date: Text  # in ISO 8601


@dataclass(frozen=True)
class AddedCost:
    """Cost that ISDA adds for one network, in percent: Table 1's last two columns."""

    theoretical: float  # 5 C A over the multiply-adds of a forward pass
    official: float | None  # the same for the authors' number of first channels, where it differs (DenseNets)
    wall: WallTime | None  # None if it was not measured


def table1_costs(model: str, results_dir: Path = Path("results")) -> AddedCost | None:
    """Return the cost that ISDA adds to a training step on ImageNet.

    None if the network is not counted at that image size.

    Args:
        model: name in ``conf/model``.
        results_dir: folder with ``benchmarks/overhead_*.json``; measurements on an accelerator come before those on a
            CPU. A file that is none of ours is passed over with a warning.
    """
    theoretical = _theoretical(model)
    if theoretical is None:
        return None
    return AddedCost(theoretical, _theoretical(f"{model} faithful=official"), _wall_time(model, results_dir))


def _theoretical(name: str) -> float | None:
    """Return ISDA's added computation on ImageNet in percent: 5 C A over the multiply-adds of a forward pass.

    None if the network is not counted at ImageNet's size.
    """
    images, network = DATASETS["imagenet"], networks().get(name, {})
    body = network.get("body_multiply_adds", {}).get(str(images.pixels))
    if body is None:
        return None
    head = images.classes * network["feature_dim"]
    return float(100 * 5 * head / (body + head))


def _wall_time(model: str, results_dir: Path) -> WallTime | None:
    """Return the measurement for a model on ImageNet: on an accelerator if there is one, and of these the latest."""
    found: list[tuple[bool, str, WallTime]] = []
    for path in sorted((results_dir / "benchmarks").glob("overhead_*.json")):
        try:
            measured = read_json(path)
            rows = [_read(row, measured) for row in measured["rows"] if _is_table_1s(row, model)]
            found += [(bool(measured["accelerator"]), row.date, row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _warn_once(
                one_line(f"passed over: {path}: no measurement of overhead.py's ({reason(error)})"[:MOST_CHARACTERS])
            )
    return max(found, key=operator.itemgetter(0, 1), default=(False, "", None))[2]


@cache
def _warn_once(sentence: str) -> None:
    """Print a warning, once for all networks of a table."""
    warn(sentence)


def _is_table_1s(row: Mapping[str, Any], model: str) -> bool:
    images = DATASETS["imagenet"]
    return (row["model"], row["classes"], row["pixels"]) == (model, images.classes, images.pixels)


def _read(row: Mapping[str, Any], measured: Mapping[str, Any]) -> WallTime:
    stated = {"percent": row["added_percent"], "low": row["added_low"], "high": row["added_high"]}
    stated |= {"step_percent": row["step_percent"], "batch_size": row["batch_size"]}
    about = {key: measured[key] for key in ("precision", "hardware", "date")}
    return WallTime(**validated(WallTime, {**stated, **about}))
