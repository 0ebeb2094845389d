"""Curves of finished and unfinished runs; the paper's figures, and the runs that they show."""

import dataclasses
import json
import math

import pytest

from isda_repro.config import CONF_DIR, compose
from isda_repro.errors import UserError
from isda_repro.experiments.paper_values import PaperValue
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.records import EpochRecord, as_json
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.curves import learning_rate_drops, panels


@pytest.fixture
def begin(tmp_path):
    """Return ``begin(run, errors)``, which writes the metrics of an unfinished run, as the trainer would."""

    def write(run, errors, tail="", **more):
        folder = tmp_path / "runs" / run.run_id
        folder.mkdir(parents=True)
        records = [
            EpochRecord(epoch=epoch, step=epoch, lr=0.05 if epoch < 4 else 0.005, train_loss=1.0, train_error=1.0,
                        test_loss=1.0, test_error=error, timing={}, **more)
            for epoch, error in enumerate(errors, start=1)
        ]  # fmt: skip
        lines = [json.dumps(as_json(record)) + "\n" for record in records]
        (folder / "metrics.jsonl").write_text("".join(lines) + tail)

    return write


def test_a_cell_of_which_nothing_is_finished_is_drawn_as_far_as_all_that_have_begun(demo, begin, there, tmp_path):
    table, plan = demo
    first, second, third = next(iter(plan.values()))
    begin(first, [60.0, 40.0, 20.0, 0.0, 9.0])
    begin(second, [50.0, 20.0, 30.0, 4.0], tail='{"kind": "epoch", "sch')
    begin(third, [])
    filled = aggregate(table, plan, there())
    curve = panels(filled, plan, tmp_path / "runs")["ResNet-20 on digits"]["CE"]
    assert curve.mean == [55.0, 30.0, 25.0, 2.0]
    assert (curve.low, curve.high) == ([50.0, 20.0, 20.0, 0.0], [60.0, 40.0, 30.0, 4.0])
    assert curve.drops == [4]
    assert curve.value is None
    assert (curve.name, curve.seeds) == ("CE", 2)
    assert "4 of 30" in curve.unfinished
    assert curve.unfinished in curve.label
    assert curve.floor == 2.0
    assert panels(filled) == {}


def test_the_band_is_from_the_smallest_to_the_largest_seed(demo, finish, there):
    runs = next(iter(demo[1].values()))
    for run, errors in zip(runs, ([30.0, 3.0], [60.0, 0.0], [60.0, 6.0]), strict=True):
        finish(run, *errors)
    found = panels(aggregate(*demo, there()))
    assert {title: list(lines) for title, lines in found.items()} == {"ResNet-20 on digits": ["CE"]}
    curve = found["ResNet-20 on digits"]["CE"]
    assert (curve.low, curve.mean, curve.high) == ([30.0, 0.0], [50.0, 3.0], [60.0, 6.0])
    assert curve.floor == pytest.approx(100 / 360 / 2)
    assert (curve.seeds, curve.value) == (3, pytest.approx((16.5 + 30 + 33) / 3))


def test_drops_of_steps_are_marked_and_a_cosine_has_none():
    assert learning_rate_drops([0.05] * 15 + [0.005] * 8 + [0.0005] * 7) == [16, 24]
    assert learning_rate_drops([1.0, 0.2, 0.2]) == [2]
    assert learning_rate_drops([1.0]) == []
    assert learning_rate_drops([0.1, 0.1, 0.01, 0.001, 0.001]) == [3, 4]  # two drops in a row
    assert learning_rate_drops([0.1, 0.1, 0.05, 0.03]) == [3], "half is a drop, a bit less is none"
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 30)) for epoch in range(31)]
    assert learning_rate_drops(cosine) == []


def test_finished_runs_are_not_mixed_with_others(demo, begin, finish, there, tmp_path):
    table, plan = demo
    runs = next(iter(plan.values()))
    finish(runs[0], 30.0, 3.0)
    begin(runs[1], [60.0])
    curve = panels(aggregate(table, plan, there()), plan, tmp_path / "runs")["ResNet-20 on digits"]["CE"]
    assert (curve.mean, curve.seeds, curve.unfinished, curve.value) == ([30.0, 3.0], 1, None, 16.5)


def test_lines_can_be_rows(demo, finish, there):
    table, plan = demo
    turned = dataclasses.replace(table, figure=dataclasses.replace(table.figure, lines="rows"))
    for runs in plan.values():
        finish(runs[0], 30.0, 3.0)
    found = panels(aggregate(turned, plan, there()))
    assert {title: list(lines) for title, lines in found.items()} == {
        "CE": ["ResNet-20 on digits"],
        "ISDA": ["ResNet-20 on digits"],
    }


@pytest.mark.parametrize(("more", "expected"), [({}, {}), ({"test_top5_error": 7.0}, {"ISDA": [7.0]})])
def test_a_curve_is_of_the_metric_that_its_cell_shows(demo, begin, finish, there, tmp_path, more, expected):
    """An unfinished run may lack the metric; then it has no curve."""
    table, plan = demo
    plan = {dataclasses.replace(cell, metric="test_top5_error_final"): runs for cell, runs in plan.items()}
    table = dataclasses.replace(table, cells=tuple(plan))
    (first, *_), (second, *_) = plan.values()
    path = finish(first, 30.0, 20.0, test_top5_error_final=2.0)
    record = json.loads(path.read_text())
    record["curves"]["test_top5_error"] = [3.0, 2.0]
    path.write_text(json.dumps(record))
    begin(second, [60.0], **more)
    found = panels(aggregate(table, plan, there()), plan, tmp_path / "runs")
    assert {name: curve.mean for name, curve in found["ResNet-20 on digits"].items()} == {"CE": [3.0, 2.0], **expected}


def test_the_papers_value_stands_beside_a_finished_cell(demo, finish, there):
    table, plan = demo
    plan = {dataclasses.replace(cell, paper=PaperValue(6.5)): runs for cell, runs in plan.items()}
    finish(next(iter(plan.values()))[0], 30.0, 3.0)
    table = dataclasses.replace(table, cells=tuple(plan))
    for is_reduced, paper in ((False, 6.5), (True, None)):  # the paper has no value for other settings
        ((_, lines),) = panels(aggregate(table, plan, there(), reduced=is_reduced)).items()
        assert {name: curve.paper for name, curve in lines.items()} == {"CE": paper}


def test_a_curve_has_its_passes_and_whether_its_value_is_the_best(demo, finish, begin, there, tmp_path):
    plan = plan_runs(demo[0], compose, ("recipe.passes=8",))
    ce, isda = plan.values()
    finish(isda[0], 4.0, 3.0)
    begin(ce[0], [5.0])
    ((_, lines),) = panels(aggregate(demo[0], plan, there(), reduced=True), plan, tmp_path / "runs").items()
    assert {name: (one.passes, one.is_best) for name, one in lines.items()} == {"CE": (8, False), "ISDA": (8, False)}
    finish(ce[0], 5.0, 4.0)
    ((_, lines),) = panels(aggregate(demo[0], plan, there(), reduced=True)).items()
    assert {name: (one.passes, one.is_best) for name, one in lines.items()} == {"CE": (8, False), "ISDA": (8, True)}


# ------------------------------------------------------------------------------------------------ figures of the paper


def run_ids(name, *parts):
    """Return the run ids of the cells whose labels contain all these parts."""
    table = load_table(name)
    cells = tuple(cell for cell in table.cells if {*parts} <= {*cell.row, *cell.column})
    return {run.run_id for runs in plan_runs(dataclasses.replace(table, cells=cells), compose).values() for run in runs}


@pytest.mark.parametrize("loss", [pytest.param("Basic", marks=pytest.mark.slow), "ISDA"])
def test_figure_2_trains_nothing_that_tables_2_and_3_do_not(loss):
    wide, shown = ("Wide-ResNet-28-10", "CIFAR-100", loss), set()
    for row, table, column in (
        ("Standard augmentation", "table2", ()),
        ("Cutout", "table3", ("Cutout",)),
        ("AutoAugment", "table3", ("AA",)),
    ):
        of_row = run_ids("figure2", row, loss)
        assert of_row == run_ids(table, *wide, *column)
        shown |= of_row
    assert len(shown) == 9


def test_figure_6_has_the_cells_of_table_4():
    figure = load_table("figure6")
    assert figure.cells == load_table("table4").cells
    assert figure.columns == tuple(
        (network, data) for network in ("ResNet-110", "Wide-ResNet-28-10") for data in ("CIFAR-10", "CIFAR-100")
    )
    assert len({cell.row for cell in figure.cells}) == 13


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("figure: {lines: both}", "lines: both"),
        ("figure: {detail: -1}", "detail: -1"),
        ("figure: {detail: true}", "detail: True"),
        ("figure: {bold: 3}", "bold: 3"),
        ("figure: {across: 3}", "across: 3"),
        ("figure: {across: lambda_0, lines: rows}", "alone"),
        ("figure: {across: lambda_0}", "CE is no number"),
        ("figure: {colour: red}", "colour"),
        ("figure: rows", "rows"),
        ("like: table9", "table9"),
    ],
)
def test_a_mistake_in_a_figures_file_is_named(tmp_path, added, named):
    text = (CONF_DIR / "table" / "demo.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(f"{text}\n{added}\n")
    with pytest.raises(UserError, match=named):
        load_table(str(tmp_path / "mine.yaml"))
