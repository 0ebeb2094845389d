"""How far a table is, cell by cell."""

import pytest

from isda_repro.report.progress import petaflop_of, progress_of


@pytest.fixture
def progress(gathered, tmp_path):
    def of():
        (shown,) = gathered(tmp_path).tables
        return progress_of(shown, tmp_path / "runs")

    return of


def test_nothing_has_run(progress):
    table = progress()
    assert (table.done, table.wanted, table.begun) == (0, 18, 0)
    assert [cell.state for cell in table.cells] == ["not run"] * 6
    assert table.is_empty
    assert table.left.startswith("18 runs")


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


def test_a_cell_with_shorter_runs_alone_is_reduced(progress, composed, leave, finished, tmp_path):
    from omegaconf import OmegaConf

    from isda_repro.tables.plan import Run

    cfg = composed(["dataset=digits", "model=resnet8", "loss=ce", "recipe.epochs=12"])
    short = Run(0, cfg.run_id, OmegaConf.to_container(cfg))
    errors = finished(short).curves["test_error"][:12]
    curves = {name: values[:12] for name, values in finished(short).curves.items()}
    leave(
        tmp_path, short, epochs=12, curves=curves, test_error_final=errors[-1], test_error_best=min(errors),
        test_error_last10=sum(errors[-10:]) / 10,
    )  # fmt: skip
    table = progress()
    assert [cell.state for cell in table.cells if cell.name == "ResNet-8, CE"] == ["reduced"]
    assert table.done == 0


def test_the_cost_of_what_is_left_falls_with_each_run(progress, runs, leave, tmp_path):
    before = progress()
    leave(tmp_path, runs["ResNet-32", "CE", 0])
    after = progress()
    assert after.left.startswith("17 runs")
    cost = petaflop_of([runs["ResNet-32", "CE", 0]])
    assert cost > 0
    assert before.petaflop_left - after.petaflop_left == pytest.approx(cost)
