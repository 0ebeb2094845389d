"""The paper's tables: every row and column, composed; the paper's value beside each; who shares whose runs."""

import functools
from dataclasses import replace

import pytest
import yaml

from isda_repro import config
from isda_repro.tables.plan import expand
from isda_repro.tables.records import read_result
from isda_repro.tables.reported import PaperValue, inconsistencies
from isda_repro.tables.specification import METRICS, load_table, table_names

REPORTED = yaml.safe_load((config.CONF_DIR.parent / "isda_repro/tables/reported.yaml").read_text())
PAPER = ("table1", "table2", "table3", "table4", "table5")
SEARCHES = [name for name in table_names() if name.startswith(("lambda_", "open_"))]  # columns that differ in a number
SLOW = [*SEARCHES, "figure6"]  # which has the very cells of table4
ALL = [
    *(pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in table_names()),
    "table4+dropout",
]


@pytest.fixture(scope="session")
def planned():
    """``planned(name)``: a table and its runs; what has been composed once is not composed again."""
    compose = functools.cache(lambda overrides: config.compose(list(overrides)))

    @functools.cache
    def plan(name):
        table = load_table(name)
        return table, expand(table, lambda overrides: compose(tuple(overrides)))

    return plan


def value(entry, runs):
    mean, std = entry if isinstance(entry, list) else (entry, None)
    return PaperValue(float(mean), std, runs)


def transcribed(name):
    """Our row and column -> the paper's value, written out for each of the five tables."""
    spec, found = REPORTED[name], {}
    data = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
    for row in spec["rows"]:
        runs = row.get("runs", spec.get("runs", 1))
        if name == "table1":
            for i, metric in enumerate(("Top-1", "Top-5")):
                found[(row["network"],), ("Baselines", metric)] = value(row["baseline"][i], runs)
                found[(row["network"],), ("ISDA", metric)] = value(row["isda"][i], runs)
        elif name == "table2":
            for label, key in data.items():
                for method in ("Basic", "ISDA"):
                    found[(row["network"],), (label, method)] = value(row[key][method.lower()], runs)
        elif name == "table3":
            label = next(label for label, key in data.items() if key == row["dataset"])
            for augmentation, key in (("Cutout", "cutout"), ("AA", "autoaugment")):
                for method in ("Basic", "ISDA"):
                    found[(label, row["network"]), (augmentation, method)] = value(row[key][method.lower()], runs)
        elif name == "table4":
            columns = [(network, label) for network in ("ResNet-110", "Wide-ResNet-28-10") for label in data]
            for column, entry in zip(columns, row["values"], strict=True):
                found[(row["method"],), column] = None if entry is None else value(entry, runs)
        else:
            for label, entry in zip(data, row["values"], strict=True):
                found[(row["setting"],), (label,)] = value(entry, runs)
    return found


@pytest.mark.parametrize(("name", "values"), [*zip(PAPER, (28, 32, 24, 46, 12), strict=True), ("table4+dropout", 46)])
def test_every_value_of_the_paper_has_its_cell_and_every_cell_its_value(name, values):
    table = load_table(name)
    expected = transcribed(name.partition("+")[0])
    assert {(cell.row, cell.column): cell.paper for cell in table.cells} == {
        key: entry for key, entry in expected.items() if entry is not None
    }
    assert len(table.cells) == values
    assert {(row, column) for row in table.rows for column in table.columns} == set(expected)


@pytest.mark.parametrize("name", PAPER)
def test_there_are_as_many_seeds_as_the_paper_has_runs(name):
    for cell in load_table(name).cells:
        assert cell.seeds == tuple(range(cell.paper.n)), cell.name


@pytest.mark.parametrize("name", ALL)
def test_every_cell_of_every_table_composes(name, planned):
    table, plan = planned(name)
    assert [len(runs) for runs in plan.values()] == [len(cell.seeds) for cell in table.cells]
    for cell, runs in plan.items():
        assert cell.metric in METRICS
        assert cell.generator == runs[0].settings["synthetic"]["kind"], cell.name


@pytest.mark.parametrize("name", ALL)
def test_two_cells_have_the_same_runs_only_where_they_show_two_numbers_of_them(name, planned):
    _, plan = planned(name)
    shown = [(run.run_id, cell.metric) for cell, runs in plan.items() for run in runs]
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_column_of_every_search_composes(name):
    table = load_table(name)
    column = replace(table, cells=tuple(cell for cell in table.cells if cell.column == table.columns[0]))
    assert len(expand(column, config.compose)) == len(table.rows)


def runs_of(planned, name, row, *column):
    return [
        run.run_id
        for run in next(r for cell, r in planned(name)[1].items() if (cell.row, cell.column) == (row, column))
    ]


@pytest.mark.parametrize("data", ["CIFAR-10", "CIFAR-100"])
def test_runs_that_several_tables_show_are_the_same_runs(planned, data):
    for method in ("Basic", "ISDA"):
        small = runs_of(planned, "table2", ("ResNet-110",), data, method)
        assert small == runs_of(planned, "table4", (method,), "ResNet-110", data)
        wide = runs_of(planned, "table2", ("Wide-ResNet-28-10",), data, method)
        assert wide == runs_of(planned, "table4", (f"{method} + Dropout",), "Wide-ResNet-28-10", data)
        assert wide == runs_of(planned, "table5", (method,), data)
        assert wide != small
        assert small != runs_of(planned, "table4", (f"{method} + Dropout",), "ResNet-110", data)


def test_top_1_and_top_5_are_of_the_same_runs_and_of_the_last_epoch(planned):
    table, plan = planned("table1")
    for network in table.rows:
        for method in ("Baselines", "ISDA"):
            one, other = (
                next(c for c in plan if (c.row, c.column) == (network, (method, k))) for k in ("Top-1", "Top-5")
            )
            assert (one.metric, other.metric) == ("test_error_final", "test_top5_error_final")
            assert plan[one] is plan[other]
            assert one.slug == other.slug


def test_dropout_is_where_the_paper_has_it(planned):
    for name in PAPER:
        for cell, runs in planned(name)[1].items():
            settings = runs[0].settings
            has = settings["choice"]["model"].startswith("wrn") or cell.row[0].endswith("+ Dropout")
            assert settings["model"].get("dropout", 0) == (0.3 if has else 0), cell.name


def test_table_3_augments_as_its_columns_say(planned):
    for cell, runs in planned("table3")[1].items():
        settings = runs[0].settings
        assert settings["choice"]["augmentation"] == {"Cutout": "cutout", "AA": "autoaugment"}[cell.column[0]]
        assert settings["choice"]["dataset"] == {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}[cell.row[0]]
        assert settings["choice"]["loss"] == {"Basic": "ce", "ISDA": "isda"}[cell.column[1]]


def test_table_1_has_appendix_bs_lambda_0_and_diagonal_covariances(planned):
    by_network = {row["network"]: row["lambda_0"] for row in REPORTED["table1"]["rows"]}
    for cell, runs in planned("table1")[1].items():
        loss = runs[0].settings["loss"]
        if cell.column[0] == "ISDA":
            assert (loss["lambda_0"], loss["covariance"]) == (by_network[cell.row[0]], "diagonal")
        assert runs[0].settings["choice"]["dataset"] == "imagenet"


def test_table_4_with_dropout_differs_in_the_other_methods_on_resnet110_alone(planned):
    plain, dropout = (planned(name)[1] for name in ("table4", "table4+dropout"))
    changed = {
        cell.name
        for (cell, runs), others in zip(plain.items(), dropout.values(), strict=True)
        if [run.run_id for run in runs] != [run.run_id for run in others]
    }
    methods = ("Large Margin", "Disturb Label", "Focal Loss", "Center Loss", "Lq Loss", "CGAN", "ACGAN", "infoGAN")
    expected = {f"{method}, ResNet-110, {data}" for method in methods for data in ("CIFAR-10", "CIFAR-100")}
    assert changed == {*expected, "WGAN, ResNet-110, CIFAR-10"}


def test_generators_are_table_4s_at_appendix_bs_share(planned):
    needed = {cell.row[0]: cell.generator for cell in planned("table4")[0].cells if cell.generator}
    assert needed == {"WGAN": "wgan", "CGAN": "cgan", "ACGAN": "acgan", "infoGAN": "infogan"}
    share = REPORTED["appendix_b"]["gan"]["synthetic_fraction_of_batch"]
    for cell, runs in planned("table4")[1].items():
        assert runs[0].settings["synthetic"]["fraction"] == (share if cell.generator else None)


def test_every_contradiction_of_the_paper_is_below_the_tables_where_it_belongs():
    places = {one.where: [name for name in PAPER if str(one) in load_table(name).notes] for one in inconsistencies()}
    assert places == {
        "4.3, Table 4": ["table4"],
        "Tables 2, 4, 5": ["table2", "table4", "table5"],
        "4.5, Table 5": ["table5"],
        "4.2, Table 2": ["table2"],
        "Appendix D, Table 4": ["table4"],
        "equation 13": [],  # docs/isda.md, which has all of them
        "Appendix B": ["table1"],
    }
    assert sum(one.where == "4.3, Table 4" for one in inconsistencies()) == 2


@pytest.mark.parametrize("name", [*PAPER, "table4+dropout"])
def test_notes_say_what_was_assumed(name):
    table = load_table(name)
    assert any("bf16" in note for note in table.notes)
    assert any("last or of the best epoch" in note for note in table.notes) == (name == "table1")
    assert len(set(table.notes)) == len(table.notes)


def test_committed_results_are_still_runs_of_their_table(planned, root):
    """A group of settings that came later, of which they know nothing, has not renamed them."""
    names = {run.run_id for runs in planned("short_cifar")[1].values() for run in runs}
    paths = list((root / "results/short_cifar").glob("*/*.json"))
    assert {read_result(path).run_id for path in paths} == names
