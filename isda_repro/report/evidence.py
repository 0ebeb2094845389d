"""Data of the report: every table, filled with its finished runs, and every finished run, in a table or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isda_repro.experiments.plan import Compose, Plan, Run, plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.report.runs import slim
from isda_repro.runs.records import Result
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import Finding, Found, results_on_disk
from isda_repro.tables.aggregate import FilledTable, aggregate


@dataclass(frozen=True)
class Shown:
    """One table of the page: its plan, and its cells filled with results."""

    plan: Plan
    filled: FilledTable
    given: str  # as ``table=`` takes it: a name, or a file

    @property
    def is_of_paper(self) -> bool:
        """True for the paper's tables, which have its values, and its figures, of which Figure 2 has none."""
        table = self.filled.table
        return table.name.startswith("figure") or any(cell.paper is not None for cell in table.cells)

    @property
    def runs(self) -> dict[str, Run]:
        """Run id -> run, for every run of the table. Cells may share runs."""
        return {run.run_id: run for runs in self.plan.values() for run in runs}

    @property
    def finished(self) -> set[str]:
        """Ids of the runs whose results are in their cells."""
        return {record.run_id for cell in self.filled.cells.values() for record in cell.records.values()}

    @property
    def diverged(self) -> set[str]:
        """Ids of the runs of its cells that diverged."""
        return {one.run_id for cell in self.filled.cells.values() for one in cell.diverged.values()}


@dataclass(frozen=True)
class Evidence:
    """All tables and results that were read from disk."""

    tables: tuple[Shown, ...]
    results: dict[str, tuple[str, Result]]  # run id -> (file, result)
    problems: tuple[str, ...]  # one sentence for each file that was passed over

    @property
    def runs(self) -> dict[str, Run]:
        """Run id -> run, for every run of the tables, in their order."""
        return {name: run for shown in self.tables for name, run in shown.runs.items()}

    @property
    def left(self) -> list[Run]:
        """The runs of the tables that neither finished nor diverged."""
        ended = self.results.keys() | {name for shown in self.tables for name in shown.diverged}
        return [run for name, run in self.runs.items() if name not in ended]


def evidence(names: Sequence[str], compose: Compose, runs_dir: Path, results_dir: Path) -> Evidence:
    """Read all results once, and fill the named tables with them.

    Args:
        names: names of the tables.
        compose: ``isda_repro.config.compose``.
        runs_dir: folder of the runs.
        results_dir: folder of stored results. If a run is in both folders, the result in ``runs_dir`` counts.
    """
    read: dict[str, tuple[str, Result]] = {}
    index = index_results(_kept(results_on_disk(runs_dir, results_dir), read))
    results = {name: read[record.origin] for name, record in index.records.items()}
    shown = []
    for name in names:
        table = load_table(name)
        plan = plan_runs(table, compose)
        shown.append(Shown(plan, aggregate(table, plan, index), name))
    problems = dict.fromkeys((*index.problems, *(said for one in shown for said in one.filled.problems)))
    return Evidence(tuple(shown), results, tuple(problems))


def _kept(findings: Iterable[Finding], read: dict[str, tuple[str, Result]]) -> Iterator[Finding]:
    """Yield the findings unchanged, and store their results in ``read`` by origin.

    The index drops the curves, which the page needs.
    """
    for finding in findings:
        if isinstance(finding, Found):
            read[finding.origin] = (finding.origin, slim(finding.result))
        yield finding
