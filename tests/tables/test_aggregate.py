"""Aggregation: the runs that enter a cell, and the values of the cell."""

import dataclasses

import pytest

from isda_repro import config
from isda_repro.experiments.paper_values import PaperValue
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.records import CLASS_ERRORS, read_result
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import Found
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.intervals import Summary, difference, welch
from isda_repro.tables.layout import trained_on

CE, ISDA = (("ResNet-20 on digits",), ("CE",)), (("ResNet-20 on digits",), ("ISDA",))


@pytest.fixture
def cells(demo):
    """Return the runs of the two cells."""
    return list(demo[1].values())


@pytest.fixture
def fill(demo, there):
    return lambda **options: aggregate(*demo, there(), **options)


def with_cells(demo, **changed):
    """Return the demo's table and plan with a change in each of its cells."""
    table, plan = demo
    plan = {dataclasses.replace(cell, **changed): runs for cell, runs in plan.items()}
    return dataclasses.replace(table, cells=tuple(plan)), plan


def test_cells_hold_the_values_of_their_own_runs(cells, finish, fill):
    paths = [finish(run, error) for run, error in zip(cells[0], (2.0, 3.0, 7.0), strict=True)]
    for run, error in zip(cells[1][1:], (1.0, 2.0), strict=True):
        finish(run, error)
    filled = fill()
    assert (filled.problems, filled.reduced, filled.evaluated_on) == ((), (), "test")
    ce, isda = filled.cells[CE], filled.cells[ISDA]
    assert (ce.values, ce.missing, ce.difference) == ({0: 2.0, 1: 3.0, 2: 7.0}, (), None)
    assert ce.summary == Summary(3, 4.0, pytest.approx(7**0.5))
    assert isda.missing == (0,)
    assert isda.difference == difference({1: 1.0, 2: 2.0}, {1: 3.0, 2: 7.0})
    assert ce.results() == {seed: read_result(path) for seed, path in enumerate(paths)}


def test_groups_of_classes_are_columns_of_the_same_runs(finish, there):
    table = load_table("long_tail")
    plan = plan_runs(table, config.compose)
    (ce,) = {runs[0] for cell, runs in plan.items() if cell.row == ("CE",)}
    final = dict(zip(CLASS_ERRORS[1:], (30.0, 60.0, 90.0), strict=True))
    curves = {name: [value] for name, value in final.items()}
    path = finish(ce, 61.0)
    finish(ce, 61.0, curves={**read_result(path).curves, **curves}, **{f"{name}_final": x for name, x in final.items()})
    filled = aggregate(table, plan, there())
    assert filled.problems == ()
    shown = [filled.cells[("CE",), column].values for column in table.columns]
    assert shown == [{0: 61.0}, {0: 30.0}, {0: 60.0}, {0: 90.0}]


def test_an_empty_table_has_empty_cells(fill):
    filled = fill()
    assert filled.problems == ()
    assert [cell.summary for cell in filled.cells.values()] == [None, None]
    assert filled.cells[ISDA].missing == (0, 1, 2)
    assert filled.cells[ISDA].difference is None


def test_a_source_without_files_is_as_good(demo, cells, finish):
    result = read_result(finish(cells[0][0], 5.0, 3.0))
    cell = aggregate(*demo, index_results([Found("somewhere", result)])).cells[CE]
    assert (cell.values, cell.records[0].origin) == ({0: 4.0}, "somewhere")
    assert cell.results() == {0: result}


@pytest.mark.parametrize(("metric", "value"), [("test_error_last10", 4.5), ("test_error_best", 0.0)])
def test_a_cell_shows_its_own_metric(demo, cells, finish, there, metric, value):
    finish(cells[0][0], 90.0, *[float(error) for error in range(10)])
    assert aggregate(*with_cells(demo, metric=metric), there()).cells[CE].values == {0: value}


def test_a_run_without_the_cells_metric_is_named_and_stays_missing(demo, cells, finish, there):
    path = finish(cells[0][0], 3.0)
    filled = aggregate(*with_cells(demo, metric="test_top5_error_final"), there())
    assert (filled.cells[CE].values, filled.evaluated_on) == ({}, "test")
    assert filled.cells[CE].missing == (0, 1, 2)
    (problem,) = filled.problems
    assert str(path) in problem
    assert "test_top5_error_final" in problem


def test_kept_results_count_and_the_local_run_wins_and_both_are_named(cells, finish, fill, tmp_path):
    kept = finish(cells[0][0], 5.0, path=tmp_path / "results/demo/resnet-20-on-digits--ce/0.json")
    finish(cells[0][1], 6.0, path=tmp_path / "results/demo/a-cell-since-renamed/1.json")
    finish(cells[0][2], 7.0, path=tmp_path / "results/another/cell/2.json")
    filled = fill()
    assert (filled.cells[CE].values, filled.problems) == ({0: 5.0, 1: 6.0, 2: 7.0}, ())
    own = finish(cells[0][0], 4.0)
    filled = fill()
    assert filled.cells[CE].values == {0: 4.0, 1: 6.0, 2: 7.0}
    (problem,) = filled.problems
    assert problem.index(str(kept)) < problem.index(str(own)), "what was passed over, and for what"


def test_a_kept_run_of_other_settings_stays_out_and_is_named(demo, finish, fill, tmp_path):
    other = plan_runs(demo[0], config.compose, ["recipe.lr=0.06"])
    path = tmp_path / "results/demo/resnet-20-on-digits--ce/0.json"
    finish(next(iter(other.values()))[0], 1.0, path=path)
    filled = fill()
    assert filled.cells[CE].values == {}
    (problem,) = filled.problems
    assert str(path) in problem
    assert fill(reduced=True).problems == ()


def test_what_the_runs_were_trained_on_is_said_and_a_difference_of_unequal_runs_is_named(cells, finish, fill):
    gpu = [{"precision": "bf16", "hardware": "a GPU"}]
    finish(cells[0][0], 3.0, segments=gpu)
    assert trained_on(fill()) == ("Trained on a GPU in bf16 (1 run).",)
    finish(cells[1][0], 2.0, segments=gpu)
    assert len(trained_on(fill())) == 1
    finish(cells[1][1], 2.5, segments=[*gpu, {"precision": "fp32"}])
    of_all, of_difference = trained_on(fill())
    assert of_all == "Trained on a GPU in bf16 (2 runs); a GPU in bf16, then unknown hardware in fp32 (1 run)."
    assert of_difference.startswith(
        "ResNet-20 on digits, ISDA was trained on a GPU in bf16 (1 run); a GPU in bf16, then"
    )


def test_a_record_that_claims_a_run_id_with_other_settings_stays_out(cells, finish, fill):
    run = cells[0][0]
    settings = config.request(dict(run.settings))
    path = finish(run, 1.0, request={**settings, "recipe": {**settings["recipe"], "epochs": 300}})
    filled = fill()
    assert filled.cells[CE].values == {}
    (problem,) = filled.problems
    assert str(path) in problem


@pytest.mark.parametrize("trained_in", [("bf16",), ("fp32", "bf16")])
def test_a_precision_that_the_cell_does_not_accept_is_shown_beside_it(demo, cells, finish, there, trained_in):
    finish(cells[0][0], 3.0)
    finish(cells[0][1], 5.0, segments=[{"precision": name} for name in trained_in])
    both = aggregate(*demo, there())
    assert (both.cells[CE].values, both.reduced) == ({0: 3.0, 1: 5.0}, ())
    strict = aggregate(*with_cells(demo, precisions=("fp32",)), there())
    assert strict.cells[CE].values == {0: 3.0}
    (beside,) = strict.reduced
    assert [setting.split(",")[0] for setting in beside.settings] == ["bf16"]
    assert beside.filled.cells[CE].values == {1: 5.0}
    assert strict.problems == ()


def test_runs_measured_on_other_images_say_so(cells, finish, fill):
    finish(cells[0][0], 3.0, evaluated_on="holdout")
    assert fill().evaluated_on == "holdout"
    finish(cells[1][0], 3.0)
    assert set(fill().evaluated_on.split(" and ")) == {"holdout", "test"}


def test_a_table_without_results_says_on_what_its_runs_will_be_evaluated(demo, there):
    table, plan = demo

    def held_out(run):
        return dataclasses.replace(run, settings=run.settings | {"dataset": run.settings["dataset"] | {"holdout": 100}})

    every = {cell: tuple(map(held_out, runs)) for cell, runs in plan.items()}
    one = plan | dict(list(every.items())[:1])
    errors = [aggregate(table, planned, there()).error for planned in (plan, every, one)]
    assert errors == ["test error", "error on held-out images", "error on held-out or test images"]


def test_the_papers_own_difference_is_welchs(demo, there):
    table, plan = demo
    values = (PaperValue(18.53, 0.07, 3), PaperValue(17.98, 0.15, 3))
    plan = {dataclasses.replace(cell, paper=value): plan[cell] for cell, value in zip(plan, values, strict=True)}
    filled = aggregate(table, plan, there())
    assert filled.cells[CE].paper_difference is None
    assert filled.cells[ISDA].paper_difference == welch(17.98, 0.15, 3, 18.53, 0.07, 3)
