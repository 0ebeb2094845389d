"""Real runs to W&B and back: the log holds everything that the tables need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_server import ENTITY, WandbServer

from isda_repro.config import compose, request
from isda_repro.runs.from_wandb import connect, results_from_wandb, results_offline
from isda_repro.runs.offline_runs import offline_files
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_on_disk
from isda_repro.sweeps.sweep import SweepOptions, missing, planned
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.layout import layout
from isda_repro.tables.render import markdown
from isda_repro.training.run import run

pytestmark = pytest.mark.slow

TINY = """
title: Evidence
metric: test_error_final
baseline: CE
seeds: [0, 1]
set: [model=resnet8, dataset=digits, dataset.train_limit=200, recipe.epochs=2, tracking=offline]
rows:
  - {ResNet-8 on digits: []}
columns:
  - {CE: loss=ce, ISDA: loss=isda}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train the four runs of a table as a sweep would; return their folder, the table and its plan."""
    folder = tmp_path_factory.mktemp("evidence")
    (folder / "tiny.yaml").write_text(TINY)
    options = SweepOptions(table=str(folder / "tiny.yaml"), runs_dir=str(folder / "runs"))
    for one in missing(options, compose).runs:
        run(one.config)
    return folder / "runs", planned(options, compose)


@pytest.fixture(scope="module")
def wandb_project(trained):
    """Yield the server after `wandb sync`, and W&B's client for it."""
    runs_dir, _ = trained
    with WandbServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "wandb", "sync", *(str(path.parent) for path in offline_files(runs_dir))]
        synced = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)
        assert synced.returncode == 0, synced.stderr
        yield server, connect()
        assert not server.unknown


def table_from(findings, trained):
    """Return the table as Markdown, all results, and the problems."""
    _, (table, plan) = trained
    gathered = index_results(findings)
    text = markdown(layout(aggregate(table, plan, gathered), plan, "sweep"))
    return text, {name: record.read() for name, record in gathered.records.items()}, gathered.problems


def test_table_is_the_same_from_offline_files_alone(trained):
    runs_dir, _ = trained
    text, results, problems = table_from(results_on_disk(runs_dir, Path("none")), trained)
    assert (len(results), problems) == (4, [])
    assert table_from(results_offline(runs_dir), trained) == (text, results, problems)


def test_table_is_the_same_from_what_wandb_sync_has_sent(trained, wandb_project):
    _, api = wandb_project
    text, results, _ = table_from(results_on_disk(trained[0], Path("none")), trained)
    assert len(results) == 4
    assert table_from(results_from_wandb(ENTITY, "isda_repro", api=api), trained) == (text, results, [])


def test_runs_are_grouped_by_cell_and_can_be_found(trained, wandb_project):
    server, api = wandb_project
    _, (_, plan) = trained
    for cell, runs in plan.items():
        for one in runs:
            stored, shown = server.runs[one.run_id], api.run(f"{ENTITY}/isda_repro/{one.run_id}")
            assert shown.group == f"tiny/{cell.slug}"
            assert shown.tags == ["tiny", f"tiny/{cell.slug}"]
            assert shown.config["model"] == request(one.settings)["model"]
            assert shown.config["ran_on"]["hardware"]
            assert shown.summary["table_value"] == shown.summary["test_error_final"]
            assert shown.summary["table_metric"] == "test_error_final"
            assert (
                shown.summary["tiny/table_value"] == shown.summary["tiny/test_error"] == stored.rows[-1]["test_error"]
            )
            assert shown.commit == shown.config["ran_on"]["git_revision"]
            assert stored.events, "system metrics"
            assert "environment.json" in stored.files
