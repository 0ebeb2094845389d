"""The generators that a table's runs train on: runs of their own, which a sweep makes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isda_repro.checks import generator_kind
from isda_repro.config import generator_overrides
from isda_repro.tables.plan import Compose, Plan, Run

TRACKING = {"none": "none", "offline": "offline", "online": "wandb"}  # the choices of tracking= by their mode


def generator_needed(settings: Mapping[str, Any]) -> str | None:
    """The name of the generator's run that a classifier trains on the images of; None: it trains on real ones alone."""
    return None if generator_kind(settings) is None else str(settings["synthetic"]["generator"])


def _surroundings(settings: Mapping[str, Any]) -> list[str]:
    """Where the classifier is trained, on what, and who is told: none of it is part of a generator's name."""
    tracking, data_dir = settings["tracking"], str(settings["data_dir"]).replace("'", "\\'")
    told = [f"tracking={TRACKING[tracking['mode']]}"]
    if tracking["mode"] != "none":
        told += [f"tracking.{key}={tracking[key] or 'null'}" for key in ("project", "entity")]
    return [*told, f"compute.device={settings['compute']['device']}", f"data_dir='{data_dir}'"]


def generators_of(plan: Plan, compose: Compose, folders: Sequence[str]) -> dict[str, Run]:
    """By name, those that the runs of a table need and that follow from their settings; others the user has made.

    Args:
        plan: the table's runs.
        compose: overrides -> frozen configuration, of a generator where the first is ``gan=``.
        folders: overrides that say where runs and data are.
    """
    found: dict[str, Run] = {}
    for runs in plan.values():
        name = generator_needed(runs[0].settings)  # which its seeds have in common
        if name is None or name in found:
            continue
        composed: Any = compose([*generator_overrides(runs[0].settings), *_surroundings(runs[0].settings), *folders])
        if composed["run_id"] == name:
            found[name] = Run(composed["seed"], name, composed)
    return found
