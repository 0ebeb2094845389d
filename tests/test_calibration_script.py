"""``scripts/calibration.py`` on the finished runs of a table."""

import shutil
from dataclasses import replace

import pytest
import torch.nn.functional as F

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.evaluation import calibrate, load_finished_run, predict_test
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
    run_id="a", evaluated_on="test", images=90, error=20.0, loss=1.5, calibration_error=12.0,
    temperatures=[2.0, 3.0], scaled_loss=0.75, scaled_calibration_error=3.0, losses=[1.0] * len(TEMPERATURES),
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


def measures_by_hand(folder):
    """Return what a record of this run must have."""
    classifier = load_finished_run(folder, "cpu")
    predictions = predict_test(classifier)
    probabilities = predictions.logits.double().softmax(1).max(1)
    right = (probabilities.indices == predictions.targets).numpy()
    scaled = scale(predictions.logits, predictions.targets)
    return {
        "run_id": folder.name,
        "evaluated_on": classifier.source.evaluated_on,
        "images": len(classifier.source.test),
        "error": pytest.approx(100 - 100 * right.mean()),
        "loss": pytest.approx(F.cross_entropy(predictions.logits.double(), predictions.targets).item()),
        "calibration_error": pytest.approx(calibrate(probabilities.values.numpy(), right).expected_error),
        "temperatures": list(scaled.temperatures),
        "scaled_loss": scaled.loss,
        "scaled_calibration_error": scaled.calibration.expected_error,
    }


def test_measures_of_a_table_are_those_of_its_runs(main, trained, tmp_path, capsys):
    _, place = trained
    main(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["own.json", "own.md", "own.png", "own.svg"]
    said = capsys.readouterr().out
    assert "3 runs measured, 0 known before" in said
    assert "| digits, ISDA | 1 of 2 |" in said
    assert "| digits, ISDA minus CE | 1 pair |" in said
    assert "Evaluated on the test images in fp32" in (tmp_path / "own.md").read_text()
    records = read_records(tmp_path / "own.json")
    assert len(records) == 3
    for run_id, record in records.items():
        expected = measures_by_hand(place / "runs" / run_id)
        assert {name: getattr(record, name) for name in expected} == expected
        assert record.losses[TEMPERATURES.index(1.0)] == pytest.approx(record.loss)


def test_runs_with_a_hold_out_are_measured_on_it(load_script, tmp_path, capsys):
    (tmp_path / "held.yaml").write_text(TABLE.replace("dataset.test_limit=90", "dataset.holdout=60"))
    plan = plan_runs(load_table(str(tmp_path / "held.yaml")), compose)
    cfg = next(iter(plan.values()))[0].config
    cfg.runs_dir = str(tmp_path / "runs")
    run(cfg)
    arguments = [f"table={tmp_path / 'held.yaml'}", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path}", "device=cpu"]
    load_script("calibration").main(arguments)
    (record,) = read_records(tmp_path / "held.json").values()
    expected = measures_by_hand(tmp_path / "runs" / cfg.run_id)
    assert {name: getattr(record, name) for name in expected} == expected
    assert (record.evaluated_on, record.images) == ("holdout", 60)
    assert "Evaluated on the holdout images" in (tmp_path / "held.md").read_text()


def test_run_without_an_error_in_a_half_is_left_out(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("isda_repro.evaluation.outputs.scale", lambda logits, targets: None)
    with pytest.raises(UserError, match="no run of table=own"):
        main(tmp_path)
    assert capsys.readouterr().out.count("left out, because one half of its images has no error") == 3


def test_run_that_cannot_be_read_is_named_and_the_others_are_measured(main, trained, tmp_path, capsys):
    table, place = trained
    first = next(iter(plan_runs(table, compose).values()))[0].run_id
    shutil.copytree(place / "runs", tmp_path / "runs")
    (tmp_path / "runs" / first / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="1 run"):
        main(tmp_path, runs_dir=tmp_path / "runs")
    assert f"{first} is not measured" in capsys.readouterr().err
    assert len(read_records(tmp_path / "own.json")) == 2
    assert "| digits, ISDA | 1 of 2 |" in (tmp_path / "own.md").read_text()


def test_measured_runs_are_kept_and_not_evaluated_again(main, trained, tmp_path, capsys):
    table, _ = trained
    first = next(iter(plan_runs(table, compose).values()))[0]
    other = replace(RECORD, run_id="of other settings", hardware="an abacus")
    write_records(tmp_path / "own.json", {first.run_id: replace(RECORD, run_id=first.run_id), other.run_id: other})
    main(tmp_path)
    assert "2 runs measured, 1 known before" in capsys.readouterr().out
    kept = read_records(tmp_path / "own.json")
    assert kept[first.run_id].loss == 1.5
    assert kept[other.run_id] == other
    assert other.hardware not in (tmp_path / "own.md").read_text()
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    main(tmp_path, runs_dir=tmp_path / "nowhere")  # the checkpoints need not be there any more
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


@pytest.mark.parametrize("others", [{}, {"of other settings": RECORD}])
def test_table_without_a_trained_run_is_an_error(main, tmp_path, others):
    if others:
        write_records(tmp_path / "own.json", others)
    with pytest.raises(UserError, match=r"no run of table=own has finished in .*nowhere"):
        main(tmp_path, runs_dir=tmp_path / "nowhere")
    assert [one.name for one in tmp_path.iterdir()] == (["own.json"] if others else [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('{"made_by": "isda_repro", "runs": [{}]}', "kind"),
        ('{"made_by": "isda_repro"}', "no list of runs"),
        ('{"made_by": "isda_repro", "runs": 7}', "no list of runs"),
        ('["made by isda_repro"]', "no list of runs"),
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


def recorded(name, gains, seeds=None):
    """Return a table, its plan, and records of its runs, whose loss is 1.5 less (1 + seed) times the gain of the cell.

    ``gains`` has a gain for some names of cells, ``seeds`` the seeds of some of them.
    """
    table = load_table(name)
    plan = plan_runs(table, compose)
    records = {
        one.run_id: replace(RECORD, run_id=one.run_id, loss=1.5 - gains[cell.name] * (1 + one.seed), losses=[1.0] * 33)
        for cell, runs in plan.items()
        if cell.name in gains
        for one in runs
        if one.seed in (seeds or {}).get(cell.name, cell.seeds)
    }
    return table, plan, records


def cells(text):
    """Return the cells of a Markdown table, without the rule."""
    rows = [[one.strip() for one in line.strip("|").split("|")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def test_table_by_hand(trained):
    header, ce, isda, compared = cells(
        markdown(*recorded(str(trained[1] / "own.yaml"), {"digits, CE": 0.0, "digits, ISDA": 0.25}))
    )
    rest = ["12.00 ± 0.00", "2.50 ± 0.00", "0.750 ± 0.000", "3.00 ± 0.00"]
    assert header == ["", "n", "error (%)", "NLL", "ECE (%)", "temperature", "NLL, scaled", "ECE, scaled (%)"]
    assert ce == ["digits, CE", "2", "20.00 ± 0.00", "1.500 ± 0.000", *rest]
    assert isda == ["digits, ISDA", "2", "20.00 ± 0.00", "1.125 ± 0.177", *rest]
    # differences of 0.25 and 0.5: half the interval is t(0.975, 1) * 0.1768 / sqrt(2) = 12.706 * 0.125
    assert compared[:2] == ["digits, ISDA minus CE", "2 pairs"]
    assert compared[3] == "\N{MINUS SIGN}0.375 [\N{MINUS SIGN}1.963, 1.213] open"
    assert (compared[4], compared[5]) == ("0.00, no interval", "")


def test_metrics_of_the_same_runs_are_one_row_named_by_the_runs():
    """Four columns of long_tail are metrics of the same runs."""
    found = cells(markdown(*recorded("long_tail", {"CE, All classes": 0.0, "ISDA, All classes": 0.1})))
    assert [row[0] for row in found[1:]] == ["CE", "ISDA", "ISDA minus CE"]


def test_runs_without_two_seeds_in_common_are_called_unpaired():
    gains = {"CIFAR-10, CE": 0.0, "CIFAR-10, ISDA": 0.1}
    found = {
        tuple(seeds): cells(
            markdown(*recorded("small_resnet32", gains, {"CIFAR-10, ISDA": seeds, "CIFAR-10, CE": [0, 1, 2]}))
        )
        for seeds in ([2, 3], [1, 2])
    }
    assert found[2, 3][-1][:2] == ["CIFAR-10, ISDA minus CE", "unpaired"]
    assert found[1, 2][-1][:2] == ["CIFAR-10, ISDA minus CE", "2 pairs"]
    assert found[2, 3][2][1] == "2 of 8"


@pytest.mark.parametrize(
    ("name", "gains", "panels"),
    [
        (
            "small_resnet32",
            ["CIFAR-100, ISDA", "CIFAR-10, CE", "CIFAR-10, ISDA"],
            {"CIFAR-100": ["ISDA"], "CIFAR-10": ["CE", "ISDA"]},
        ),
        (
            "small_ablation",
            ["CE, CIFAR-100, 5,000 images", "ISDA, CIFAR-100, 5,000 images"],
            {"CIFAR-100, 5,000 images": ["CE", "ISDA"]},
        ),
        ("long_tail", ["CE, All classes", "ISDA, All classes"], {"": ["CE", "ISDA"]}),
    ],
)
def test_panels_and_lines_of_the_figure_are_those_of_the_table(name, gains, panels):
    """The look of a method is the same in each panel, and the lowest loss is marked."""
    table, plan, records = recorded(name, dict.fromkeys(gains, 0.0))
    for record in records.values():
        record.losses[7] = 0.5
    drawn = _figure(table, plan, records).axes
    found, colours = {}, {}
    for axes in drawn:
        if not axes.get_visible():
            continue
        lines = [line for line in axes.lines if len(line.get_xdata()) == len(TEMPERATURES)]
        found[axes.get_title()] = [line.get_label().partition(" (")[0] for line in lines]
        assert [line.get_markevery() for line in lines] == [[7]] * len(lines)
        assert axes.get_ylim()[1] == pytest.approx(1.1 * 1.5)
        for line in lines:
            colours.setdefault(line.get_label().partition(" (")[0], set()).add(line.get_color())
    assert found == panels
    assert all(len(of_method) == 1 for of_method in colours.values())
    assert len(set().union(*colours.values())) == len(colours)


def test_band_of_a_line_is_the_range_of_its_runs():
    table, plan, records = recorded("small_resnet32", {"CIFAR-10, CE": 0.0}, {"CIFAR-10, CE": [0, 1, 2]})
    for number, record in enumerate(records.values()):
        record.losses[:] = [1.0 + number] * len(TEMPERATURES)
    (axes,) = _figure(table, plan, records).axes
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 3.0)
    (line,) = (one for one in axes.lines if len(one.get_xdata()) == len(TEMPERATURES))
    assert set(line.get_ydata()) == {2.0}
