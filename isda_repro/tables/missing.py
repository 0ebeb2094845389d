"""Missing runs of a table: the commands that make them, and their cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from isda_repro.experiments.plan import Plan, generator_needed
from isda_repro.experiments.table import Cell
from isda_repro.tables.aggregate import FilledCell, FilledTable
from isda_repro.tables.costs import SOURCE, Cost, Estimate, cost_of


@dataclass(frozen=True)
class Missing:
    """The seeds of one cell that have not been run to their end."""

    cell: Cell
    seeds: tuple[int, ...]
    command: str  # runs the first of these seeds
    cost: Cost | None  # cost of one run; None if unknown
    generator: str | None = None  # run id of the generator that it needs, whose cost is not included

    @property
    def what(self) -> str:
        """The cell and its missing seeds, as text."""
        name = ", ".join(self.cell.labels) or self.cell.name
        return f"{name}, seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"

    @property
    def remark(self) -> str:
        """The cost of one run, as text."""
        cost = f"{'each ' if len(self.seeds) > 1 else ''}{self.cost}" if self.cost is not None else "cost not known"
        return cost if self.generator is None else f"{cost}; its generator's apart"


def command(filled: FilledCell, extra: Sequence[str] = ()) -> str:
    """Return the command that makes the first missing run of a cell, or its first run if none is missing."""
    seed = (*filled.missing, *filled.cell.seeds)[0]
    return shlex.join(["python", "train.py", *filled.cell.overrides, *extra, f"seed={seed}"])


def missing_runs(filled: FilledTable, plan: Plan, extra: Sequence[str] = ()) -> tuple[Missing, ...]:
    """Return the missing runs of each cell, in the table's order. Cells that show the same runs are listed once.

    Args:
        filled: the table.
        plan: its runs, whose settings determine their cost.
        extra: overrides appended to those of every cell.
    """
    listed: dict[str, Missing] = {}
    for filled_cell in filled.cells.values():
        cell, seeds = filled_cell.cell, filled_cell.missing
        if not seeds:
            continue
        first = next(run for run in plan[cell] if run.seed == seeds[0])
        generator = generator_needed(first.settings)
        one = Missing(cell, seeds, command(filled_cell, extra), cost_of(first.settings), generator)
        listed.setdefault(first.run_id, one)
    return tuple(listed.values())


def in_all(missing: Sequence[Missing]) -> str:
    """Describe the number of missing runs and their total cost. If hours are given, their source is named."""
    runs = sum(len(one.seeds) for one in missing)
    known = [(len(one.seeds), one.cost) for one in missing if one.cost is not None]
    parts = [f"{runs} run{'s' if runs > 1 else ''}"]
    if known:
        together = str(_together(known))
        parts.append(f"{together} by the measurements of {SOURCE}" if " h " in together else together)
    if unknown := runs - sum(n for n, _ in known):
        parts.append(f"the cost of {unknown} is not known")
    return ", ".join(parts)


def _together(costs: Sequence[tuple[int, Cost]]) -> Cost:
    """Return the total cost of several kinds of runs, given as (number of runs, cost of one).

    GPU hours are included only for GPUs for which every cost has an estimate.
    """
    each = [estimate for n, cost in costs for estimate in _times(n, cost.estimates)]
    by_gpu = {gpu: [one for one in each if one.gpu == gpu] for gpu in dict.fromkeys(one.gpu for one in each)}
    estimates = tuple(
        replace(of_gpu[0], hours=sum(one.hours for one in of_gpu), at_least=any(one.at_least for one in of_gpu))
        for of_gpu in by_gpu.values()
        if len(of_gpu) == len(costs)
    )
    return replace(costs[0][1], petaflop=sum(n * cost.petaflop for n, cost in costs), estimates=estimates)


def _times(n: int, estimates: Sequence[Estimate]) -> Iterator[Estimate]:
    yield from (replace(one, hours=n * one.hours) for one in estimates)
