"""The paper's tables: every row and column is composed, with the paper's value; and the runs that tables share."""

import functools
import itertools
from dataclasses import replace

import pytest
import yaml

from isda_repro import config
from isda_repro.experiments.paper_values import inconsistencies, paper_value
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.spec_parser import BF16
from isda_repro.experiments.specification import load_table, table_names
from isda_repro.runs.records import METRICS

REPORTED = yaml.safe_load((config.CONF_DIR.parent / "isda_repro/experiments/reported.yaml").read_text())
PAPER = ("table1", "table2", "table3", "table4", "table5")
SEARCHES = [name for name in table_names() if name.startswith(("lambda_", "open_"))]  # columns differ in one number
WITH_RESULTS = ["short_cifar", "small_data"]
OTHERS = [name for name in table_names() if name not in (*WITH_RESULTS, "figure6")]  # figure6 has the cells of table4
ALL = [*OTHERS, "table4+dropout"]


@pytest.fixture(scope="session")
def planned():
    """Return ``planned(name, fits)``: a table and the runs of its cells that fit. Compositions are cached."""
    compose = functools.cache(lambda overrides: config.compose(list(overrides)))

    def plan(name, fits=lambda cell: True):
        table = load_table(name)
        part = replace(table, cells=tuple(filter(fits, table.cells)))
        return table, plan_runs(part, lambda overrides: compose(tuple(overrides)))

    return plan


@pytest.fixture(scope="session")
def sample(planned):
    """Return ``sample(name)``: runs of the last cell of each row and of the whole first row; fewer of a search."""

    @functools.cache
    def plan(name):
        table = load_table(name)
        last = {cell.row: cell for cell in table.cells}
        chosen = {last[row] for row in (table.rows[::8] if name in SEARCHES else table.rows)}
        if not name.startswith("lambda_"):
            chosen |= {cell for cell in table.cells if cell.row == table.rows[0]}
        return planned(name, chosen.__contains__)[1]

    return plan


def transcribed(name):
    """Return (row, column) of our table -> the paper's value, with an explicit rule for each of the five tables."""
    spec, found = REPORTED[name], {}
    data, methods = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}, ("Basic", "ISDA")
    for row in spec["rows"]:
        label = (row.get("network") or row.get("method") or row.get("setting"),)
        if name == "table1":
            columns = [(method, metric) for method in ("Baselines", "ISDA") for metric in ("Top-1", "Top-5")]
            entries = [*row["baseline"], *row["isda"]]
        elif name == "table2":
            columns = list(itertools.product(data, methods))
            entries = [row[data[one]][method.lower()] for one, method in columns]
        elif name == "table3":
            label = (next(one for one, key in data.items() if key == row["dataset"]), *label)
            columns = list(itertools.product(("Cutout", "AA"), methods))
            keys = {"Cutout": "cutout", "AA": "autoaugment"}
            entries = [row[keys[one]][method.lower()] for one, method in columns]
        else:
            networks = [("ResNet-110",), ("Wide-ResNet-28-10",)] if name == "table4" else [()]
            columns = [(*network, one) for network in networks for one in data]
            entries = row["values"]
        runs = row.get("runs", spec.get("runs", 1))
        for column, entry in zip(columns, entries, strict=True):
            found[label, column] = paper_value(entry, runs)
    return found


@pytest.mark.parametrize(("name", "values"), [*zip(PAPER, (28, 32, 24, 46, 12), strict=True), ("table4+dropout", 46)])
def test_every_value_of_the_paper_has_its_cell_with_as_many_seeds_and_every_cell_its_value(name, values):
    table = load_table(name)
    expected = transcribed(name.partition("+")[0])
    assert {(cell.row, cell.column): cell.paper for cell in table.cells} == {
        key: entry for key, entry in expected.items() if entry is not None
    }
    assert len(table.cells) == values
    assert {(row, column) for row in table.rows for column in table.columns} == set(expected)
    assert all(cell.seeds == tuple(range(cell.paper.n)) for cell in table.cells)


def check(plan):
    """Check seeds, metrics and generators of a plan; two cells may share runs only if they show different numbers."""
    shown = [(run.run_id, cell.metric) for cell, runs in plan.items() for run in runs]
    assert len(set(shown)) == len(shown)
    for cell, runs in plan.items():
        assert tuple(run.seed for run in runs) == cell.seeds
        assert cell.metric in METRICS
        assert cell.generator == runs[0].settings["synthetic"]["kind"], cell.name


@pytest.mark.parametrize("name", ALL)
def test_a_row_and_a_cell_of_every_row_of_every_table_compose(name, sample):
    check(sample(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALL, *WITH_RESULTS])
def test_every_cell_of_every_table_composes(name, planned):
    table, plan = planned(name)
    assert tuple(plan) == table.cells
    check(plan)


def runs_of(planned, name, row, *column):
    (runs,) = planned(name, lambda cell: (cell.row, cell.column) == (row, column))[1].values()
    return [run.run_id for run in runs]


@pytest.mark.parametrize(
    ("data", "method"),
    [
        ("CIFAR-10", "ISDA"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("CIFAR-10", "Basic"), ("CIFAR-100", "ISDA"))),
    ],
)
def test_runs_that_several_tables_show_are_the_same_runs(planned, data, method):
    small = runs_of(planned, "table2", ("ResNet-110",), data, method)
    assert small == runs_of(planned, "table4", (method,), "ResNet-110", data)
    wide = runs_of(planned, "table2", ("Wide-ResNet-28-10",), data, method)
    assert wide == runs_of(planned, "table4", (f"{method} + Dropout",), "Wide-ResNet-28-10", data)
    assert wide == runs_of(planned, "table5", (method,), data)
    assert len({*small, *wide, *runs_of(planned, "table4", (f"{method} + Dropout",), "ResNet-110", data)}) == 9


@pytest.mark.parametrize("name", PAPER)
def test_dropout_is_where_the_paper_has_it(sample, name):
    for cell, runs in sample(name).items():
        settings = runs[0].settings
        has = settings["choice"]["model"].startswith("wrn") or cell.row[0].endswith("+ Dropout")
        assert settings["model"].get("dropout", 0) == (0.3 if has else 0), cell.name


def test_table_3_augments_as_its_columns_say(sample):
    for cell, runs in sample("table3").items():
        choice = runs[0].settings["choice"]
        assert choice["augmentation"] == {"Cutout": "cutout", "AA": "autoaugment"}[cell.column[0]]
        assert choice["dataset"] == {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}[cell.row[0]]
        assert choice["loss"] == {"Basic": "ce", "ISDA": "isda"}[cell.column[1]]


def test_table_1_has_appendix_bs_lambda_0_and_diagonal_covariances(sample):
    by_network = {(row["network"],): row["lambda_0"] for row in REPORTED["table1"]["rows"]}
    found = {}
    for cell, (run,) in sample("table1").items():
        assert run.settings["choice"]["dataset"] == "imagenet"
        if cell.column[0] == "ISDA":
            assert run.settings["loss"]["covariance"] == "diagonal"
            found[cell.row] = run.settings["loss"]["lambda_0"]
    assert found == by_network


def test_table_4_with_dropout_differs_in_the_other_methods_on_resnet110_alone(planned):
    plain, dropout = (load_table(name).cells for name in ("table4", "table4+dropout"))
    changed = {
        cell.name: cell for before, cell in zip(plain, dropout, strict=True) if before.overrides != cell.overrides
    }
    methods = ("Large Margin", "Disturb Label", "Focal Loss", "Center Loss", "Lq Loss", "CGAN", "ACGAN", "infoGAN")
    expected = {f"{method}, ResNet-110, {data}" for method in methods for data in ("CIFAR-10", "CIFAR-100")}
    assert set(changed) == {*expected, "WGAN, ResNet-110, CIFAR-10"}
    for name in ("WGAN, ResNet-110, CIFAR-10", "Focal Loss, ResNet-110, CIFAR-100"):
        (runs,) = planned("table4+dropout", changed[name].__eq__)[1].values()
        assert runs[0].settings["model"]["dropout"] == 0.3


def test_generators_are_table_4s_at_appendix_bs_share(sample):
    needed = {cell.row[0]: cell.generator for cell in load_table("table4").cells if cell.generator}
    assert needed == {"WGAN": "wgan", "CGAN": "cgan", "ACGAN": "acgan", "infoGAN": "infogan"}
    share = REPORTED["appendix_b"]["gan"]["synthetic_fraction_of_batch"]
    for cell, runs in sample("table4").items():
        assert runs[0].settings["synthetic"]["fraction"] == (share if cell.generator else None)


def test_every_contradiction_of_the_paper_is_below_the_tables_where_it_belongs():
    notes = {name: load_table(name).notes for name in [*PAPER, "table4+dropout", "figure6"]}
    assert all(BF16 in of_table for of_table in notes.values())
    assert all(len(set(of_table)) == len(of_table) for of_table in notes.values())
    assert set(notes["table4"]) <= set(notes["figure6"])
    for one in inconsistencies():
        places = one.tables or {"Appendix B": ("table1",), "equation 13": (), "equation 16": ()}[one.where]
        assert tuple(name for name in PAPER if str(one) in notes[name]) == places
