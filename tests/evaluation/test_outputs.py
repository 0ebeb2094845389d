"""CSV files and pictures of an evaluation."""

import csv
import io
import json

import numpy as np
import pytest
import torch

from isda_repro.data import Source, Split
from isda_repro.errors import UserError
from isda_repro.evaluation import Predictions, class_errors
from isda_repro.evaluation.measures import calibrate
from isda_repro.evaluation.outputs import Measured, confusion_csv, per_class_csv, predictions_csv
from isda_repro.evaluation.pictures import _calibration_figure, _confusion_figure, draw_confusion
from isda_repro.evaluation.temperature import scale
from isda_repro.files import write_output

NAMES = ["=1+1", 'a "b", c', "new\nline", "ant"]
SHOWN = ["'=1+1", 'a "b", c', "new\\nline", "ant"]
CONFUSION = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [2, 3, 5, 0], [0, 0, 0, 1]])
PREDICTIONS = Predictions(
    images=["@x.jpg", "b.jpg"],
    predicted=torch.tensor([1, 0]),
    likeliest=torch.tensor([[1, 0], [0, 3]]),
    probabilities=torch.tensor([[0.75, 0.25], [0.5, 0.125]], dtype=torch.float64),
    targets=torch.tensor([0, 2]),
    logits=torch.tensor([[2.0, 3.0, 0.0, 0.0], [3.0, 0.0, 0.0, 2.0]]),
    num_classes=4,
    unreadable=0,
)


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def test_confusion_has_a_line_and_a_column_for_each_class():
    (corner, *columns), *lines = rows(confusion_csv(CONFUSION, NAMES))
    assert columns == SHOWN == [line[0] for line in lines]
    assert "true" in corner
    np.testing.assert_array_equal(np.array([line[1:] for line in lines], dtype=int), CONFUSION)


def test_errors_of_classes():
    header, *lines = rows(per_class_csv(class_errors(CONFUSION), NAMES))
    assert header[:4] == ["class", "class_name", "images", "error_of_class"]
    assert lines[:2] == [["0", "'=1+1", "4", "25.0", SHOWN[1], "1"], ["1", SHOWN[1], "0", "", "", "0"]]


def test_predictions():
    header, *lines = rows(predictions_csv(PREDICTIONS, NAMES))
    assert header[-2:] == ["class_2", "probability_2"]
    assert lines[0] == ["'@x.jpg", "'=1+1", SHOWN[1], "0.75", "'=1+1", "0.25"]
    assert lines[1] == ["b.jpg", "new\\nline", "'=1+1", "0.5", "ant", "0.125"]


@pytest.mark.parametrize(("labels", "groups"), [([0, 1, 2, 3], set()), ([0, 0, 1, 2, 3], {"few_shot_error"})])
def test_summary_is_json_and_has_errors_of_groups_of_long_tailed_data_alone(labels, groups):
    split = Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    measured = Measured(PREDICTIONS, Source("x", split, split, 4, tuple(NAMES)))
    summary = json.loads(json.dumps(measured.summary()), parse_constant=pytest.fail)
    assert {key for key in summary if key.endswith("shot_error")} == groups
    assert sum(one["images"] for one in summary["calibration"]) == 2
    found = scale(PREDICTIONS.logits, PREDICTIONS.targets)
    assert summary["temperature_scaling"] == {
        "temperatures": list(found.temperatures),
        "negative_log_likelihood": found.loss,
        "expected_calibration_error": found.calibration.expected_error,
    }
    assert f"loss {found.loss:.4f}, expected calibration error {found.calibration.expected_error:.2f}%" in "\n".join(
        measured.lines()
    )
    for one in summary["calibration"]:
        assert (one["accuracy"] is None) == (one["mean_probability"] is None) == (one["images"] == 0)


@pytest.mark.parametrize(
    "text",
    [
        confusion_csv(CONFUSION, NAMES),
        per_class_csv(class_errors(CONFUSION), NAMES),
        predictions_csv(PREDICTIONS, NAMES),
    ],
)
def test_files_are_written_again_and_others_are_kept(tmp_path, text):
    for _ in range(2):
        write_output(tmp_path / "a.csv", text)
    (tmp_path / "a.csv").write_text("image,class\n")
    with pytest.raises(UserError, match=r"a\.csv"):
        write_output(tmp_path / "a.csv", text)


def labels(figure):
    return [one.get_text() for one in figure.axes[0].get_yticklabels()]


def test_picture_of_the_confusion_matrix_names_classes_that_have_room(tmp_path):
    figure = _confusion_figure(CONFUSION, ["ant", "b" * 99, "\U0001f41d", "$x$"])
    assert labels(figure) == ["ant", "b" * 23 + "…", "2", "$x$"]
    assert [one.get_text() for one in figure.axes[0].texts] == ["75", "25", "20", "30", "50", "100"]
    many = _confusion_figure(np.eye(300, dtype=int), [f"class {one}" for one in range(300)])
    assert not any("class" in one for one in labels(many))
    assert len(many.axes[0].texts) == 0
    shown = many.axes[0].images[0].get_array()
    assert shown.shape == (300, 300)
    assert shown.max() == 100
    paths = draw_confusion(tmp_path / "a.png", CONFUSION, NAMES)
    assert all(path.stat().st_size > 1000 for path in paths)


def test_picture_of_the_calibration_shows_all_bins():
    found = calibrate(np.array([0.1, 0.3, 0.4, 0.9]), np.array([True, False, True, True]), bins=2)
    above, below = _calibration_figure(found).axes
    assert [bar.get_height() for bar in above.patches] == pytest.approx([200 / 3, 100])
    assert [bar.get_height() for bar in below.patches] == [75, 25]
