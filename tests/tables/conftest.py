"""Fixtures of the tests of tables: layouts of the golden tables and of others."""

import dataclasses
import json
from pathlib import Path

import pytest
from synthetic import make_diverged, make_result, plausible_errors

from isda_repro import config
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.records import write_result
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_on_disk
from isda_repro.tables import missing
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.cost_columns import cost_columns
from isda_repro.tables.costs import Cost, Estimate
from isda_repro.tables.layout import layout


@pytest.fixture
def curves():
    return plausible_errors


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Return layouts by name: those of golden/, one whose commands need quoting, and one with cost columns."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(missing, "cost_of", lambda settings: COST)
        columns = _laid_out(load_table(str(GOLDEN / "columns.yaml")), folder / "columns", COLUMNS)
        rows = _laid_out(load_table(str(GOLDEN / "rows.yaml")), folder / "rows", {})
        odd = layout(rows.filled, rows.plan, "python scripts/sweep.py 'a`b'", ("data_dir='a`b'",))
        _write_wall_time(folder / "benchmarks" / "overhead_gpu.json")
        costs = _laid_out(_part_of_table_1(), folder / "costs", TABLE_1, results_dir=folder)
        return {"columns": columns, "rows": rows, "odd": odd, "costs": costs}


COST = Cost(270_000, 41_000_000, 64, 12.5, (Estimate(3.0, "GTX 980", at_least=False), Estimate(0.5, "V100", True)))
COLUMNS = {  # (row, column, method, further overrides) -> errors of finished runs by seed; None: it diverged
    ("A | B <c> & D", "CIFAR-10", "Basic", ""): {0: 7.3, 1: 7.5, 2: 7.4},
    ("A | B <c> & D", "CIFAR-10", "ISDA", ""): {0: 7.0, 1: 7.15, 2: 7.12},
    ("A | B <c> & D", "CIFAR-100", "Basic", ""): {0: 31.0, 2: 31.5},
    ("Constant lambda_0", "CIFAR-10", "Basic", ""): {0: 6.7, 1: 6.9, 2: 6.2},
    ("Constant lambda_0", "CIFAR-10", "ISDA", ""): {1: 6.95, 2: 6.0},
    ("one_run~^\\", "CIFAR-10", "Basic", ""): {0: 3.5},
    ("apart", "CIFAR-10", "Basic", ""): {0: 8.0, 1: 8.1},
    ("apart", "CIFAR-10", "ISDA", ""): {1: 9.0, 2: 9.2},
    ("Constant lambda_0", "CIFAR-100", "Basic", ""): {0: 28.5, 1: None},
    ("Constant lambda_0", "CIFAR-100", "ISDA", ""): {0: None, 1: None, 2: None},
    ("A | B <c> & D", "CIFAR-10", "Basic", "recipe.epochs=12"): {0: 17.25, 1: 16.25},
    ("A | B <c> & D", "CIFAR-10", "ISDA", "recipe.epochs=12"): {0: 18.0, 1: 16.5},
}
TABLE_1 = {("ResNet-50", "ISDA", "Top-1", ""): {0: 22.0}}


def _part_of_table_1():
    """Return two rows of Table 1, one of them a DenseNet of the authors; the long notes are left out."""
    table = load_table("table1")
    rows = (table.rows[0], table.rows[3])
    return dataclasses.replace(table, rows=rows, cells=tuple(c for c in table.cells if c.row in rows), notes=())


def _write_wall_time(path):
    row = {"model": "resnet50", "classes": 1000, "pixels": 224, "batch_size": 64}
    row |= {"added_percent": 7.04, "added_low": 6.0, "added_high": 8.0, "step_percent": 7.5}
    about = {"accelerator": True, "hardware": "a fast GPU", "precision": "bf16", "date": "2026-11-25"}
    path.parent.mkdir()
    path.write_text(json.dumps({**about, "rows": [row]}))


def _laid_out(table, folder, errors, results_dir=None):
    folder.mkdir()
    plan = plan_runs(table, config.compose)
    by_labels = {(*cell.row, *cell.column): cell for cell in table.cells}
    for (*labels, override), values in errors.items():
        cell = by_labels[tuple(labels)]
        runs = plan[cell]
        if override:
            runs = plan_runs(dataclasses.replace(table, cells=(cell,)), config.compose, [override])[cell]
        for run in runs:
            if run.seed in values:
                (folder / run.run_id).mkdir()
                if (value := values[run.seed]) is None:
                    write_result(folder / run.run_id / "diverged.json", make_diverged(run))
                else:
                    write_result(folder / run.run_id / "result.json", make_result(run, [value]))
    filled = aggregate(table, plan, index_results(results_on_disk(folder, folder / "nowhere")))
    beside = () if results_dir is None else cost_columns(table, plan, results_dir)
    return layout(filled, plan, f"python scripts/sweep.py table={table.name}", cost_columns=beside)
