"""``scripts/calibration.py`` on the finished runs of a table."""

from dataclasses import replace

import pytest

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.evaluation import load_finished_run, predict_test
from isda_repro.evaluation.table_calibration import (
    TEMPERATURES,
    CalibrationRecord,
    _figure,
    markdown,
    read_records,
    write_records,
)
from isda_repro.evaluation.temperature import scale
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.records import RecordError
from isda_repro.training.run import run

TABLE = """\
title: digits
metric: test_error_final
baseline: CE
seeds: [0, 1]
set: [model=resnet8, tracking=none, recipe.epochs=1, dataset.train_limit=200, dataset.test_limit=90]
rows: [{digits: dataset=digits}]
columns: [{CE: loss=ce, ISDA: loss=isda}]
"""
RECORD = CalibrationRecord(
    run_id="a", seed=0, evaluated_on="test", images=90, error=20.0, loss=1.5, calibration_error=12.0,
    temperatures=[2.0, 3.0], scaled_loss=0.75, scaled_calibration_error=2.0, losses=[1.0] * len(TEMPERATURES),
    hardware="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the file of a table, its plan, and the folder of its runs, of which the last is missing."""
    place = tmp_path_factory.mktemp("calibration")
    (place / "own.yaml").write_text(TABLE)
    table = load_table(str(place / "own.yaml"))
    runs = [one for of_cell in plan_runs(table, compose).values() for one in of_cell]
    for one in runs[:-1]:
        cfg = one.config
        cfg.runs_dir = str(place / "runs")
        run(cfg)
    return table, place


@pytest.fixture
def main(load_script, trained):
    """Return the program with the table and its runs, which takes the folder of output=."""
    _, place = trained
    arguments = [f"table={place / 'own.yaml'}", f"runs_dir={place / 'runs'}", "device=cpu"]
    return lambda output, **changed: load_script("calibration").main(
        [*arguments, *(f"{key}={value}" for key, value in changed.items()), f"output={output}"]
    )


def test_measures_of_a_table_are_those_of_its_runs(main, trained, tmp_path, capsys):
    _, place = trained
    main(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["own.json", "own.md", "own.png", "own.svg"]
    said = capsys.readouterr().out
    assert "3 runs measured, 0 known before" in said
    assert "| digits, ISDA | 1 of 2 |" in said
    assert "| digits, ISDA minus CE | 1 pair |" in said
    assert str(place) not in (tmp_path / "own.md").read_text()
    records = read_records(tmp_path / "own.json")
    for run_id, record in records.items():
        classifier = load_finished_run(place / "runs" / run_id, "cpu")
        predictions = predict_test(classifier)
        scaled = scale(predictions.logits, predictions.targets)
        assert (record.loss, record.error) == predictions.evaluation[:2]
        assert record.temperatures == list(scaled.temperatures)
        assert record.scaled_loss == scaled.loss
        assert record.losses[TEMPERATURES.index(1.0)] == pytest.approx(record.loss)
        assert min(record.losses) < record.loss or record.temperatures == pytest.approx([1, 1], abs=0.1)
    assert len(records) == 3


def test_measured_runs_are_kept_and_not_evaluated_again(main, trained, tmp_path, capsys):
    table, _ = trained
    first = next(iter(plan_runs(table, compose).values()))[0]
    write_records(tmp_path / "own.json", {first.run_id: replace(RECORD, run_id=first.run_id)})
    main(tmp_path)
    assert "2 runs measured, 1 known before" in capsys.readouterr().out
    assert read_records(tmp_path / "own.json")[first.run_id].loss == 1.5
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    main(tmp_path, runs_dir=tmp_path / "nowhere")  # the checkpoints need not be there any more
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_table_without_a_trained_run_is_an_error(main, tmp_path):
    with pytest.raises(UserError, match=r"no run of table=own has finished in .*nowhere"):
        main(tmp_path / "output", runs_dir=tmp_path / "nowhere")
    assert not list((tmp_path / "output").iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('{"made_by": "isda_repro", "runs": [{}]}', "kind"),
        ('{"made_by": "isda_repro"}', "no 'runs'"),
        ('{"made_by": "isda_repro", "runs": 7}', "int"),
        ('{"made_by": "isda_repro"', "not JSON"),
        ("[]", "was not written by this program"),
    ],
)
def test_damaged_file_of_measures_is_named_and_kept(main, tmp_path, change, said):
    (tmp_path / "own.json").write_text(change)
    with pytest.raises(UserError, match=rf"own\.json.*{said}"):
        main(tmp_path)
    assert (tmp_path / "own.json").read_text() == change


@pytest.mark.parametrize("change", [{"temperatures": [1.0]}, {"losses": [1.0]}, {"loss": -1.0}, {"error": 101.0}])
def test_record_that_cannot_be_is_refused(tmp_path, change):
    write_records(tmp_path / "a.json", {"a": replace(RECORD, **change)})
    with pytest.raises(RecordError, match=f"its {next(iter(change))}"):
        read_records(tmp_path / "a.json")


def measured(trained):
    """Return records of all runs of the table, whose numbers are known."""
    table, _ = trained
    plan = plan_runs(table, compose)
    records = {}
    for cell, runs in plan.items():
        gain = 0.25 if cell.column == ("ISDA",) else 0.0
        for one in runs:
            loss = 1.5 - gain * (1 + one.seed)
            records[one.run_id] = replace(RECORD, run_id=one.run_id, seed=one.seed, loss=loss)
    return table, plan, records


def test_table_by_hand(trained):
    header, _, *lines = markdown(*measured(trained)).splitlines()
    cells = [[one.strip() for one in line.strip("|").split("|")] for line in (header, *lines)]
    column = cells[0].index("NLL")
    assert [line[0] for line in cells[1:]] == ["digits, CE", "digits, ISDA", "digits, ISDA minus CE"]
    assert [line[1] for line in cells[1:]] == ["2", "2", "2 pairs"]
    # differences of 0.25 and 0.5: half the interval is t(0.975, 1) * 0.1768 / sqrt(2) = 12.706 * 0.125
    expected = ["1.500 ± 0.000", "1.125 ± 0.177", "\N{MINUS SIGN}0.375 [\N{MINUS SIGN}1.963, 1.213] open"]
    assert [line[column] for line in cells[1:]] == expected
    assert [line[cells[0].index("temperature")] for line in cells[1:]] == ["2.50 ± 0.00", "2.50 ± 0.00", ""]


def test_figure_has_a_line_for_each_cell_with_its_lowest_loss_marked(trained):
    _, plan, records = measured(trained)
    for record in records.values():
        record.losses[7] = 0.5
    (axes,) = _figure(plan, records).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == len(TEMPERATURES)]
    assert [line.get_label() for line in lines] == ["CE (n = 2)", "ISDA (n = 2)"]
    assert [line.get_markevery() for line in lines] == [[7], [7]]
    assert axes.get_title() == "digits"
