import dataclasses
import shlex

import pytest

from isda_repro import config
from isda_repro.tables import sides as sides_module
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.comparison import best
from isda_repro.tables.costs import AddedCost, WallTime
from isda_repro.tables.gathered import gather
from isda_repro.tables.layout import Head, layout
from isda_repro.tables.plan import expand
from isda_repro.tables.sides import sides
from isda_repro.tables.specification import load_table
from isda_repro.tables.statistics import Difference
from isda_repro.tables.wording import difference, number


@pytest.fixture
def lay_out(demo, there):
    """The table demo with what is there."""

    def with_what_is_there(extra=(), **options):
        table, plan = demo[0], expand(demo[0], config.compose, extra) if extra else demo[1]
        return layout(aggregate(table, plan, there(), reduced=bool(extra)), plan, "SWEEP", extra, **options)

    return with_what_is_there


def texts(line):
    return [entry.text for entry in line.entries]


# ------------------------------------------------------------------------------------------------------------- wording


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [(-0.004, "0.00", "0.00"), (1.005, "1.00", "+1.00"), (-12.345, "−12.35", "−12.35"), (0.0, "0.00", "0.00")],
)
def test_numbers_are_rounded_and_zero_has_no_sign(value, plain, signed):
    assert number(value) == plain
    assert number(value, sign=True) == signed


def test_a_difference_says_what_n_allows():
    assert difference(Difference(-0.3, 0.1, 3, -0.5, -0.1), 3) == "−0.30 [−0.50, −0.10] better"
    assert difference(Difference(0.3, 0.1, 3, 0.1, 0.5), 3) == "+0.30 [0.10, 0.50] worse"
    assert difference(Difference(-0.3, 0.1, 3, -0.7, 0.1), 3) == "−0.30 [−0.70, 0.10] open"
    assert difference(Difference(-0.3, None, 1)) == "−0.30, no interval"
    assert difference(Difference(-0.3, 0.1, 2, -0.5, -0.1), 3) == "−0.30 [−0.50, −0.10] better, 2 pairs"
    assert difference(Difference(-0.3, None, 0, -0.5, -0.1), 3) == "−0.30 [−0.50, −0.10] better, Welch"


# ---------------------------------------------------------------------------------------------------------------- bold


@pytest.mark.parametrize(
    ("name", "is_bold"),
    [
        ("table1", lambda row, column: "ISDA" in column),
        ("table2", lambda row, column: "ISDA" in column),
        ("table3", lambda row, column: "ISDA" in column),
        ("table4", lambda row, column: row == ("ISDA + Dropout",)),
        ("table5", lambda row, column: row == ("ISDA",)),
    ],
)
def test_what_the_paper_prints_in_bold_is_bold(name, is_bold):
    table = load_table(name)
    printed = {(cell.row, cell.column): cell.paper.mean for cell in table.cells if cell.paper is not None}
    assert len(printed) >= 12
    assert best(table, printed) == {key for key in printed if is_bold(*key)}


def test_ties_are_all_bold_as_they_are_printed_and_one_value_alone_is_not(demo):
    ce, isda = [(cell.row, cell.column) for cell in demo[0].cells]
    assert best(demo[0], {ce: 1.004, isda: 1.0}) == {ce, isda}
    assert best(demo[0], {ce: 1.006, isda: 1.0}) == {isda}
    assert best(demo[0], {isda: 1.0}) == set()


def test_in_a_search_the_best_of_each_row_is_bold():
    table = load_table("lambda_cifar")
    first, second = table.rows[:2]
    means = {(first, column): 5.0 + i for i, column in enumerate(table.columns)}
    means |= {(second, column): 3.0 - i for i, column in enumerate(table.columns)}
    assert best(table, means) == {(first, table.columns[0]), (second, table.columns[-1])}


# -------------------------------------------------------------------------------------------------------------- layout


def test_heads_span_what_they_are_above(layouts):
    assert layouts["columns"].header == (
        (Head("CIFAR-10", 2), Head("CIFAR-100", 2)),
        (Head("Basic"), Head("ISDA"), Head("Basic"), Head("ISDA")),
    )


def test_rows_are_compared_with_the_baseline_that_each_column_has(layouts):
    isda = layouts["rows"].blocks[-1]
    assert isda.row == ("ISDA",)
    assert [(line.kind, line.label) for line in isda.lines] == [
        ("ours", "ours"),
        ("paper", "paper"),
        ("paper-difference", "minus baseline, paper"),
    ]
    assert texts(isda.lines[2])[0].startswith("−0.43 [")
    assert texts(isda.lines[2])[1].startswith("−0.24 [")
    baselines = "Baselines: Basic (ResNet-110, CIFAR-10), Basic + Dropout (Wide-ResNet-28-10, CIFAR-10)."
    assert layouts["rows"].caption.endswith(baselines)


def test_a_cell_that_trains_on_generated_images_says_that_its_generator_costs_too(layouts):
    acgan = layouts["rows"].missing[0]
    assert "synthetic=acgan" in acgan.command
    assert acgan.remark.endswith("; its generator's apart")


def test_our_lines(demo, finish, lay_out):
    ce, isda = demo[1].values()
    for run, error in zip(ce, (2.0, 3.0, 7.0), strict=True):
        finish(run, error, evaluated_on="holdout")
    for run, error in zip(isda[1:], (1.0, 2.0), strict=True):
        finish(run, error, evaluated_on="holdout")
    laid_out = lay_out()
    (block,) = laid_out.blocks
    assert [line.kind for line in block.lines] == ["ours", "difference"]
    assert [line.label for line in block.lines] == ["error", "ISDA − CE"]
    assert texts(block.lines[0]) == ["4.00 ± 2.65 (n = 3)", "1.50 ± 0.71 (n = 2 of 3)"]
    assert [entry.bold for entry in block.lines[0].entries] == [False, True]
    assert texts(block.lines[1])[1].startswith("−3.50 [")  # 1 - 3 and 2 - 7
    assert laid_out.caption.startswith("Holdout error in %, mean of the last 10 epochs; mean ± sample standard")
    assert [one.seeds for one in laid_out.missing] == [(0,)]


def test_a_reduced_sweep_stands_beside_nothing_of_the_papers(layouts):
    odd = layouts["odd"]
    assert odd.title.endswith(", reduced: data_dir='a`b'")
    assert {line.kind for block in odd.blocks for line in block.lines} == {"ours"}
    assert odd.notes == ()
    assert "reduced" in layouts["columns"].reduced[0].title
    assert layouts["columns"].reduced[0].missing == ()


def test_a_command_survives_the_shell(lay_out):
    odd = "data_dir='a b'"
    command = lay_out([odd]).missing[0].command
    words = ["python", "train.py", "model=resnet20", "dataset=digits", "loss=ce", odd, "seed=0"]
    assert shlex.split(command) == words


# --------------------------------------------------------------------------------------------------------------- sides


@pytest.fixture(scope="module")
def table1():
    table = load_table("table1")
    rows = (table.rows[0], table.rows[3])  # ResNet-50 and DenseNet-BC-121
    table = dataclasses.replace(table, rows=rows, cells=tuple(cell for cell in table.cells if cell.row in rows))
    return table, expand(table, config.compose)


def test_table_1_has_its_parameters_and_costs_beside_the_papers(table1, monkeypatch, tmp_path):
    wall = WallTime(
        percent=7.04, low=6.0, high=8.0, step_percent=7.5, batch_size=64, precision="bf16", hardware="a fast GPU",
        date="2026-11-25",
    )  # fmt: skip
    costs = {"resnet50": AddedCost(0.2504, None, wall), "densenet121": AddedCost(0.1788, 0.2011, None)}
    monkeypatch.setattr(sides_module, "table1_costs", lambda model, results_dir: costs.get(model))
    table, plan = table1
    beside = sides(table, plan, tmp_path)
    assert [side.title for side in beside] == ["Params", "Cost (theory)", "Cost (wall)"]
    resnet, densenet = table.rows
    assert [(side.our_text(resnet), side.papers_text(resnet)) for side in beside] == [
        ("25.56M", "25.6M"),
        ("0.25%", "0.25%"),
        ("7.0%", "7.6%"),
    ]
    assert beside[0].papers_text(densenet) == "8.0M"
    assert beside[1].our_text(densenet) == "0.18%"
    assert "(faithful=official) DenseNet-BC-121 0.20%" in beside[1].caption
    assert densenet not in beside[2].ours
    laid_out = layout(aggregate(table, plan, gather([])), plan, "SWEEP", sides=beside)
    assert laid_out.header[-1][0].text == "Params"
    assert [head.text for head in laid_out.header[-1][-2:]] == ["Cost (theory)", "Cost (wall)"]
    assert "a fast GPU, bf16, batches of 64, 2026-11-25; the paper's on 8 Tesla V100" in laid_out.caption


def test_other_tables_have_no_such_columns(demo, tmp_path):
    assert sides(*demo, tmp_path) == ()
