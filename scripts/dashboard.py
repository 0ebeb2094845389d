"""Build the dashboards of a W&B project: a workspace with a section per table and figure, and a report with tables.

python scripts/dashboard.py entity=my-team project=isda_repro
python scripts/dashboard.py entity=my-team workspace=URL report=URL     # replace existing ones
python scripts/dashboard.py dry_run=true                                # write what would be sent; needs no account
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from tables import TableOptions, findings, laid_out, plans

from isda_repro.config.options import parse_options
from isda_repro.runs.from_wandb import connect
from isda_repro.runs.result_index import index_results
from isda_repro.sweeps.status import ALL
from isda_repro.tables import dashboards
from isda_repro.tables.dashboards import Shown
from isda_repro.tables.render import markdown

KINDS: dict[str, Callable[..., Any]] = {"workspace": dashboards.workspace, "report": dashboards.report}


@dataclass
class DashboardOptions:
    """Options of this script."""

    entity: str | None = None  # null: the account's default
    project: str = "isda_repro"
    table: str = ALL
    source: str | None = None  # of the tables, as in scripts/tables.py; null: wandb, or runs in a dry run
    runs_dir: str = "runs"
    results_dir: str = "results"
    workspace: str | None = None  # URL of a workspace to replace; null: a new one
    report: str | None = None
    dry_run: bool = False
    output: str = "${runs_dir}/dashboards"  # output folder of a dry run


def shown(options: DashboardOptions, source: str, entity: str) -> list[Shown]:
    """Render every table from the current results; print problems to standard error."""
    asked = TableOptions(
        table=options.table,
        runs_dir=options.runs_dir,
        results_dir=options.results_dir,
        source=source,
        entity=entity,
        project=options.project,
    )
    index = index_results(findings(asked))
    print(*index.problems, sep="\n", end="\n" if index.problems else "", file=sys.stderr)
    return [
        Shown(table, plan, markdown(laid_out(table, plan, index, asked), level=3))
        for table, plan in plans(options.table)
    ]


def dry_run(options: DashboardOptions) -> None:
    """Write each dashboard as a JSON file."""
    if options.workspace is not None or options.report is not None:
        raise UserError("workspace= and report= name dashboards that are there already; a dry run looks at none")
    entity = options.entity or "ENTITY"
    tables = shown(options, options.source or "runs", entity)
    for name, make in KINDS.items():
        print(f"would send {dashboards.written(Path(options.output), make(entity, options.project, tables), name)}")


def send(options: DashboardOptions) -> None:
    """Save each dashboard at W&B."""
    account = connect()
    entity = options.entity or str(account.default_entity)
    tables = shown(options, options.source or "wandb", entity)
    for name, make in KINDS.items():
        print(f"{name}: {dashboards.sent(make(entity, options.project, tables), getattr(options, name))}")


def main(arguments: list[str]) -> None:
    """Write the dashboards in a dry run, otherwise send them."""
    options = parse_options(DashboardOptions, arguments)
    dashboards.require_workspaces()
    dry_run(options) if options.dry_run else send(options)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
