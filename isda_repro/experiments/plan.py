"""Plan of a table: the frozen, named runs that fill its cells, and the generators that these runs need.

The function that composes a configuration is passed in (``isda_repro.config.compose``), so that this package does not
depend on Hydra.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import generator_overrides, quoted, request, run_names
from isda_repro.config.checks import generator_kind
from isda_repro.config.options import typed
from isda_repro.errors import UserError
from isda_repro.experiments.spec_parser import refuse_seeds
from isda_repro.experiments.table import PRECISIONS, Cell, Table

Compose = Callable[[list[str]], DictConfig | dict[str, Any]]
"""Function from overrides to a frozen configuration: of a generator if the first override is ``gan=``.

A ``ComposeCache`` returns plain dictionaries, which are ten times as fast.
"""


@dataclass(frozen=True, eq=False)
class Run:
    """One seed of one cell, with its run id. ``settings`` is the frozen configuration as a plain dictionary."""

    seed: int
    run_id: str
    settings: Mapping[str, Any]

    @property
    def is_generator(self) -> bool:
        """True if the run trains a generator instead of a classifier."""
        return "gan" in self.settings

    @property
    def config(self) -> DictConfig:
        """The frozen configuration, as ``isda_repro.config.write_frozen`` expects it."""
        return OmegaConf.create(dict(self.settings))


Plan = dict[Cell, tuple[Run, ...]]


def plan_runs(table: Table, compose: Compose, extra: Sequence[str] = ()) -> Plan:
    """Return the runs of every cell.

    Composing is what takes time, so each cell is composed once and its seeds are set afterwards. Cells that show
    different numbers of the same runs share those runs.

    Args:
        table: the table to expand.
        compose: ``isda_repro.config.compose``.
        extra: overrides appended to those of every cell (``set=`` on the command line); they give other runs.

    Raises:
        UserError: ``extra`` sets the seed, a configuration is invalid, or its precision may be one that a cell refuses.
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
        if settings["compute"]["precision"] == "auto" and set(cell.precisions) != set(PRECISIONS):
            raise UserError(
                f"table={table.name}: {cell.name} accepts {' and '.join(cell.precisions)} alone, and "
                "compute.precision=auto may choose another precision: add "
                f"compute.precision={cell.precisions[0]} to the cell's settings (set:)"
            )
        name = run_names(request(settings), settings["choice"])
        plan[cell] = tuple(_with_seed(settings, seed, name(seed)) for seed in cell.seeds)
        composed[cell.overrides, cell.seeds] = plan[cell]
    return plan


def select_runs(table: Table, plan: Plan, labels: Sequence[str], seeds: Sequence[int]) -> Plan:
    """Return the part of a plan that ``only=`` and ``seeds=`` select. An empty selection of either kind selects all.

    Labels of one axis are united; the sets of different axes are intersected. Selected seeds that a cell does not list
    are ignored for that cell.

    Raises:
        UserError: a label or a seed is unknown, or no cell has all labels.
    """
    axes: dict[str, set[int]] = {}
    for cell in plan:
        for axis, label in enumerate((*cell.row, *cell.column)):
            axes.setdefault(label, set()).add(axis)
    by_axis = sorted(axes, key=lambda label: min(axes[label]))
    if unknown := [label for label in labels if label not in axes]:
        raise UserError(f"only={typed(unknown[:1])}: table={table.name} has the labels {typed(by_axis)}")
    groups: dict[frozenset[int], set[str]] = {}  # keyed by sets of axes, since a label may be on several
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
    """Return the run of one seed. The seed occurs only at the top level, so nothing has to be composed again."""
    return Run(seed, name, {**settings, "seed": seed, "run_id": name})


TRACKING = {"none": "none", "offline": "offline", "online": "wandb"}  # tracking.mode -> option of tracking=


def evaluated_on(plan: Plan) -> str:
    """Return on what the runs of a plan are evaluated: "test", "holdout" or "holdout and test"."""
    datasets = [run.settings.get("dataset") or {} for runs in plan.values() for run in runs[:1]]
    return " and ".join(sorted({"holdout" if one.get("holdout") else "test" for one in datasets}))


def generator_needed(settings: Mapping[str, Any]) -> str | None:
    """Return the run id of the generator on whose images a classifier trains, or None if it uses real images only."""
    return None if generator_kind(settings) is None else str(settings["synthetic"]["generator"])


def _surroundings(settings: Mapping[str, Any]) -> list[str]:
    """Return the classifier's tracking, device and data folder as overrides for its generator.

    None of them is part of the generator's name.
    """
    tracking = settings["tracking"]
    told = [f"tracking={TRACKING[tracking['mode']]}"]
    if tracking["mode"] != "none":
        told += [f"tracking.{key}={tracking[key] or 'null'}" for key in ("project", "entity")]
    return [*told, f"compute.device={settings['compute']['device']}", f"data_dir={quoted(settings['data_dir'])}"]


def generators_of(plan: Plan, compose: Compose, folders: Sequence[str]) -> dict[str, Run]:
    """Return the generators that the runs of a table need, by run id.

    Only generators that follow from the settings of the classifiers are returned. A classifier may also name another
    generator, which the user has trained.

    Args:
        plan: the table's runs.
        compose: as for ``plan_runs``; it gets ``gan=`` as its first override here.
        folders: overrides that set the folders of runs and data.
    """
    found: dict[str, Run] = {}
    for runs in plan.values():
        name = generator_needed(runs[0].settings)  # the same for all seeds
        if name is None or name in found:
            continue
        composed: Any = compose([*generator_overrides(runs[0].settings), *_surroundings(runs[0].settings), *folders])
        if composed["run_id"] == name:
            found[name] = Run(composed["seed"], name, composed)
    return found


LONGEST_TAG = 64  # characters; W&B refuses longer tags


def cell_tag(table: Table, cell: Cell) -> str:
    """Return ``<table>/<cell>``, the W&B tag and group of a cell's runs.

    A tag that is too long is cut and ends in a hash.
    """
    tag = f"{table.name}/{cell.slug}"
    if len(tag) <= LONGEST_TAG:
        return tag
    digest = hashlib.sha256(tag.encode()).hexdigest()[:8]
    return f"{tag[: LONGEST_TAG - len(digest) - 1]}-{digest}"


def tag_runs(table: Table, plan: Plan) -> Plan:
    """Return the plan with W&B settings added: group by cell, tags for table and cell, and the cell's metric.

    A run that belongs to two cells is grouped with the first. A group that the user has set is kept, and so are the
    user's tags, which come first. Runs without tracking are unchanged.
    """
    cells: dict[str, list[Cell]] = {}
    for cell, runs in plan.items():
        for run in runs:
            cells.setdefault(run.run_id, []).append(cell)
    return {cell: tuple(_tagged(table, run, cells[run.run_id]) for run in runs) for cell, runs in plan.items()}


def _tagged(table: Table, run: Run, cells: list[Cell]) -> Run:
    """Return a run with group, tags, tables and metric added to its tracking settings."""
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
