"""The result of a finished run."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from isda_repro.losses import CrossEntropy, ISDALoss
from isda_repro.runs.records import MOST_LINE_BYTES, EpochRecord, as_json
from isda_repro.training.run import curves_of
from isda_repro.training.running_metrics import Stopwatch, covariance_summary, total_timing

EPOCH = EpochRecord(
    epoch=1, step=4, lr=0.1, train_loss=1.0, train_error=30.0, test_loss=0.9, test_error=20.0, test_top5_error=2.0,
    timing={},
)  # fmt: skip


@pytest.mark.parametrize(
    ("top5", "curve"), [([2.0, 1.0], [2.0, 1.0]), ([None, 1.0], None), ([None, None], None), ([0.0, 0.0], [0.0, 0.0])]
)
def test_curve_of_the_top_5_error_is_of_all_epochs_or_not_there(top5, curve):
    records = [replace(EPOCH, test_error=20.0 - i, test_top5_error=value) for i, value in enumerate(top5)]
    curves = curves_of(records)
    assert curves.pop("test_top5_error", None) == curve
    expected = {"test_loss": 0.9, "train_error": 30.0, "train_loss": 1.0, "lr": 0.1}
    assert curves == {"test_error": [20.0, 19.0], **{name: [value] * 2 for name, value in expected.items()}}


FIGURES = {"ratio": 0.5, "added": 1.0, "margin": 2.0, "trace": 3.0, "effective_rank": 4.0, "samples": 5.0}


@pytest.mark.parametrize(
    ("of_epochs", "kept"),
    [
        ([FIGURES, {**FIGURES, "class_trace": [1.0]}], ["added", "effective_rank", "margin", "ratio", "trace"]),
        ([{"trace": 3.0}, FIGURES], ["trace"]),
        ([None, FIGURES], []),
        ([None, None], []),
    ],
)
def test_curves_of_covariances_are_of_all_epochs_or_not_there(of_epochs, kept):
    curves = curves_of([replace(EPOCH, covariances=figures) for figures in of_epochs])
    found = {name: values for name, values in curves.items() if name.startswith("covariances/")}
    assert found == {f"covariances/{name}": [FIGURES[name]] * 2 for name in kept}


@pytest.mark.parametrize(("classes", "has_lists"), [(4096, True), (4097, False)])
def test_summary_in_a_record_has_six_digits_and_no_lists_too_long_for_a_line(classes, has_lists):
    criterion, head = ISDALoss(classes, 1, covariance="diagonal"), nn.Linear(1, classes)
    features = torch.tensor([[1.0], [2.0]]) / 3
    criterion(features, head(features), torch.tensor([1, 1]), head=head, progress=1.0)
    found = covariance_summary(criterion, head, 1.0)
    assert found["trace"] == 0.0277778
    assert ("class_trace" in found) == has_lists
    record = replace(EPOCH, covariances=found)
    line = json.dumps(as_json(record))
    assert len(line) < MOST_LINE_BYTES
    assert EpochRecord.from_json(json.loads(line)) == record
    assert covariance_summary(CrossEntropy(classes, 1), head, 1.0) is None


def test_timing_of_a_run_is_summed_and_its_memory_is_the_largest():
    timings = [
        {"train": 2.0, "evaluation": 1.0, "images_per_s": 50.0, "peak_memory_mib": 7.0},
        {"train": 3.0, "evaluation": 0.5, "images_per_s": 40.0, "peak_memory_mib": 6.0},
    ]
    assert total_timing([replace(EPOCH, timing=timing) for timing in timings], 100) == {
        "train": 5.0,
        "evaluation": 1.5,
        "images_per_s": 40.0,
        "peak_memory_mib": 7.0,
    }


def test_stopwatch_adds_up_and_goes_on(monkeypatch):
    now = iter([0, 2, 5, 9, 10, 11])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    first, second = Stopwatch(torch.device("cpu")), Stopwatch(torch.device("cpu"))
    with first.host("train"):
        pass
    with first.device("train"):
        pass
    second.go_on_from(first.so_far())
    with second.host("train"):
        pass
    assert first.seconds() == {"train": 6}
    assert first.seconds() == {}
    assert second.seconds() == {"train": 7}
