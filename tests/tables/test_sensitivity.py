"""The figure of a search: its points are the runs, and a value that lacks runs says so."""

import pytest
from synthetic import load_search

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.experiments.plan import plan_runs
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.figures import draw_curves
from isda_repro.tables.sensitivity import sensitivity_figure


@pytest.fixture
def search(tmp_path):
    """Return ``search(first)``, a search of two rows and its plan. ``first`` is the label of its first column."""

    def make(first="0.5"):
        table = load_search(tmp_path, [first, "0.25", "0", "1"], "{Digits: [], Few digits: dataset.train_limit=300}")
        return table, plan_runs(table, compose)

    return make


@pytest.fixture
def run_all(finish):
    """Return ``run_all(plan, errors)``, which finishes the runs of the first row by (column, seed)."""

    def write(plan, errors):
        for cell, runs in plan.items():
            for run in runs:
                if cell.row == ("Digits",) and (cell.column[0], run.seed) in errors:
                    finish(run, 50.0, errors[cell.column[0], run.seed])

    return write


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


ERRORS = {
    ("0", 0): 9.0,
    ("0", 1): 8.0,
    ("0.25", 0): 7.0,
    ("0.25", 1): 6.5,
    ("0.5", 0): 6.0,
    ("0.5", 1): 8.0,
    ("1", 0): 8.5,
}


def test_points_are_the_runs_in_the_order_of_the_values_and_a_line_their_means(search, run_all, there):
    table, plan = search()
    run_all(plan, ERRORS)
    (axes,) = sensitivity_figure(aggregate(table, plan, there())).axes[:1]
    first, second, mean = axes.lines
    assert points(first) == [(0, 9.0), (0.25, 7.0), (0.5, 6.0), (1, 8.5)]
    assert points(second) == [(0, 8.0), (0.25, 6.5), (0.5, 8.0)]
    assert points(mean) == [(0, 8.5), (0.25, 6.75), (0.5, 7.0), (1, 8.5)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["each seed", "mean of 2 seeds"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("lambda_0", "test error (%)")
    assert (axes.get_title(), axes.get_xscale(), axes.get_yscale()) == ("Digits", "linear", "linear")


def test_a_value_that_lacks_runs_says_so_and_a_row_without_any_is_no_panel(search, run_all, there):
    table, plan = search()
    run_all(plan, {key: error for key, error in ERRORS.items() if key[0] != "0.5"})
    figure = sensitivity_figure(aggregate(table, plan, there()))
    (axes,) = (one for one in figure.axes if one.get_visible())
    ticks = [text.get_text().split("\n") for text in axes.get_xticklabels()]
    assert ticks == [["0", " "], ["0.25", " "], ["0.5", "not run"], ["1", "n = 1 of 2"]]
    run_all(plan, {**ERRORS, ("1", 1): 8.0})
    ticks = sensitivity_figure(aggregate(table, plan, there())).axes[0].get_xticklabels()
    assert [text.get_text() for text in ticks] == ["0", "0.25", "0.5", "1"]


@pytest.mark.parametrize(("label", "token"), [("1.0", "value 1"), ("nan", "nan is no number")])
def test_column_that_is_no_place_of_its_own_is_named(search, label, token):
    with pytest.raises(UserError, match=token):
        search(label)


def test_one_seed_is_one_line(search, run_all, there):
    table, plan = search()
    run_all(plan, {key: error for key, error in ERRORS.items() if key[1] == 0})
    (axes,) = (one for one in sensitivity_figure(aggregate(table, plan, there())).axes if one.get_visible())
    assert [points(line) for line in axes.lines] == [[(0, 9.0), (0.25, 7.0), (0.5, 6.0), (1, 8.5)]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1 seed"]


def test_values_and_errors_that_are_far_apart_have_logarithmic_axes(search, run_all, there):
    table, plan = search("16")
    run_all(plan, {("16", 0): 60.0, **{key: error for key, error in ERRORS.items() if key[0] != "0.5"}})
    (axes,) = (one for one in sensitivity_figure(aggregate(table, plan, there())).axes if one.get_visible())
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")
    low, high = axes.get_xlim()
    assert low < 0 < 16 < high
    assert axes.get_ylim()[0] < 6.5 < 60 < axes.get_ylim()[1]
    assert [text.get_text().split("\n")[0] for text in axes.get_xticklabels()] == ["0", "0.25", "1", "16"]


def test_an_error_of_zero_stays_on_a_linear_axis(search, run_all, there):
    table, plan = search()
    run_all(plan, {("0", 0): 0.0, ("1", 0): 9.0})
    (axes,) = (one for one in sensitivity_figure(aggregate(table, plan, there())).axes if one.get_visible())
    assert axes.get_yscale() == "linear"


def test_the_figure_of_a_search_is_written_and_is_none_without_a_result(search, run_all, there, tmp_path):
    table, plan = search()
    assert draw_curves(aggregate(table, plan, there()), tmp_path / "search.png") == []
    run_all(plan, ERRORS)
    png, svg = draw_curves(aggregate(table, plan, there()), tmp_path / "search.png")
    again = draw_curves(aggregate(table, plan, there()), tmp_path / "again.png")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]
