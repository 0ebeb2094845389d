"""A run that diverged is neither finished nor missing: in tables, figures, searches, sweeps and under results/."""

import json
import os
from dataclasses import replace

import pytest
from synthetic import load_search

from isda_repro.config import compose
from isda_repro.experiments.plan import plan_runs
from isda_repro.runs.diverged import clear_divergence, read_outcome
from isda_repro.runs.records import EpochRecord, as_json
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_in, results_of_runs, results_on_disk
from isda_repro.sweeps.local import sweep_here
from isda_repro.sweeps.status import status
from isda_repro.sweeps.sweep import SweepOptions
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.curves import panels
from isda_repro.tables.export_results import export_results, runs_of_no_cell
from isda_repro.tables.formatting import format_value
from isda_repro.tables.layout import layout
from isda_repro.tables.sensitivity import _runs, sensitivity_figure

EPOCH = EpochRecord(epoch=1, step=5, lr=0.1, train_loss=1.0, train_error=1.0, test_loss=1.0, test_error=60.0, timing={})
ROW, CE, ISDA = ("ResNet-20 on digits",), ("CE",), ("ISDA",)


@pytest.fixture
def cells(demo):
    """Return the runs of the demo's cells, CE and ISDA."""
    return list(demo[1].values())


def entries(laid_out):
    """Return the lines of a table."""
    return [line for block in laid_out.blocks for line in block.lines]


def test_cell_has_the_runs_that_finished_and_names_those_that_diverged(demo, cells, finish, diverge, there):
    finish(cells[0][0], 3.0)
    finish(cells[1][0], 2.0)
    diverge(cells[1][1])
    filled = aggregate(*demo, there())
    isda = filled.cells[ROW, ISDA]
    assert (isda.values, list(isda.diverged), isda.missing) == ({0: 2.0}, [1], (2,))
    assert filled.problems == ()
    assert format_value(isda) == "2.00 (n = 1 of 3, 1 diverged)"
    assert isda.mean is None, "what is left is no mean of all runs"
    assert isda.difference is None, "the pairs that are left are no sample of all pairs"
    assert not any(entry.bold for line in entries(layout(filled, demo[1], "")) for entry in line.entries)
    assert [curve.is_best for curve in panels(filled)["ResNet-20 on digits"].values()] == [False, False]
    notes = layout(filled, demo[1], "").notes
    assert "Diverged: ResNet-20 on digits, ISDA, seed 1 (in epoch 29)." in " ".join(notes)
    assert [(one.cell.column, one.seeds) for one in layout(filled, demo[1], "").missing] == [(CE, (1, 2)), (ISDA, (2,))]


def test_cell_whose_runs_all_diverged_is_not_called_not_run(demo, cells, diverge, there):
    for run in cells[1]:
        diverge(run)
    filled = aggregate(*demo, there())
    assert format_value(filled.cells[ROW, ISDA]) == "3 of 3 diverged"
    assert [one.cell.column for one in layout(filled, demo[1], "").missing] == [CE]


def test_result_of_a_run_counts_before_the_record_that_it_diverged(cells, finish, diverge, there, tmp_path):
    finish(cells[0][0], 3.0)
    diverge(cells[0][0], path=tmp_path / "results/demo/cell/0.json")
    index = there()
    assert list(index.records) == [cells[0][0].run_id]
    assert (index.diverged, index.problems) == ({}, [])


@pytest.mark.parametrize(
    ("changed", "token"),
    [
        ({"epoch": 0}, "epoch"),
        ({"segments": []}, "segments"),
        ({"request": {}}, "request"),
        ({"run_id": "x"}, "it is of x"),
    ],
)
def test_record_that_cannot_be_is_named_and_passed_over(cells, diverge, there, changed, token):
    path = diverge(cells[0][0])
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    index = there()
    assert index.diverged == {}
    (problem,) = index.problems
    assert str(path) in problem
    assert token in problem


def test_record_with_other_settings_than_its_name_is_named(cells, diverge, there):
    path = diverge(cells[0][0])
    body = json.loads(path.read_text())
    body["request"]["recipe"]["lr"] = 7
    path.write_text(json.dumps(body))
    index = there()
    assert index.diverged == {}
    assert cells[0][0].run_id in index.problems[0]


def test_precision_that_the_cell_does_not_accept_leaves_the_run_missing(demo, cells, diverge, there):
    path = diverge(cells[0][0])
    body = json.loads(path.read_text())
    body["segments"][0]["precision"] = "fp16"
    path.write_text(json.dumps(body))
    assert aggregate(*demo, there()).cells[ROW, CE].missing == (0, 1, 2)


def test_it_is_kept_under_results_and_found_there_alone(demo, cells, diverge, finish, tmp_path):
    diverge(cells[0][1])
    runs, results = tmp_path / "runs", tmp_path / "results"
    kept = export_results([demo], index_results(results_of_runs(runs)), results)
    ((_, target),) = kept.taken
    assert target == results / "demo/resnet-20-on-digits--ce/1.json"
    assert read_outcome(target).epoch == 29
    again = export_results([demo], index_results(results_in(tmp_path)), results)
    assert (again.taken, again.same) == ([], [target])
    index = index_results(results_on_disk(tmp_path / "nowhere", results))
    filled = aggregate(*demo, index)
    assert list(filled.cells[ROW, CE].diverged) == [1]
    assert filled.problems == ()
    finish(cells[0][1], 3.0)
    kept = export_results([demo], index_results(results_of_runs(runs)), results)
    assert "overwrite=true" in kept.passed_over[0]


def test_it_is_taken_from_elsewhere_and_a_stranger_named(demo, cells, diverge, tmp_path):
    diverge(cells[0][1], path=tmp_path / "heap/a.json")
    heap = index_results(results_in(tmp_path / "heap"))
    assert len(export_results([demo], heap, tmp_path / "results").taken) == 1
    kept = export_results([], heap, tmp_path / "results")
    (problem,) = runs_of_no_cell(kept, heap, "table=demo")
    assert cells[0][1].run_id in problem


def test_it_is_found_in_the_folder_of_a_run_anywhere(cells, diverge, tmp_path):
    path = diverge(cells[0][1], path=tmp_path / "heap/deep/run/diverged.json")
    path.with_name("config.yaml").touch()
    path.with_name("ended.json").write_text("{}")
    index = index_results(results_in(tmp_path / "heap"))
    assert (list(index.diverged), index.problems) == ([cells[0][1].run_id], [])


def test_one_that_differs_from_its_cell_stands_in_the_reduced_table(demo, finish, diverge, there, tmp_path):
    plan = plan_runs(demo[0], compose, ("recipe.epochs=4",))
    ce, isda = plan.values()
    for run in (*ce, *isda[:2]):
        finish(run, 9.0, 5.0 if run in ce else 4.0)
    diverge(isda[2])
    filled = aggregate(*demo, there())
    assert [cell.has_run for cell in filled.cells.values()] == [False, False]
    (beside,) = filled.reduced
    shown = beside.filled.cells[ROW, ISDA]
    assert (list(shown.diverged), shown.difference) == ([2], None)
    (laid_out,) = layout(filled, demo[1], "").reduced
    assert "1 diverged" in entries(laid_out)[0].entries[1].text
    assert not entries(laid_out)[0].entries[1].bold
    assert any(note.startswith("Diverged:") for note in laid_out.notes)


def test_reduced_runs_that_all_diverged_are_shown(demo, diverge, there):
    diverge(next(iter(plan_runs(demo[0], compose, ("recipe.epochs=4",)).values()))[0])
    (laid_out,) = layout(aggregate(*demo, there()), demo[1], "").reduced
    assert entries(laid_out)[0].entries[0].text == "1 of 1 diverged"


def test_it_is_not_drawn_as_unfinished(demo, cells, diverge, there, tmp_path):
    for run in cells[0]:
        path = diverge(run)
        path.with_name("metrics.jsonl").write_text(json.dumps(as_json(EPOCH)) + "\n")
    filled = aggregate(*demo, there())
    assert panels(filled, demo[1], tmp_path / "runs") == {}


def test_sweep_does_not_repeat_a_kept_one_and_status_names_it(demo, cells, diverge, finish, tmp_path, capfd):
    for number, (column, runs) in enumerate(zip(("ce", "isda"), cells, strict=True)):
        for run in runs:
            path = tmp_path / f"results/demo/resnet-20-on-digits--{column}/{run.seed}.json"
            (diverge(run, path=path) if number and run.seed == 2 else finish(run, 3.0, path=path))
    options = SweepOptions("demo", runs_dir=str(tmp_path / "runs"), results_dir=str(tmp_path / "results"))
    (tmp_path / "runs").mkdir()
    assert sweep_here(options, compose) == 0
    assert "already done, diverged in epoch 29" in capfd.readouterr().out
    said = list(status(options, compose))
    assert said[0].endswith("; 1 of these diverged")
    assert "done 2 of 3; seed 2: diverged in epoch 29" in "\n".join(said)


@pytest.fixture
def search(tmp_path, finish, diverge, there):
    """Return ``search(diverged)``, a finished search in which seed 1 of the named values diverged."""

    def make(*diverged):
        table = load_search(tmp_path, ["0.5", "1"])
        plan = plan_runs(table, compose)
        for cell, (first, second) in plan.items():
            finish(first, 1.0 if cell.column == ("1",) else 2.0)
            diverge(second) if cell.column[0] in diverged else finish(second, 2.0)
        return aggregate(table, plan, there())

    return make


def test_search_proposes_no_value_of_which_a_run_diverged(search, load_script):
    (entry,) = load_script("lambda_0").proposed(search("1"))
    assert "value: 0.5" in entry
    assert "test error 2.00% at 0.5, diverged at 1" in entry


def test_search_proposes_from_the_cells_that_it_has(search, load_script):
    filled = search()
    filled = replace(filled, cells={key: cell for key, cell in filled.cells.items() if key[1] == ("0.5",)})
    (entry,) = load_script("lambda_0").proposed(filled)
    assert "value: 0.5" in entry


def test_search_all_of_whose_values_diverged_proposes_none(search, load_script):
    (entry,) = load_script("lambda_0").proposed(search("0.5", "1"))
    assert entry == "# Digits: runs of every value diverged"


def test_figure_of_a_search_says_it_below_the_value(search):
    (axes,) = sensitivity_figure(search("1")).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.5\n ", "1\n1 of 2 diverged"]


def test_tick_tells_runs_that_diverged_from_those_that_are_missing(demo, cells, finish, diverge, there):
    finish(cells[0][0], 3.0)
    diverge(cells[0][1])
    assert _runs(aggregate(*demo, there()).cells[ROW, CE]) == "n = 1 of 3, 1 of 3 diverged"


def test_old_record_is_deleted_and_anything_else_of_its_name_set_aside(cells, diverge, tmp_path):
    path = diverge(cells[0][0])
    clear_divergence(path)
    assert list(path.parent.iterdir()) == []
    for make in (path.mkdir, lambda: path.write_text("notes"), lambda: path.symlink_to("nowhere")):
        make()
        clear_divergence(path)
        assert not os.path.lexists(path)
        (aside,) = path.parent.iterdir()
        assert "foreign" in aside.name
        aside.rmdir() if aside.is_dir() else aside.unlink()
    clear_divergence(path)


def test_import_of_a_folder_with_nothing_else_is_no_error(cells, diverge, tmp_path, load_script, capsys):
    diverge(cells[0][1], path=tmp_path / "heap/a.json")
    load_script("tables").main(
        ["import", f"from={tmp_path / 'heap'}", "table=demo", f"results_dir={tmp_path / 'results'}"]
    )
    assert "1 new or changed" in capsys.readouterr().out
