"""Build the dashboards of a W&B project (a workspace with a section per table, a report), and send finished runs there.

python scripts/dashboard.py entity=my-team project=isda_repro
python scripts/dashboard.py entity=my-team workspace=URL report=URL     # replace existing ones
python scripts/dashboard.py dry_run=true                                # write what would be sent; needs no account
python scripts/dashboard.py send run=runs/RUN_ID project=isda_repro     # a run that finished without W&B
python scripts/dashboard.py send runs_dir=runs tracking=offline         # all, into their folders, for `wandb sync`
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isda_repro.errors import UserError, check_installation, one_sentence_errors, sentence_of

check_installation()

from tables import TableOptions, findings, laid_out, plans

from isda_repro.config.options import parse_options
from isda_repro.console import say
from isda_repro.runs.from_wandb import connect
from isda_repro.runs.result_index import index_results
from isda_repro.runs.run_directory import RESULT, is_set_aside
from isda_repro.runs.sources import runs_folder
from isda_repro.runs.to_wandb import Destination, send_run
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


def save_dashboards(options: DashboardOptions) -> None:
    """Save each dashboard at W&B."""
    account = connect()
    entity = options.entity or str(account.default_entity)
    tables = shown(options, options.source or "wandb", entity)
    for name, make in KINDS.items():
        print(f"{name}: {dashboards.sent(make(entity, options.project, tables), getattr(options, name))}")


MODES = {"wandb": "online", "online": "online", "offline": "offline"}


@dataclass
class SendOptions:
    """Options of ``send``."""

    run: list[str] = field(default_factory=list)  # a run's folder; may be given several times
    runs_dir: str | None = None  # all finished runs of a folder
    tracking: str = "wandb"  # as of train.py: wandb, or offline
    entity: str | None = None  # null: as the run has it, or the account's default
    project: str | None = None  # null: as the run has it, or isda_repro


def send(arguments: list[str]) -> None:
    """Send finished runs to W&B, each once, and name those that cannot be sent.

    Raises:
        UserError: no run is given, W&B cannot be reached, or a run cannot be sent.
    """
    given = [one.removeprefix("run=") for one in arguments if one.startswith("run=")]  # literally: any folder's name
    options = parse_options(SendOptions, [one for one in arguments if not one.startswith("run=")])
    if options.tracking not in MODES:
        raise UserError(f"tracking={options.tracking} must be wandb or offline")
    folders = [Path(one) for one in given]
    if options.runs_dir is not None:
        finished = (path.parent for path in runs_folder(options.runs_dir).glob(f"*/{RESULT}"))
        folders += sorted(folder for folder in finished if not is_set_aside(folder))
    if not folders:
        raise UserError("there is no finished run to send: give run=runs/<run_id>, or runs_dir=runs")
    to = Destination(MODES[options.tracking], options.project, options.entity)
    api = connect() if to.mode == "online" else None
    failed: dict[Path, str] = {}
    for folder in folders:
        try:
            say(f"{folder.name} {send_run(folder, to, api)}")
        except (UserError, OSError) as error:
            failed[folder] = sentence_of(error) or str(error)
    if failed and len(folders) == 1:
        raise UserError(failed[folders[0]])
    for sentence in failed.values():
        say(f"not sent: {sentence}", sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(folders)} runs were not sent")


def main(arguments: list[str]) -> None:
    """Send runs, or write the dashboards in a dry run, otherwise save them at W&B."""
    if arguments[:1] == ["send"]:
        send(arguments[1:])
        return
    options = parse_options(DashboardOptions, arguments)
    dashboards.require_workspaces()
    if options.dry_run:
        dry_run(options)
    else:
        save_dashboards(options)


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
