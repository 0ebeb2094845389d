"""What a run costs, from its frozen settings alone, and what ISDA adds to it: Table 1's two cost columns.

``costs.json`` beside this file has the multiply-adds of every network of ``conf/model``, counted on the networks
themselves by ``python scripts/models.py data=isda_repro/tables/costs.json``; nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from isda_repro.errors import UserError

# What changes neither a network's parameters nor its multiply-adds; whatever else is not in costs.json may.
NO_MATTER = (
    *("weights", "weights_sha256", "official_init", "pretrained", "dropout", "checkpointed"),
    *("zero_init_last", "shift", "image_size"),
)
WITHOUT_BIAS = ("large_margin",)  # losses on a head without


class _Images(NamedTuple):
    classes: int
    training: int
    pixels: int  # of a side


DATASETS = {
    "digits": _Images(10, 1437, 8),
    "cifar10": _Images(10, 50_000, 32),
    "cifar100": _Images(100, 50_000, 32),
    "imagenet": _Images(1000, 1_281_167, 224),
    "imagenet_packed": _Images(1000, 1_281_167, 224),
}
"""Of folders nobody knows how many images they have before they are read."""


class Measured(NamedTuple):
    """A training on CIFAR that somebody timed: a network of costs.json, and ours with layers like its."""

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
ON_V100 = Measured("wrn28_10", 200, 3 + 41 / 60, ())  # in batches of 512; other networks' layers are smaller


WORTH_SAYING = 0.01  # hours


@dataclass(frozen=True)
class Estimate:
    """Hours on one GPU, from a measurement that is not ours."""

    hours: float
    gpu: str
    at_least: bool  # at the rate of a network whose layers are larger
    source: str = SOURCE

    def __str__(self) -> str:
        duration = f"{rounded(self.hours)} h" if self.hours >= WORTH_SAYING else "less than a minute"
        return f"{duration} {'or more ' if self.at_least else ''}on a {self.gpu}"


@dataclass(frozen=True)
class Cost:
    """Of a network and its training; evaluation and the loss are not in it."""

    parameters: int  # its head for the data set's classes included
    multiply_adds: int  # of one image's forward pass
    feature_dim: int
    petaflop: float  # three forward passes a step: the gradients of inputs and of weights are one each
    estimates: tuple[Estimate, ...]

    def __str__(self) -> str:
        said = (str(one) for one in self.estimates if one.hours >= WORTH_SAYING or not one.at_least)
        return "; ".join(filter(None, (f"{counted(self.petaflop)} PFLOP", ", ".join(said))))


def cost_of(settings: Mapping[str, Any]) -> Cost | None:
    """What the training of a run takes.

    Args:
        settings: its frozen settings, ``Run.settings``; or the ``request`` of a result with its ``choice``.

    Returns:
        None where it is not known: a network that is not in costs.json (timm's, another depth), images whose number
        or size is not (a folder's).
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
    left = images.training - (dataset.get("holdout") or 0)
    passes = recipe["epochs"] * (recipe.get("passes") or 1)
    petaflop = training_petaflop(body + head, min(dataset.get("train_limit") or left, left) * passes)
    return Cost(
        parameters=network["body_parameters"] + head + biases,
        multiply_adds=body + head,
        feature_dim=network["feature_dim"],
        petaflop=petaflop,
        estimates=tuple(estimates(model, petaflop, pixels)),
    )


def training_petaflop(multiply_adds: int, images: int) -> float:
    """Two operations a multiply-add, three forward passes for a training step on each of the images."""
    return 3 * 2 * multiply_adds * images / 1e15


def estimates(model: str, petaflop: float, pixels: int) -> Iterator[Estimate]:
    """At the rates of the published trainings; those on the old GPU only for images of CIFAR's size."""
    for measured in ON_GTX_980:
        if model in measured.like_it and pixels == DATASETS["cifar10"].pixels:
            yield Estimate(petaflop / rate(measured), "GTX 980", at_least=False)
    yield Estimate(petaflop / rate(ON_V100), "V100", at_least=True)


def rate(measured: Measured) -> float:
    """PFLOP an hour."""
    network, cifar = networks()[measured.network], DATASETS["cifar10"]
    multiply_adds = network["body_multiply_adds"][str(cifar.pixels)] + network["feature_dim"] * cifar.classes
    return training_petaflop(multiply_adds, cifar.training * measured.epochs) / measured.hours


def counted(petaflop: float) -> str:
    """Whole ones, where there are any."""
    return f"{petaflop:,.0f}" if petaflop >= 0.95 else f"{petaflop:.1g}"


def rounded(hours: float) -> str:
    """Two digits at least."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


# --------------------------------------------------------------------------------------------------- counted networks


@cache
def networks() -> dict[str, dict[str, Any]]:
    """Name and overrides -> what decides its size, and its ``body``, that is, without the head."""
    text = (resources.files(__package__) / "costs.json").read_text(encoding="utf-8")
    counted: dict[str, dict[str, Any]] = json.loads(text)
    return counted


def size_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ``model`` on which its size depends, or may depend."""
    return {str(key): value for key, value in model.items() if key not in NO_MATTER and value is not None}


def _network(model: Mapping[str, Any]) -> dict[str, Any] | None:
    asked = size_settings(model)
    return next((network for network in networks().values() if network["settings"] == asked), None)


# -------------------------------------------------------------------------------------------------- what ISDA adds


@dataclass(frozen=True)
class WallTime:
    """A measurement of ours: ``python benchmarks/overhead.py``, whole training steps, CE and ISDA in turns."""

    percent: float  # the time that a step spends in ISDA's criterion beyond CE's, over the step with CE: median
    low: float  # quartiles over the turns
    high: float
    step_percent: float  # the same from whole steps: medians of ISDA's over CE's, with all the noise of the network
    batch_size: int
    precision: str
    hardware: str
    date: str


@dataclass(frozen=True)
class AddedCost:
    """Table 1's last two columns for one network, in percent."""

    theoretical: float  # 5 C A over the multiply-adds of a forward pass
    official: float | None  # likewise with the authors' first channels, where those are others (DenseNets)
    wall: WallTime | None  # None: not measured


def table1_costs(model: str, results_dir: Path = Path("results")) -> AddedCost | None:
    """What ISDA adds to a training step on ImageNet; None for a network that is not counted at its size.

    Args:
        model: its name in ``conf/model``.
        results_dir: has ``benchmarks/overhead_*.json``; one of an accelerator is preferred to one of a CPU.
    """
    theoretical = _theoretical(model)
    if theoretical is None:
        return None
    return AddedCost(theoretical, _theoretical(f"{model} faithful=official"), _wall_time(model, results_dir))


def _theoretical(name: str) -> float | None:
    images, network = DATASETS["imagenet"], networks().get(name, {})
    body = network.get("body_multiply_adds", {}).get(str(images.pixels))
    if body is None:
        return None
    head = images.classes * network["feature_dim"]
    return float(100 * 5 * head / (body + head))


def _wall_time(model: str, results_dir: Path) -> WallTime | None:
    on_cpu: list[WallTime] = []
    on_accelerator: list[WallTime] = []
    for path in sorted((results_dir / "benchmarks").glob("overhead_*.json")):
        try:
            measured = json.loads(path.read_text(encoding="utf-8"))
            kind = on_accelerator if measured["accelerator"] else on_cpu
            kind += [_read(row, measured) for row in measured["rows"] if _is_table_1s(row, model)]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no measurement of overhead.py's: {error!r}") from error
    return next(iter((*on_accelerator, *on_cpu)), None)


def _is_table_1s(row: Mapping[str, Any], model: str) -> bool:
    images = DATASETS["imagenet"]
    return (row["model"], row["classes"], row["pixels"]) == (model, images.classes, images.pixels)


def _read(row: Mapping[str, Any], measured: Mapping[str, Any]) -> WallTime:
    return WallTime(
        percent=float(row["added_percent"]),
        low=float(row["added_low"]),
        high=float(row["added_high"]),
        step_percent=float(row["step_percent"]),
        batch_size=int(row["batch_size"]),
        precision=str(measured["precision"]),
        hardware=str(measured["hardware"]),
        date=str(measured["date"]),
    )
