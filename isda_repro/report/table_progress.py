"""Progress of each table: the states of its cells, the numbers of its runs, and the computation that is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isda_repro.experiments.plan import Run
from isda_repro.report.evidence import Shown
from isda_repro.sweeps.sweep import has_result
from isda_repro.tables.costs import SOURCE, cost_of
from isda_repro.tables.missing import in_all, missing_runs

State = Literal["done", "partial", "diverged", "reduced", "not run"]
BY = f" by the measurements of {SOURCE}"  # removed from each table, because the page says it once
STATES: tuple[State, ...] = ("done", "partial", "diverged", "reduced", "not run")


@dataclass(frozen=True)
class CellProgress:
    """Progress of one cell.

    In the state ``reduced`` it has only runs whose settings are not its own, and in the state ``diverged`` all of its
    runs have diverged.
    """

    name: str
    slug: str
    state: State
    done: int
    wanted: int


@dataclass(frozen=True)
class TableProgress:
    """Progress of one table."""

    name: str
    title: str
    cells: tuple[CellProgress, ...]
    done: int  # runs whose result is in its cell
    wanted: int  # all runs
    diverged: int
    begun: int  # runs that have written metrics and have not ended yet
    petaflop_left: float  # of the runs that are left and whose cost is known
    left: str  # the missing runs and their cost, as text; "" if none is missing

    def count(self, state: State) -> int:
        """Return the number of cells in a state."""
        return Counter(cell.state for cell in self.cells)[state]

    @property
    def is_empty(self) -> bool:
        """True if no run has finished, in the table or in its reduced tables."""
        return all(cell.state == "not run" for cell in self.cells)


def progress_of(shown: Shown, runs_dir: Path) -> TableProgress:
    """Return the progress of a table. Cells that show two metrics of the same runs count once."""
    table, runs, finished = shown.filled.table, shown.runs, shown.finished
    open_runs = runs.keys() - finished - shown.diverged
    left = missing_runs(shown.filled, shown.plan)
    return TableProgress(
        name=table.name,
        title=table.title,
        cells=_cells(shown),
        done=len(runs.keys() & finished),
        wanted=len(runs),
        diverged=len(shown.diverged),
        begun=sum(_is_begun(runs_dir / name) for name in open_runs),
        petaflop_left=petaflop_of(run for name, run in runs.items() if name in open_runs),
        left=in_all(left).replace(BY, "") if left else "",
    )


def petaflop_of(runs: Iterable[Run]) -> float:
    """Return the total cost in PFLOP of the runs whose cost is known."""
    costs = (cost_of(run.settings) for run in runs)
    return sum(cost.petaflop for cost in costs if cost is not None)


def _cells(shown: Shown) -> tuple[CellProgress, ...]:
    """Return the progress of each cell, once per slug."""
    reduced = {key for part in shown.filled.reduced for key, cell in part.filled.cells.items() if cell.has_run}
    cells: dict[str, CellProgress] = {}
    for key, filled in shown.filled.cells.items():
        state: State = "reduced" if key in reduced else "not run"
        if filled.has_run:
            state = "partial" if filled.missing else "done" if filled.values else "diverged"
        cell = CellProgress(
            name=", ".join(filled.cell.labels) or filled.cell.name,
            slug=filled.cell.slug,
            state=state,
            done=len(filled.values),
            wanted=len(filled.cell.seeds),
        )
        cells.setdefault(cell.slug, cell)
    return tuple(cells.values())


def _is_begun(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists() and not has_result(folder)
