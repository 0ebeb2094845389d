"""Labels of the report's panels and lines, from the options that were chosen and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isda_repro.config import dataset_name, model_name
from isda_repro.runs.records import Result

FIRST = ("ce", "isda")  # losses whose lines come first in a panel; the rest follow in the order of their tables

METHOD = ("loss", "synthetic")  # the settings that, besides dropout, may differ between lines of one panel

Settings = Mapping[str, Any]


def panel_settings(result: Result) -> dict[str, Any]:
    """Return what all lines of a panel share: the request without seed and method, and the evaluation set."""
    request = {key: value for key, value in result.request.items() if key not in ("seed", *METHOD)}
    request["model"] = {key: value for key, value in result.request["model"].items() if key != "dropout"}
    choices = {key: value for key, value in result.choices.items() if key != "loss"}
    return {**request, "choice": choices, "evaluated_on": result.evaluated_on}


def line_settings(result: Result) -> dict[str, Any]:
    """Return what distinguishes a line within its panel: loss, synthetic images and dropout.

    Together with ``panel_settings`` this is the whole request except the seed, so runs of one line differ only in that.
    """
    images = result.request.get("synthetic")
    if images is not None:  # the generator's name already contains its kind and seed
        images = {key: value for key, value in images.items() if key not in ("kind", "seed", "source")}
    return {
        "choice": result.choices["loss"],
        "loss": result.request["loss"],
        "synthetic": None if images is None else " ".join(_written(value) for _, value in sorted(_dotted(images))),
        "dropout": result.request["model"].get("dropout"),
    }


def names_of(result: Result) -> dict[str, str]:
    """Return the values by which panels can be filtered: model, data set and augmentation."""
    named = {**result.request, "choice": result.choices}
    return {
        "model": model_name(named),
        "dataset": dataset_name(named),
        "augmentation": result.choices["augmentation"],
    }


def facts_of(result: Result) -> str:
    """Return the text under a panel's title. Non-breaking spaces keep each number with its unit."""
    passes = result.request["recipe"].get("passes") or 1
    parts = [
        f"{result.choices['augmentation']} augmentation",
        f"{result.train_images:,} training images",
        f"{result.epochs} epoch{'s' if result.epochs > 1 else ''}{f' of {passes} passes' if passes > 1 else ''}",
    ]
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def differing(settings: Sequence[Settings]) -> list[list[str]]:
    """Return, for each of several settings, the values that are not equal in all, such as ``recipe.epochs=12``."""
    flat = [dict(_dotted(one)) for one in settings]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if not key.endswith("_target_")]
    different = [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]
    return [[f"{key}={_written(one[key])}" for key in different if one.get(key) is not None] for one in flat]


def line_labels(settings: Sequence[Settings]) -> list[str]:
    """Return a label for each line: its loss, and the settings that differ between lines of that loss."""
    labels = [str(one["choice"]) for one in settings]
    for loss in set(labels):
        same = [index for index, one in enumerate(settings) if one["choice"] == loss]
        for index, own in zip(same, differing([settings[index] for index in same]), strict=True):
            labels[index] = ", ".join((loss, *(part.removeprefix("loss.") for part in own)))
    return labels


def line_order(settings: Settings) -> int:
    """Return a line's rank within its panel.

    A stable sort by it leaves lines other than plain CE and ISDA in their order.
    """
    is_plain = settings["choice"] in FIRST and settings["synthetic"] is None
    return FIRST.index(settings["choice"]) if is_plain else len(FIRST)


def _dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _dotted(value, f"{prefix}.{key}" if prefix else str(key))


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
