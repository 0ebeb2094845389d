import pytest
from omegaconf import OmegaConf

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.tables.plan import expand
from isda_repro.tables.specification import PaperValue, load_table, table_names

SPEC = """
title: A table
metric: test_error_last10
baseline: CE
seeds: [0, 1, 2]
set: [recipe.epochs=3]
rows:
  - {ResNet-20: model=resnet20, ResNet-110: {set: [model=resnet110, model.dropout=0.3], seeds: [0]}}
columns:
  - {Digits: dataset=digits, CIFAR-10: dataset=cifar10}
  - {CE: loss=ce, ISDA: loss=isda}
"""


@pytest.fixture
def read(tmp_path):
    def from_text(text, name="some"):
        (tmp_path / f"{name}.yaml").write_text(text)
        return load_table(name, tmp_path)

    return from_text


def cell_of(table, row, column):
    return next(cell for cell in table.cells if cell.row == row and cell.column == column)


def test_a_cell_is_the_product_of_all_axes_and_collects_overrides_in_order(read):
    table = read(SPEC)
    assert len(table.cells) == 8
    cell = cell_of(table, ("ResNet-110",), ("CIFAR-10", "ISDA"))
    expected = ("recipe.epochs=3", "model=resnet110", "model.dropout=0.3", "dataset=cifar10", "loss=isda")
    assert cell.overrides == expected
    assert cell.seeds == (0,)
    assert cell.slug == "resnet-110--cifar-10--isda"
    assert cell_of(table, ("ResNet-20",), ("Digits", "CE")).seeds == (0, 1, 2)


def test_exceptions_come_behind_in_order_and_only_where_they_fit(read):
    table = read(
        SPEC
        + """
cells:
  - {row: "*-110", column: ISDA, set: loss.lambda_0=1}
  - {column: "CIFAR-10 / *", seeds: [5, 6]}
  - {row: ResNet-110, column: "CIFAR-10 / ISDA", set: [loss.lambda_0=2], seeds: [7]}
"""
    )
    assert cell_of(table, ("ResNet-110",), ("Digits", "ISDA")).overrides[-1] == "loss.lambda_0=1"
    both = cell_of(table, ("ResNet-110",), ("CIFAR-10", "ISDA"))
    assert both.overrides[-2:] == ("loss.lambda_0=1", "loss.lambda_0=2")
    assert both.seeds == (7,)
    assert cell_of(table, ("ResNet-20",), ("CIFAR-10", "CE")).seeds == (5, 6)
    assert cell_of(table, ("ResNet-20",), ("Digits", "ISDA")).overrides[-1] == "loss=isda"


def test_the_papers_values_stand_in_column_order_and_null_takes_a_cell_out(read):
    table = read(SPEC + "paper: {ResNet-20: [7.39, [7.09, 0.12], null, [30.27, 0.34]]}")
    assert cell_of(table, ("ResNet-20",), ("Digits", "CE")).paper == PaperValue(7.39)
    assert cell_of(table, ("ResNet-20",), ("Digits", "ISDA")).paper == PaperValue(7.09, 0.12)
    assert cell_of(table, ("ResNet-20",), ("CIFAR-10", "ISDA")).paper == PaperValue(30.27, 0.34)
    assert cell_of(table, ("ResNet-110",), ("CIFAR-10", "CE")).paper is None
    assert len(table.cells) == 7


def test_the_baseline_is_looked_up_in_its_own_axis(read):
    table = read(SPEC)
    assert table.baseline_column(("CIFAR-10", "ISDA")) == ("CIFAR-10", "CE")
    assert table.baseline_column(("CIFAR-10", "CE")) is None
    assert read(SPEC.replace("baseline: CE", "")).baseline_column(("CIFAR-10", "ISDA")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPEC + "colums: []", "unknown key colums; it can have title, metric"),
        (SPEC.replace("title: A table", ""), "title: is missing"),
        (SPEC.replace("test_error_last10", "accuracy"), "metric: accuracy is unknown"),
        (SPEC.replace("baseline: CE", "baseline: Basic"), "baseline: Basic is no column label"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: [0, 0]"), r"seeds \[0, 0\] must be a list of different"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: [0.5]"), "whole numbers"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: []"), "must be a list"),
        (SPEC.replace("recipe.epochs=3", "recipe.epochs"), "set: .* must be key=value"),
        (SPEC.replace("recipe.epochs=3", "seed=3"), "set sets the seed"),
        (SPEC.replace("{set: [", "{sets: ["), "rows: ResNet-110 has the unknown key sets"),
        (SPEC.replace("ISDA: loss=isda", "CE: loss=isda"), "duplicate key CE"),
        (
            SPEC.replace("ISDA: loss=isda", "ce: loss=isda"),
            "two cells would both be stored as resnet-110--cifar-10--ce",
        ),
        (SPEC + "cells: [{row: WRN*, set: a=1}]", r"row WRN\*, column \* fits no cell"),
        (SPEC + "cells: [{row: '*', set: a=1}, {set: a=2}]", "is given twice"),
        (SPEC + "paper: {ResNet-32: [1, 2, 3, 4]}", "unknown key ResNet-32"),
        (SPEC + "paper: {ResNet-20: [1, 2]}", "must list 4 values"),
        (SPEC + "paper: {ResNet-20: [1, 2, 3, [4, 5, 6]]}", r"must be a number, \[mean, std\] or null"),
        (SPEC + "paper: table9", "reported.yaml lists no values under table9"),
        (SPEC + "paper: table2", "reported.yaml lists no values under table2"),
        ("[1, 2]", "the table must be a mapping"),
        ("rows: [", "is not YAML"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_file(read, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text)
    assert str(caught.value).startswith("conf/table/some.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_table_lists_those_that_exist():
    with pytest.raises(UserError, match=r"there is no table=table99; table= can be .*demo"):
        load_table("table99")


VARIANT = (
    SPEC
    + """
cells: [{row: ResNet-20, set: loss.lambda_0=1}]
variants:
  more: {title: Another, cells: [{row: ResNet-110, set: model.dropout=0.1}]}
"""
)


def test_a_variant_is_the_table_with_a_title_and_exceptions_of_its_own(read, tmp_path):
    plain, table = read(VARIANT), load_table("some+more", tmp_path)
    assert (table.name, table.title) == ("some+more", "Another")
    for cell in table.cells:
        same = cell_of(plain, cell.row, cell.column).overrides
        assert cell.overrides == (*same, "model.dropout=0.1") if cell.row == ("ResNet-110",) else same


def test_an_unknown_variant_lists_those_that_exist(read, tmp_path):
    read(VARIANT)
    with pytest.raises(UserError, match=r"conf/table/some.yaml: there is no variant \+less; there are \+more"):
        load_table("some+less", tmp_path)
    read(SPEC)
    with pytest.raises(UserError, match=r"there is no variant \+more; there are none"):
        load_table("some+more", tmp_path)


def test_the_papers_values_come_from_where_they_were_transcribed():
    table4, table5 = load_table("table4"), load_table("table5")
    assert cell_of(table4, ("Center Loss",), ("ResNet-110", "CIFAR-100")).paper == PaperValue(27.85, 0.10)
    assert cell_of(table5, ("ISDA",), ("CIFAR-100",)).paper == PaperValue(17.98, 0.15)
    assert all(cell.paper is not None for cell in (*table4.cells, *table5.cells))
    assert not [cell for cell in table4.cells if cell.row == ("Basic",) and cell.column[0].startswith("Wide")]


def test_table_4_with_dropout_differs_in_the_other_losses_on_resnet110_alone():
    plain, dropout = (expand(load_table(name), config.compose) for name in ("table4", "table4+dropout"))
    changed = {
        cell.name
        for (cell, runs), others in zip(plain.items(), dropout.values(), strict=True)
        if [run.run_id for run in runs] != [run.run_id for run in others]
    }
    methods = ("Large Margin", "Disturb Label", "Focal Loss", "Center Loss", "Lq Loss")
    assert changed == {f"{method}, ResNet-110, {data}" for method in methods for data in ("CIFAR-10", "CIFAR-100")}


@pytest.mark.parametrize("name", table_names())
def test_every_table_composes(name):
    table = load_table(name)
    plan = expand(table, config.compose)
    assert [len(runs) for runs in plan.values()] == [len(cell.seeds) for cell in table.cells]


def test_a_seed_set_afterwards_is_the_seed_composed(demo):
    for cell, runs in demo[1].items():
        for run in runs:
            assert run.config == config.compose([*cell.overrides, f"seed={run.seed}"])


def test_each_cell_is_composed_once(demo):
    calls = []

    def counting(overrides):
        calls.append(overrides)
        return OmegaConf.create({"seed": 0, "choice": dict.fromkeys(("model", "dataset", "augmentation", "loss"), "x")})

    expand(demo[0], counting, ["recipe.epochs=2"])
    assert calls == [
        ["model=resnet20", "dataset=digits", "loss=ce", "recipe.epochs=2", "seed=0"],
        ["model=resnet20", "dataset=digits", "loss=isda", "recipe.epochs=2", "seed=0"],
    ]


def test_extra_overrides_make_other_runs_and_may_not_set_the_seed(demo):
    table, plan = demo
    reduced = expand(table, config.compose, ["recipe.epochs=2"])
    full_ids = {run.run_id for runs in plan.values() for run in runs}
    assert len(full_ids) == 6
    assert not full_ids & {run.run_id for runs in reduced.values() for run in runs}
    with pytest.raises(UserError, match="set= sets the seed"):
        expand(table, config.compose, ["seed=4"])
