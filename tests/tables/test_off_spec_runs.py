"""Runs with a changed setting: they enter no cell, and appear in a reduced table or a list instead."""

import dataclasses

import pytest
from sweeps import compose

from isda_repro.experiments.paper_values import PaperValue
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.comparison import best
from isda_repro.tables.off_spec_runs import Deviation, OffSpecGroup

CE, ISDA = (("ResNet-20 on digits",), ("CE",)), (("ResNet-20 on digits",), ("ISDA",))


@pytest.fixture
def reduced(demo, there):
    """Return a function that gives the reduced tables of the demo; its own cells must stay empty."""

    def shown():
        filled = aggregate(*demo, there())
        assert [cell.values for cell in filled.cells.values()] == [{}, {}]
        assert filled.problems == ()
        return filled.reduced

    return shown


def changed(demo, *overrides, cells=1):
    """Return the runs of CE, or of CE and ISDA, with other settings."""
    table = dataclasses.replace(demo[0], cells=demo[0].cells[:cells])
    return list(plan_runs(table, compose, overrides).values())


SHOWN = [
    ("recipe.epochs=12", "30"),
    ("recipe.passes=2", "null"),
    ("recipe.batch_size=32", "64"),
    ("dataset.train_limit=500", "null"),
    ("dataset.test_limit=100", "null"),
    ("compute.precision=bf16", "auto"),
    ("compute.micro_batch=16", "null"),
    ("compute.deterministic=true", "false"),
]


def named(settings):
    """Return the setting with its value, and the cell's value, of each phrase."""
    return [(phrase.split()[0], phrase.split()[-1]) for phrase in settings]


@pytest.mark.parametrize(("override", "instead"), SHOWN)
def test_smaller_run_fills_a_table_of_its_own_that_says_how(demo, finish, reduced, override, instead):
    finish(changed(demo, override)[0][1], 3.0)
    (beside,) = reduced()
    assert named(beside.settings) == [(override, instead)]
    assert override in beside.filled.table.title
    assert {key: cell.values for key, cell in beside.filled.cells.items()} == {CE: {1: 3.0}}
    assert beside.filled.cells[CE].missing == ()
    assert override in beside.filled.cells[CE].cell.overrides


@pytest.mark.parametrize(("folders", "shown"), [(["other"], 0), (["demo"], 1), (["demo", "other"], 1)])
def test_run_that_is_stored_for_another_table_alone_is_not_shown(demo, finish, reduced, tmp_path, folders, shown):
    run = changed(demo, "recipe.epochs=12")[0][1]
    for folder in folders:
        finish(run, 3.0, path=tmp_path / "results" / folder / "cell" / "1.json")
    assert len(reduced()) == shown


OTHERS = [
    *("recipe.lr=0.06", "recipe.weight_decay=0.001", "recipe.nesterov=false", "recipe.schedule.milestones=[10,20]"),
    *("model.dropout=0.1", "model=resnet32", "loss=focal", "augmentation=none", "faithful=official"),
    "dataset.holdout=100",
]


def test_smaller_run_without_the_metric_is_named_and_has_no_table(demo, finish, there):
    finish(changed(demo, "recipe.epochs=12")[0][1], 3.0)
    table, plan = demo
    metric = {"metric": "test_top5_error_final"}
    cells = {cell: dataclasses.replace(cell, **metric) for cell in plan}
    wanted = dataclasses.replace(table, cells=tuple(cells.values()))
    filled = aggregate(wanted, {cells[cell]: runs for cell, runs in plan.items()}, there())
    assert filled.reduced == ()
    assert any("test_top5_error_final" in problem for problem in filled.problems)


def test_other_experiments_show_up_nowhere_nor_do_smaller_ones_of_them(demo, finish, there, reduced):
    for override in OTHERS:
        on = "holdout" if "holdout" in override else "test"
        finish(changed(demo, override)[0][1], 3.0, evaluated_on=on)
    for override in OTHERS[::3]:
        on = "holdout" if "holdout" in override else "test"
        finish(changed(demo, override, "dataset.train_limit=500")[0][1], 3.0, evaluated_on=on)
    assert (len(there().records), there().problems) == (len(OTHERS) + len(OTHERS[::3]), [])
    assert [beside.settings for beside in reduced()] == []


def test_runs_that_differ_in_the_same_way_stand_together_with_their_difference(demo, finish, reduced):
    for runs, errors in zip(changed(demo, "recipe.epochs=12", cells=2), ((5.0, 7.0, 6.0), (4.0, 5.0)), strict=True):
        for run, error in zip(runs, errors, strict=False):
            finish(run, error)
    finish(changed(demo, "recipe.epochs=12", "dataset.train_limit=500", cells=2)[1][2], 9.0)
    together, alone = sorted(reduced(), key=lambda one: len(one.settings))
    assert together.filled.cells[CE].values == {0: 5.0, 1: 7.0, 2: 6.0}
    assert together.filled.cells[ISDA].difference.mean == pytest.approx(-1.5)
    assert together.filled.cells[ISDA].difference.pairs == 2
    assert named(alone.settings) == [("dataset.train_limit=500", "null"), ("recipe.epochs=12", "30")]
    assert list(alone.filled.cells) == [ISDA]


def test_cells_without_their_baseline_are_compared_with_nothing_and_methods_with_each_other():
    """A part of table 2 with ISDA alone has nothing in bold: its columns are data sets. Table 4's rows are methods."""
    for name, labels, bold in (("table2", {"ISDA"}, 0), ("table4", {"ISDA", "Focal Loss"}, 2)):
        whole = load_table(name)
        chosen = [cell for cell in whole.cells if labels & {*cell.row, *cell.column}]
        part = OffSpecGroup(Deviation((), ("fp16",), False), {cell: {0: None} for cell in chosen})
        means = {(cell.row, cell.column): float(place) for place, cell in enumerate(chosen)}
        assert len(best(part.table(whole), means)) == bold


def test_milestones_follow_the_epochs_and_are_named_where_they_do_not(demo, finish, reduced):
    finish(changed(demo, "recipe.epochs=12", "recipe.schedule.milestones=[5,9]")[0][0], 3.0)
    assert named(reduced()[0].settings) == [
        ("recipe.epochs=12", "30"),
        ("recipe.schedule.milestones=[5,9]", "[16,24]"),
    ]


def test_seeds_that_the_cell_does_not_list_stand_beside_it(demo, finish, reduced):
    table = dataclasses.replace(demo[0], cells=tuple(dataclasses.replace(c, seeds=(7, 8)) for c in demo[0].cells))
    for run in next(iter(plan_runs(table, compose).values())):
        finish(run, 3.0)
    (beside,) = reduced()
    assert len(beside.settings) == 1
    assert beside.filled.cells[CE].values == {7: 3.0, 8: 3.0}


def test_precision_that_the_cell_does_not_accept_stands_beside_it(demo, finish, there):
    table, plan = demo
    strict = {dataclasses.replace(cell, precisions=("fp32",)): runs for cell, runs in plan.items()}
    table = dataclasses.replace(table, cells=tuple(strict))
    runs = next(iter(strict.values()))
    finish(runs[0], 3.0, segments=[{"precision": "fp32"}, {"precision": "bf16"}])
    finish(runs[1], 4.0, segments=[{"precision": "fp32"}])
    filled = aggregate(table, strict, there())
    assert filled.cells[CE].values == {1: 4.0}
    (beside,) = filled.reduced
    assert "bf16" in beside.settings[0]
    assert beside.filled.cells[CE].values == {0: 3.0}


def test_kept_reduced_run_is_no_stranger(demo, finish, reduced, tmp_path):
    finish(changed(demo, "recipe.epochs=12")[0][0], 3.0, path=tmp_path / "results/demo/cell/0.json")
    (beside,) = reduced()
    assert beside.filled.cells[CE].values == {0: 3.0}


def test_nothing_of_the_papers_stands_beside_reduced_runs(demo, finish, there):
    table, plan = demo
    plan = {dataclasses.replace(cell, paper=PaperValue(3.0, 0.1)): runs for cell, runs in plan.items()}
    table = dataclasses.replace(table, notes=("the paper's",))
    for runs in changed(demo, "recipe.epochs=12", cells=2):
        finish(runs[0], 3.0)
    (beside,) = aggregate(table, plan, there()).reduced
    assert [cell.cell.paper for cell in beside.filled.cells.values()] == [None, None]
    assert beside.filled.cells[ISDA].paper_difference is None
    assert beside.filled.table.notes == ()


SIZES = """
title: cells that differ in what others are reduced by
metric: test_error_final
seeds: [0]
set: [model=resnet20, dataset=digits, loss=ce]
rows:
  - {"300": dataset.train_limit=300, "600": [dataset.train_limit=600, recipe.passes=2]}
columns:
  - {last: [], best: []}
cells:
  - {column: best, set: recipe.epochs=3}
"""


def test_run_stands_with_the_nearest_cell_and_a_cells_own_run_with_no_other(finish, there, tmp_path):
    (tmp_path / "sizes.yaml").write_text(SIZES)
    table = load_table("sizes", tmp_path)
    plan = plan_runs(table, compose)
    finish(plan[table.cells[0]][0], 1.0)
    second = dataclasses.replace(table, cells=table.cells[3:])
    near = plan_runs(second, compose, ["dataset.train_limit=500"])
    finish(near[table.cells[3]][0], 2.0)  # differs from the second row in its images alone
    filled = aggregate(table, plan, there())
    assert {key: cell.values for key, cell in filled.cells.items() if cell.values} == {(("300",), ("last",)): {0: 1.0}}
    (beside,) = filled.reduced
    assert named(beside.settings) == [("dataset.train_limit=500", "600")]
    assert {key: cell.values for key, cell in beside.filled.cells.items()} == {(("600",), ("best",)): {0: 2.0}}
