"""What the trackers write that need no account."""

import io
import json

import pytest
from wandb_runs import SEGMENT, epoch, result

from isda_repro.tracking import JsonLines, Progress


def test_json_lines_are_on_disk_at_once_and_hold_no_result(tmp_path):
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.log(SEGMENT)
    tracker.log(epoch(1, 20.0))
    tracker.log(result([epoch(1, 20.0)]))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["segment", "epoch"]
    with pytest.raises(ValueError, match="JSON compliant"):
        tracker.log(epoch(2, float("nan")))
    tracker.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_prints_plain_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr("isda_repro.tracking.progress.LINE_SECONDS", 0.0)
    stream = io.StringIO()
    bar = Progress(epochs=2, images_per_epoch=100, stream=stream)
    bar.advance(50, 1, lambda: (1.25, 40.0))
    bar.log(epoch(1, 20.0))
    bar.log({**epoch(2, 10.0), "test_top5_error": 1.25})
    bar.close()
    within, ended, last = stream.getvalue().splitlines()
    assert within.startswith("epoch 1/2 at  50%: loss 1.250, error 40.00%")
    assert within.endswith("left")
    assert "\r" not in stream.getvalue()
    assert "test error  20.00%" in ended
    assert ended.endswith("50 images/s  0:03 left")
    assert "top-5" not in ended
    assert "test error  10.00% top-5   1.25%  " in last


def test_progress_does_not_look_at_the_device_more_than_it_must():
    bar = Progress(epochs=2, images_per_epoch=100, stream=io.StringIO())
    bar.advance(50, 1, lambda: pytest.fail("looked"))
    bar.close()


def test_progress_draws_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr("isda_repro.tracking.progress.BAR_SECONDS", 0.0)
    stream = Terminal()
    bar = Progress(epochs=2, images_per_epoch=100, stream=stream)
    for _ in range(3):
        bar.advance(50, 1, lambda: (1.25, 40.0))
    bar._bar.refresh()
    bar.close()
    assert "epoch 1/2" in stream.getvalue()
    assert "loss 1.250, error 40.00%" in stream.getvalue()
    assert "images/s" in stream.getvalue()
