"""A table's plan: the frozen, named runs that fill its cells, and the generators that they need.

Composing comes in as a function, ``isda_repro.config.compose``: this package does not know Hydra.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import generator_overrides, request, run_names
from isda_repro.config.checks import generator_kind
from isda_repro.config.options import typed
from isda_repro.errors import UserError
from isda_repro.experiments.spec_parser import refuse_seeds
from isda_repro.experiments.table import Cell, Table

Compose = Callable[[list[str]], DictConfig | dict[str, Any]]
"""Overrides -> the frozen configuration, of a generator where the first is ``gan=``.

ComposeCache ones come as plain dictionaries, which are ten times as quick.
"""


@dataclass(frozen=True, eq=False)
class Run:
    """One seed of one cell, named; ``settings`` is the frozen configuration as a plain dictionary."""

    seed: int
    run_id: str
    settings: Mapping[str, Any]

    @property
    def is_generator(self) -> bool:
        """Whether it trains a generator, and no classifier."""
        return "gan" in self.settings

    @property
    def config(self) -> DictConfig:
        """The frozen configuration, as ``isda_repro.config.write_frozen`` takes it."""
        return OmegaConf.create(dict(self.settings))


Plan = dict[Cell, tuple[Run, ...]]


def plan_runs(table: Table, compose: Compose, extra: Sequence[str] = ()) -> Plan:
    """Every cell's runs. A cell is composed once; its seeds are set afterwards, since composing is what takes time.

    Cells that show different numbers of the same runs have them in common.

    Args:
        table: what to expand.
        compose: ``isda_repro.config.compose``.
        extra: overrides that come after those of every cell (``set=`` on the command line): they make other runs.
    """
    refuse_seeds(extra, "set=")
    plan: Plan = {}
    composed: dict[tuple[Any, ...], tuple[Run, ...]] = {}
    for cell in table.cells:
        if (same := composed.get((cell.overrides, cell.seeds))) is not None:
            plan[cell] = same
            continue
        frozen = compose([*cell.overrides, *extra, f"seed={cell.seeds[0]}"])
        settings = frozen if isinstance(frozen, dict) else cast(dict[str, Any], OmegaConf.to_container(frozen))
        name = run_names(request(settings), settings["choice"])
        plan[cell] = tuple(_with_seed(settings, seed, name(seed)) for seed in cell.seeds)
        composed[cell.overrides, cell.seeds] = plan[cell]
    return plan


def select_runs(table: Table, plan: Plan, labels: Sequence[str], seeds: Sequence[int]) -> Plan:
    """Return the part of a plan that ``only=`` and ``seeds=`` choose; an empty one of the two chooses all.

    Labels of one axis unite, those of different axes intersect. Of the seeds those count that the chosen cells list.

    Raises:
        UserError: a label or a seed is unknown, or nothing is left.
    """
    axes: dict[str, set[int]] = {}
    for cell in plan:
        for axis, label in enumerate((*cell.row, *cell.column)):
            axes.setdefault(label, set()).add(axis)
    by_axis = sorted(axes, key=lambda label: min(axes[label]))
    if unknown := [label for label in labels if label not in axes]:
        raise UserError(f"only={typed(unknown[:1])}: table={table.name} has the labels {typed(by_axis)}")
    groups: dict[frozenset[int], set[str]] = {}  # by axes, since a label may stand on several
    for label in labels:
        groups.setdefault(frozenset(axes[label]), set()).add(label)
    part = {
        cell: runs
        for cell, runs in plan.items()
        if all(any((*cell.row, *cell.column)[axis] in some for axis in group) for group, some in groups.items())
    }
    if not part:
        raise UserError(f"only={typed(list(labels))}: table={table.name} has no cell with all of these")
    known = sorted({run.seed for runs in part.values() for run in runs})
    if strange := [seed for seed in seeds if seed not in known]:
        raise UserError(
            f"seeds={typed(strange[:1])}: the chosen cells of table={table.name} have the seeds {typed(known)}"
        )
    chosen = {cell: tuple(run for run in runs if not seeds or run.seed in seeds) for cell, runs in part.items()}
    return {cell: runs for cell, runs in chosen.items() if runs}


def _with_seed(settings: Mapping[str, Any], seed: int, name: str) -> Run:
    """The seed stands at the top level and nowhere else, so nothing has to be composed again."""
    return Run(seed, name, {**settings, "seed": seed, "run_id": name})


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


LONGEST_TAG = 64  # characters; W&B takes no longer ones


def cell_tag(table: Table, cell: Cell) -> str:
    """``<table>/<cell>``: a tag of the cell's runs, and their group; one that is too long ends in a hash."""
    tag = f"{table.name}/{cell.slug}"
    if len(tag) <= LONGEST_TAG:
        return tag
    digest = hashlib.sha256(tag.encode()).hexdigest()[:8]
    return f"{tag[: LONGEST_TAG - len(digest) - 1]}-{digest}"


def tag_runs(table: Table, plan: Plan) -> Plan:
    """The plan, whose runs W&B will group by cell, tag with table and cell, and give the cell's number.

    A run of two cells is grouped with the first. What the user has set comes first, and stays.
    """
    cells: dict[str, list[Cell]] = {}
    for cell, runs in plan.items():
        for run in runs:
            cells.setdefault(run.run_id, []).append(cell)
    return {cell: tuple(_tagged(table, run, cells[run.run_id]) for run in runs) for cell, runs in plan.items()}


def _tagged(table: Table, run: Run, cells: list[Cell]) -> Run:
    tracking: Mapping[str, Any] = run.settings["tracking"]
    if tracking["mode"] == "none":
        return run
    tags = [*(tracking.get("tags") or ()), table.name, *(cell_tag(table, cell) for cell in cells)]
    found_by = {
        "group": tracking.get("group") or cell_tag(table, cells[0]),
        "tags": list(dict.fromkeys(tags)),
        "tables": list(dict.fromkeys([*(tracking.get("tables") or ()), table.name])),
        "table_metric": tracking.get("table_metric") or cells[0].metric,
    }
    return replace(run, settings={**run.settings, "tracking": {**tracking, **found_by}})
