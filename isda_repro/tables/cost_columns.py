"""Columns of Tables 1 and 2 that no run fills: parameters, and the cost that ISDA adds in computation and in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isda_repro.experiments.paper_values import reported
from isda_repro.experiments.plan import Plan
from isda_repro.experiments.table import Label, Table
from isda_repro.tables import formatting
from isda_repro.tables.costs import AddedCost, cost_of, table1_costs


@dataclass(frozen=True)
class CostColumn:
    """A column with our value and the paper's value for some of the rows."""

    title: str
    name: str  # identifier in CSV files
    unit: str
    decimals: int  # decimals of our values in text
    printed: int  # decimals of the paper's values in text
    leads: bool  # True: before the table's own columns; False: after them
    ours: dict[Label, float]
    papers: dict[Label, float]
    caption: str

    def our_text(self, row: Label) -> str:
        """Return our value for a row as text, with its unit."""
        return f"{formatting.format_number(self.ours[row], self.decimals)}{self.unit}"

    def papers_text(self, row: Label) -> str:
        """Return the paper's value for a row as the paper prints it, with its unit."""
        return f"{formatting.format_number(self.papers[row], self.printed)}{self.unit}"


def cost_columns(table: Table, plan: Plan, results_dir: Path) -> tuple[CostColumn, ...]:
    """Return the cost columns for which the paper's table of this name has values.

    Args:
        table: the table.
        plan: its runs, whose settings determine the network of each row.
        results_dir: folder with our measurements of the wall time.
    """
    papers = _papers(table)
    if not papers:
        return ()
    settings: dict[Label, Mapping[str, Any]] = {}
    for cell, runs in plan.items():
        settings.setdefault(cell.row, runs[0].settings)
    costs = {row: cost_of(one) for row, one in settings.items()}
    parameters = {row: cost.parameters / 1e6 for row, cost in costs.items() if cost is not None}
    found = [
        CostColumn(
            "Params", "parameters", "M", 2, 1, True, parameters, _column(papers, "params_m"), "Params: counted."
        ),
    ]
    added = {row: table1_costs(str(one["choice"]["model"]), results_dir) for row, one in settings.items()}
    found += _added({row: cost for row, cost in added.items() if cost is not None}, papers)
    return tuple(side for side in found if side.papers)


def _added(costs: Mapping[Label, AddedCost], papers: Mapping[Label, Mapping[str, Any]]) -> Iterable[CostColumn]:
    theoretical = {row: cost.theoretical for row, cost in costs.items()}
    walls = {row: cost.wall for row, cost in costs.items() if cost.wall is not None}
    official = [f"{row[-1]} {cost.official:.2f}%" for row, cost in costs.items() if cost.official is not None]
    authors = f"; with the authors' first channels (faithful=official) {', '.join(official)}" if official else ""
    yield CostColumn(
        "Cost (theory)", "cost_theoretical_pct", "%", 2, 2, False, theoretical,
        _column(papers, "cost_theoretical_pct"),
        f"Cost (theory): 5 C A over the multiply-adds of a forward pass, computed{authors}.",
    )  # fmt: skip
    hardware = dict.fromkeys(
        f"{wall.hardware}, {wall.precision}, batches of {wall.batch_size}, {wall.date}" for wall in walls.values()
    )
    measured = f"measured by benchmarks/overhead.py on {'; '.join(hardware)}" if walls else "not measured yet"
    yield CostColumn(
        "Cost (wall)", "cost_wall_pct", "%", 1, 1, False, {row: wall.percent for row, wall in walls.items()},
        _column(papers, "cost_wall_pct"),
        f"Cost (wall): of a training step; {measured}; the paper's on 8 Tesla V100.",
    )  # fmt: skip


def _papers(table: Table) -> dict[Label, Mapping[str, Any]]:
    """Return the rows of reported.yaml for our rows; none if the rows of the paper's table are not networks."""
    rows = {str(row.get("network")): row for row in reported().get(table.name, {}).get("rows", [])}
    return {label: rows[label[-1]] for label in table.rows if label[-1] in rows}


def _column(papers: Mapping[Label, Mapping[str, Any]], key: str) -> dict[Label, float]:
    return {label: float(row[key]) for label, row in papers.items() if key in row}
