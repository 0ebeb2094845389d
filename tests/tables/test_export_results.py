"""Results kept under results/: exported from runs/ or imported from elsewhere; nothing is replaced unless asked."""

import dataclasses
import math

import pytest

from isda_repro.runs.records import read_result
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_in, results_of_runs, results_on_disk
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.export_results import export_results, runs_of_no_cell

CE, ISDA = (("ResNet-20 on digits",), ("CE",)), (("ResNet-20 on digits",), ("ISDA",))
FIRST = "demo/resnet-20-on-digits--ce/0.json"


@pytest.fixture
def runs(demo):
    return [run for runs in demo[1].values() for run in runs]


@pytest.fixture
def exported(demo, tmp_path):
    """Return ``exported()``, which exports the results under tmp_path/runs."""

    def export(**options):
        return export_results(
            [demo], index_results(results_of_runs(tmp_path / "runs")), tmp_path / "results", **options
        )

    return export


def test_export_keeps_what_aggregation_then_finds_without_the_runs(demo, runs, finish, exported, tmp_path):
    source = finish(runs[0], 3.0)
    finish(runs[5], 2.0)
    bad = finish(runs[4], 2.0)
    bad.write_text("{")
    results = tmp_path / "results"
    kept = exported()
    assert kept.taken[0] == (str(source), results / FIRST)
    assert kept.taken[1][1] == results / "demo/resnet-20-on-digits--isda/2.json"
    assert len(kept.taken) == 2
    (problem,) = kept.passed_over
    assert str(bad) in problem
    assert (results / FIRST).read_bytes() == source.read_bytes(), "every number as it was"
    again = exported()
    assert (again.taken, len(again.same)) == ([], 2), "nothing changed, nothing is written"
    filled = aggregate(*demo, index_results(results_on_disk(tmp_path / "nowhere", results)))
    assert (filled.cells[CE].values, filled.cells[ISDA].values) == ({0: 3.0}, {2: 2.0})


def test_another_result_of_the_same_run_is_named_and_replaces_nothing_unasked(runs, finish, exported, tmp_path):
    finish(runs[0], 3.0)
    exported()
    source = finish(runs[0], 3.0, timing={"train": 99.0})
    target = tmp_path / "results" / FIRST
    before = target.read_bytes()
    kept = exported()
    assert kept.taken == []
    (problem,) = kept.passed_over
    assert all(token in problem for token in (str(source), str(target), "overwrite=true"))
    assert target.read_bytes() == before
    assert exported(overwrite=True).taken == [(str(source), target)]
    assert read_result(target).timing == {"train": 99.0}


@pytest.mark.parametrize("there", ["another run", "damaged"])
def test_what_else_is_there_stays_too(runs, finish, exported, tmp_path, there):
    finish(runs[0], 3.0)
    target = finish(runs[1], 4.0, path=tmp_path / "results" / FIRST)
    if there == "damaged":
        target.write_text("")
    before = target.read_bytes()
    (problem,) = exported().passed_over
    assert (str(target) if there == "damaged" else runs[1].run_id) in problem
    assert target.read_bytes() == before
    assert len(exported(overwrite=True).taken) == 1


def test_precision_that_the_cell_does_not_accept_is_not_kept(demo, runs, finish, tmp_path):
    table, plan = demo
    strict = {dataclasses.replace(cell, precisions=("fp32",)): runs for cell, runs in plan.items()}
    path = finish(runs[0], 3.0, segments=[{"precision": "bf16"}])
    kept = export_results([(table, strict)], index_results(results_of_runs(tmp_path / "runs")), tmp_path / "results")
    assert kept.taken == []
    (problem,) = kept.passed_over
    assert all(token in problem for token in (str(path), "bf16", "ResNet-20 on digits, CE"))


def test_results_from_elsewhere_are_taken_and_strangers_named(demo, runs, finish, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    taken = [
        finish(runs[0], 3.0, path=elsewhere / "0.json"),
        finish(runs[1], 3.0, path=elsewhere / "z/a/7.json"),
    ]
    stranger = finish(runs[5], 3.0, path=elsewhere / "y.json")
    (elsewhere / "broken.json").write_text("")
    table, plan = demo
    ce = {cell: runs for cell, runs in plan.items() if cell.column == ("CE",)}
    gathered = index_results(results_in(elsewhere))
    kept = export_results([(table, ce)], gathered, tmp_path / "results")
    assert [origin for origin, _ in kept.taken] == [str(path) for path in taken]
    (broken,), (strange,) = kept.passed_over, runs_of_no_cell(kept, gathered, "table=demo")
    assert f"{elsewhere}/broken.json" in broken
    assert all(token in strange for token in (str(stranger), runs[5].run_id, "table=demo"))


def test_file_that_goes_while_it_is_kept_stops_nobody(demo, runs, finish, tmp_path):
    gone = finish(runs[0], 3.0)
    finish(runs[1], 3.0)
    gathered = index_results(results_of_runs(tmp_path / "runs"))
    gone.unlink()
    kept = export_results([demo], gathered, tmp_path / "results")
    assert len(kept.taken) == 1
    (problem,) = kept.passed_over
    assert str(gone) in problem


def test_results_whose_code_is_in_no_revision_are_kept_with_a_warning(runs, finish, exported, tmp_path):
    clean = {"precision": "fp32", "git_revision": "a" * 40, "git_clean": True}
    changed, unknown = {**clean, "git_revision": "b" * 40, "git_clean": False}, {**clean, "git_revision": None}
    for run, segments in zip(runs, [[clean, clean], [clean, changed], [unknown, clean]], strict=False):
        finish(run, 3.0, segments=segments)
    kept = exported()
    assert len(kept.taken) == 3
    assert kept.unclean == [
        f"warning: {tmp_path}/results/demo/resnet-20-on-digits--ce/{seed}.json was trained by {code}: "
        "others cannot check out that code"
        for seed, code in [(1, "code that was changed after revision bbbbbbbbbb"), (2, "code of unknown revision")]
    ]
    assert not exported().unclean, "of what is kept already, it was said before"


def test_file_of_a_long_run_is_small(runs, finish):
    path = finish(runs[0], *[100 * math.exp(-epoch / 77) for epoch in range(300)])
    assert path.stat().st_size < 40_000


def test_runs_of_two_cells_that_show_two_numbers_of_them_are_kept_once(demo, runs, finish, tmp_path):
    table, plan = demo
    cell, its_runs = next(iter(plan.items()))
    both = {cell: its_runs, dataclasses.replace(cell, metric="test_error_best"): its_runs}
    finish(runs[0], 3.0)
    kept = export_results([(table, both)], index_results(results_of_runs(tmp_path / "runs")), tmp_path / "results")
    assert (len(kept.taken), kept.same, kept.passed_over) == (1, [], [])
