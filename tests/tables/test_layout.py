"""The layout of a table: its lines, bold entries and missing entries; the golden tables cover all of it."""

import dataclasses
import re
import shlex

import pytest

from isda_repro import config
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.records import METRICS
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.comparison import best
from isda_repro.tables.cost_columns import cost_columns
from isda_repro.tables.costs import Cost, Estimate
from isda_repro.tables.formatting import describe_metrics, format_difference, format_number
from isda_repro.tables.intervals import difference
from isda_repro.tables.layout import layout
from isda_repro.tables.missing import in_all


@pytest.fixture
def lay_out(demo, there):
    """Return a function that lays out the demo with the results on disk."""

    def with_what_is_there(extra=()):
        table, plan = demo[0], plan_runs(demo[0], config.compose, extra) if extra else demo[1]
        return layout(aggregate(table, plan, there(), reduced=bool(extra)), plan, "SWEEP", extra)

    return with_what_is_there


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [(-0.004, "0.00", "0.00"), (1.005, "1.00", "+1.00"), (-12.345, "−12.35", "−12.35"), (0.0, "0.00", "0.00")],
)
def test_numbers_are_rounded_and_zero_has_no_sign(value, plain, signed):
    assert format_number(value) == plain
    assert format_number(value, sign=True) == signed


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({0: 2.0, 1: 4.0}, {0: 3.0}, "−1.00, no interval, 1 pair"),
        ({0: 2.0}, {0: 3.0}, "−1.00, no interval"),
        ({0: 2.0, 1: 3.0, 2: 9.0}, {0: 3.0, 1: 4.0}, "−1.00, no interval, 2 pairs"),
        ({0: 2.0}, {1: 3.0}, "−1.00, no interval"),
    ],
)
def test_a_difference_without_an_interval_says_of_how_many_pairs_it_is(one, other, said):
    assert format_difference(difference(one, other), max(len(one), len(other))) == said


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


def test_our_lines(demo, finish, lay_out):
    ce, isda = demo[1].values()
    for run, error in zip(ce, (2.0, 3.0, 7.0), strict=True):
        finish(run, error, evaluated_on="holdout")
    for run, error in zip(isda[1:], (1.0, 2.0), strict=True):
        finish(run, error, evaluated_on="holdout")
    laid_out = lay_out()
    (block,) = laid_out.blocks
    ours, difference = block.lines
    assert (ours.kind, difference.kind) == ("ours", "difference")
    assert [entry.number for entry in ours.entries] == [4.0, 1.5]
    assert [entry.bold for entry in ours.entries] == [False, True]
    assert [entry.number for entry in difference.entries] == [None, -3.5]  # mean of 1 - 3 and 2 - 7
    assert laid_out.caption.startswith("Error on held-out images in %, ")
    assert [one.seeds for one in laid_out.missing] == [(0,)]


def test_metrics_are_told_apart_by_the_labels_that_belong_to_one_alone():
    table = load_table("table1")
    said = describe_metrics(
        dataclasses.replace(table, cells=tuple(cell for cell in table.cells if cell.row == table.rows[0]))
    )
    for label, metric in (("Top-1", "test_error_final"), ("Top-5", "test_top5_error_final")):
        assert label in said
        assert METRICS[metric] in said
    assert table.rows[0][0] not in said


def test_costs_are_summed_on_the_gpus_for_which_all_have_an_estimate(layouts):
    both, one, unknown = (
        dataclasses.replace(missing, seeds=seeds, cost=cost)
        for missing, seeds, cost in zip(
            layouts["rows"].missing,
            ((0, 1), (0,), (0, 1, 2)),
            (
                Cost(1, 1, 1, 10.0, (Estimate(3.0, "GTX 980", False), Estimate(2.0, "V100", False))),
                Cost(1, 1, 1, 5.0, (Estimate(4.0, "V100", True),)),
                None,
            ),
            strict=False,
        )
    )
    together = Cost(1, 1, 1, 25.0, (Estimate(8.0, "V100", True),))
    assert str(together) in in_all([both, one])
    known = in_all([both, one, unknown])
    assert str(together) in known
    assert re.findall(r"\d+", known.replace(str(together), ""))[:1] == ["6"], "runs"
    assert known != in_all([both, one])


def test_a_reduced_table_stands_beside_nothing_of_the_papers(layouts):
    whole, reduced = layouts["columns"], layouts["columns"].reduced[0]
    other = layout(whole.filled, whole.plan, "SWEEP", ("recipe.lr=1",))
    assert "recipe.lr=1" in other.title
    for one in (other, reduced):
        assert {line.kind for block in one.blocks for line in block.lines} == {"ours", "difference"}
        assert all(note.startswith(("Trained on", "Diverged:")) for note in one.notes)
    assert [one.seeds for one in other.missing] == [one.seeds for one in whole.missing]
    assert all("recipe.lr=1" in one.command for one in other.missing)
    assert reduced.missing == ()


def test_a_command_survives_the_shell(lay_out):
    odd = "data_dir='a b'"
    command = lay_out([odd]).missing[0].command
    words = ["python", "train.py", "model=resnet20", "dataset=digits", "loss=ce", odd, "seed=0"]
    assert shlex.split(command) == words


def test_nothing_stands_beside_other_tables_than_table_1(demo, tmp_path):
    assert cost_columns(*demo, tmp_path) == ()
