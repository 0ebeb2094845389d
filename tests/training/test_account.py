"""What a finished run is summed up in."""

from dataclasses import replace

import pytest

from isda_repro.tables.records import EpochRecord
from isda_repro.training.account import curves_of

EPOCH = EpochRecord(
    epoch=1, step=4, lr=0.1, train_loss=1.0, train_error=30.0, test_loss=0.9, test_error=20.0, test_top5_error=2.0,
    timing={},
)  # fmt: skip


@pytest.mark.parametrize(
    ("top5", "curve"), [([2.0, 1.0], [2.0, 1.0]), ([None, 1.0], None), ([None, None], None), ([0.0, 0.0], [0.0, 0.0])]
)
def test_a_curve_of_the_top_5_error_is_of_all_epochs_or_not_there(top5, curve):
    records = [replace(EPOCH, test_error=20.0 - i, test_top5_error=value) for i, value in enumerate(top5)]
    curves = curves_of(records)
    assert curves.get("test_top5_error") == curve
    assert curves["test_error"] == [20.0, 19.0]
    assert set(curves) - {"test_top5_error"} == {"test_error", "test_loss", "train_error", "train_loss", "lr"}
