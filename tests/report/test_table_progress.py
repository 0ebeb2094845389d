"""Progress of a table, cell by cell."""

import pytest

from isda_repro.report.table_progress import petaflop_of, progress_of


@pytest.fixture
def progress(gathered, tmp_path):
    def of():
        (shown,) = gathered(tmp_path).tables
        return progress_of(shown, tmp_path / "runs")

    return of


def test_a_table_without_results_is_empty_and_wants_all_of_its_runs(progress):
    table = progress()
    assert (table.done, table.wanted, table.begun) == (0, 18, 0)
    assert [cell.state for cell in table.cells] == ["not run"] * 6
    assert table.is_empty
    assert "18 " in table.left


def test_cells_and_runs_are_counted(progress, runs, leave, tmp_path):
    for seed in range(3):
        leave(tmp_path, runs["ResNet-20", "CE", seed])
    leave(tmp_path, runs["ResNet-20", "ISDA", 1])
    begun = tmp_path / "runs" / runs["ResNet-20", "ISDA", 2].run_id
    begun.mkdir()
    (begun / "metrics.jsonl").touch()
    table = progress()
    assert (table.done, table.wanted, table.begun) == (4, 18, 1)
    states = {cell.name: (cell.state, cell.done, cell.wanted) for cell in table.cells}
    assert states["ResNet-20, CE"] == ("done", 3, 3)
    assert states["ResNet-20, ISDA"] == ("partial", 1, 3)
    assert states["ResNet-8, CE"] == ("not run", 0, 3)
    assert [table.count(state) for state in ("done", "partial", "reduced", "not run")] == [1, 1, 0, 4]
    assert not table.is_empty


def test_runs_that_diverged_are_counted_apart_and_are_not_left(progress, runs, diverge, leave, tmp_path):
    before = progress()
    leave(tmp_path, runs["ResNet-20", "CE", 0])
    path = diverge(runs["ResNet-20", "CE", 1])
    path.with_name("metrics.jsonl").touch()
    for seed in range(3):
        diverge(runs["ResNet-20", "ISDA", seed])
    table = progress()
    assert (table.done, table.diverged, table.begun, table.wanted) == (1, 4, 0, 18)
    states = {cell.name: (cell.state, cell.done) for cell in table.cells}
    assert (states["ResNet-20, CE"], states["ResNet-20, ISDA"]) == (("partial", 1), ("diverged", 0))
    assert "13 " in table.left
    ended = [runs["ResNet-20", "CE", seed] for seed in (0, 1)] + [runs["ResNet-20", "ISDA", seed] for seed in range(3)]
    assert before.petaflop_left - table.petaflop_left == pytest.approx(petaflop_of(ended))


def test_a_cell_with_shorter_runs_alone_is_reduced(progress, shorter, tmp_path):
    shorter(tmp_path, "model=resnet8", "loss=ce")
    table = progress()
    assert [cell.state for cell in table.cells if cell.name == "ResNet-8, CE"] == ["reduced"]
    assert (table.done, table.is_empty) == (0, False)


def test_the_cost_of_what_is_left_falls_with_each_run(progress, runs, leave, tmp_path):
    before = progress()
    leave(tmp_path, runs["ResNet-32", "CE", 0])
    after = progress()
    assert "17 " in after.left
    cost = petaflop_of([runs["ResNet-32", "CE", 0]])
    assert cost > 0
    assert before.petaflop_left - after.petaflop_left == pytest.approx(cost)


def test_a_whole_table_has_nothing_left(progress, runs, leave, tmp_path):
    for run in runs.values():
        leave(tmp_path, run)
    table = progress()
    assert (table.done, table.begun, table.left, table.petaflop_left) == (18, 0, "", 0)
    assert {cell.state for cell in table.cells} == {"done"}
