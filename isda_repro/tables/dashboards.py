"""W&B dashboards as code: a workspace with a section for each table and figure, and a report with the tables.

The panels of a section select runs by the table's own metrics (``<table>/...``). Those belong to runs that a sweep of
this table started, and to runs of another table if all runs of that table are also in this one. A panel grid of the
report selects a table's runs by their ids, however they were started.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isda_repro.errors import UserError, first_line
from isda_repro.experiments.plan import Plan, evaluated_on
from isda_repro.experiments.table import Table
from isda_repro.files import write_output
from isda_repro.tables.aggregate import ERRORS
from isda_repro.tracking.wandb_record import EPOCH, SCHEMA, SCHEMA_KEY, TABLE_VALUE, TEST_ERROR, in_table

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot, Report
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "isda_repro: tables and figures"
GROUP = "Group"  # W&B's run group; ours has all seeds of a cell
MOST_RUNS = 500  # runs that a panel shows at most; W&B's default is 10
TABLE_WIDTH = 24  # the full width of the workspace's grid
ALL_RUNS = ("train_loss", "train_error", "test_loss", "lr", "timing/images_per_s", "timing/peak_memory_mib")
"""Metrics that the last section shows for all runs, whatever their table."""


@dataclass(frozen=True)
class Shown:
    """A table, its runs, and its text in Markdown."""

    table: Table
    plan: Plan
    text: str

    @property
    def error(self) -> str:
        """Title of the panels of its error curves."""
        return f"{ERRORS[evaluated_on(self.plan)]} (%)"

    @property
    def run_ids(self) -> list[str]:
        """Ids of all runs of its cells, each once."""
        return list(dict.fromkeys(run.run_id for runs in self.plan.values() for run in runs))


def require_workspaces() -> None:
    """Raise UserError if wandb-workspaces is not installed."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("dashboards need wandb-workspaces: pip install 'isda_repro[report]'") from error


def workspace(entity: str, project: str, shown: Sequence[Shown]) -> Workspace:
    """Return a W&B workspace with a section for each table and figure, and one for all runs."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections(shown),
        settings=ws.WorkspaceSettings(x_axis=EPOCH, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(ws.Config(SCHEMA_KEY) == SCHEMA),
            groupby=[ws.Metric(GROUP)],
            pinned_columns=[f"summary:{TABLE_VALUE}", "summary:table_metric"],
        ),
    )


def sections(shown: Sequence[Shown]) -> list[Section]:
    """Return the sections of the workspace."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    of_tables = [
        ws.Section(
            name=f"{one.table.name}: {one.table.title}",
            panels=[
                wr.MarkdownPanel(markdown=one.text, layout=wr.Layout(w=TABLE_WIDTH, h=12)),
                *_panels(
                    one.error,
                    *([in_table(name, of) for name in _within(one, shown)] for of in (TEST_ERROR, TABLE_VALUE)),
                ),
            ],
            is_open=number == 0,
        )
        for number, one in enumerate(shown)
    ]
    return [*of_tables, ws.Section(name="all runs", panels=[_curves([name], name) for name in ALL_RUNS])]


def _within(one: Shown, shown: Sequence[Shown]) -> list[str]:
    """Return the table's name, and the names of tables whose runs are all its own too, as Figure 6 and Table 4."""
    ours = set(one.run_ids)
    others = [other.table.name for other in shown if other is not one and ours.issuperset(other.run_ids)]
    return [one.table.name, *others]


def report(entity: str, project: str, shown: Sequence[Shown]) -> Report:
    """Return a W&B report that shows each table as it is now, above the curves of its runs."""
    import wandb_workspaces.reports.v2 as wr

    return wr.Report(entity=entity, project=project, title=NAME, blocks=blocks(shown), width="fluid")


def blocks(shown: Sequence[Shown]) -> list[Any]:
    """Return the blocks of the report."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    made: list[Any] = [wr.TableOfContents()]
    for one in shown:
        runs = wr.Runset(name=one.table.name, filters=expr.And(expr.Metric("ID").isin(one.run_ids)), groupby=["group"])
        panels = _panels(one.error, [TEST_ERROR], [TABLE_VALUE])
        made += [
            wr.H2(f"{one.table.name}: {one.table.title}"),
            wr.MarkdownBlock(one.text),
            wr.PanelGrid(runsets=[runs], panels=panels),
        ]
    return made


def _panels(error: str, curves: list[str], values: list[str]) -> list[Any]:
    """Return two panels: each cell's mean curve with a band from lowest to highest seed, and each cell's value."""
    import wandb_workspaces.reports.v2 as wr

    bars = wr.BarPlot(
        title="mean of each cell's seeds ± standard deviation",
        metrics=[wr.SummaryMetric(value) for value in values],
        groupby=GROUP,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=MOST_RUNS,
    )
    return [_curves(curves, error, log_y=True), bars]


def _curves(metrics: list[str], title: str, log_y: bool | None = None) -> LinePlot:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=EPOCH,
        y=metrics,
        groupby=GROUP,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        log_y=log_y,
        max_runs_to_show=MOST_RUNS,
    )


# ------------------------------------------------------------------------------------------------------------- sending


def written(folder: Path, made: Workspace | Report, name: str) -> Path:
    """Write a dashboard as the JSON that would be sent to W&B, and return the path."""
    model = made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    path = folder / f"{name}.json"
    write_output(path, json.dumps(model, indent=1) + "\n")
    return path


def sent(made: Workspace | Report, there: str | None = None) -> str:
    """Save a dashboard at W&B and return its URL.

    Args:
        made: the workspace or report.
        there: URL of a dashboard to replace; None creates a new one.

    Raises:
        UserError: W&B refuses the dashboard, or has none at that URL.
    """
    try:
        return str(_in_place(made, there).save().url)
    except Exception as error:  # the errors of W&B, its client and GraphQL have no common base class
        raise UserError(
            f"W&B does not take the dashboard for {made.entity}/{made.project}: {first_line(error)}"
        ) from error


def _in_place(made: Any, url: str | None) -> Any:
    """Return the dashboard at ``url`` with the content of ``made``; without a URL, ``made`` itself."""
    if url is None:
        return made
    kept = type(made).from_url(url)
    for content in ("sections", "blocks"):
        if hasattr(made, content):
            setattr(kept, content, getattr(made, content))
    return kept
