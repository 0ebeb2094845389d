"""A table -> the frozen, named runs that fill its cells.

Composing comes in as a function, ``isda_repro.config.compose``: this room does not know Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import request, run_names
from isda_repro.errors import UserError
from isda_repro.options import typed
from isda_repro.tables.cells import Cell, Table
from isda_repro.tables.choices import refuse_seeds

Compose = Callable[[list[str]], DictConfig | dict[str, Any]]
"""Overrides -> the frozen configuration, of a generator where the first is ``gan=``.

Remembered ones come as plain dictionaries, which are ten times as quick.
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


def expand(table: Table, compose: Compose, extra: Sequence[str] = ()) -> Plan:
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


def choose(table: Table, plan: Plan, labels: Sequence[str], seeds: Sequence[int]) -> Plan:
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
