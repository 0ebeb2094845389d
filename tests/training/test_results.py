"""The result of a finished run."""

from dataclasses import replace

import pytest
import torch

from isda_repro.runs.records import EpochRecord
from isda_repro.training.run import curves_of
from isda_repro.training.running_metrics import Stopwatch
from isda_repro.training.session import total_timing

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
