"""What the page is made of: every table as far as its runs have finished, and every finished run, in a table or not."""

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
    """One table of the page."""

    plan: Plan
    filled: FilledTable

    @property
    def runs(self) -> dict[str, Run]:
        """Every run of the table once, by its id; cells may share runs."""
        return {run.run_id: run for runs in self.plan.values() for run in runs}

    @property
    def finished(self) -> set[str]:
        """The runs that have entered their cells."""
        return {record.run_id for cell in self.filled.cells.values() for record in cell.records.values()}


@dataclass(frozen=True)
class Evidence:
    """All that is known from files."""

    tables: tuple[Shown, ...]
    results: dict[str, tuple[str, Result]]  # by run id, with the file that each came from
    problems: tuple[str, ...]  # files passed over, one sentence each

    @property
    def runs(self) -> dict[str, Run]:
        """Every run that some table wants, once, in the order of the tables."""
        return {name: run for shown in self.tables for name, run in shown.runs.items()}


def evidence(names: Sequence[str], compose: Compose, runs_dir: Path, results_dir: Path) -> Evidence:
    """Read all results once, and fill the named tables from them.

    Args:
        names: of the tables.
        compose: ``isda_repro.config.compose``.
        runs_dir: where runs are made.
        results_dir: where they are kept; where a run is in both, that in ``runs_dir`` counts.
    """
    read: dict[str, tuple[str, Result]] = {}
    index = index_results(_kept(results_on_disk(runs_dir, results_dir), read))
    results = {name: read[record.origin] for name, record in index.records.items()}
    shown = []
    for name in names:
        table = load_table(name)
        plan = plan_runs(table, compose)
        shown.append(Shown(plan, aggregate(table, plan, index)))
    problems = dict.fromkeys((*index.problems, *(said for one in shown for said in one.filled.problems)))
    return Evidence(tuple(shown), results, tuple(problems))


def _kept(findings: Iterable[Finding], read: dict[str, tuple[str, Result]]) -> Iterator[Finding]:
    """The same, each result also into ``read``, by where it is from: what gathering lets go, the page needs."""
    for finding in findings:
        if isinstance(finding, Found):
            read[finding.origin] = (finding.origin, slim(finding.result))
        yield finding
