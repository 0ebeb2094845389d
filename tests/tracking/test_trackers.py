"""What the trackers write, and that W&B can fail without anybody being harmed."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isda_repro.tables.records import EpochRecord, SegmentRecord, as_json
from isda_repro.tracking import JsonLines, Progress, WandbTracker

TIMING = {"train": 2.0, "data_wait": 0.1, "criterion": 0.1, "evaluation": 1.0, "images_per_s": 50.0}
SEGMENT = as_json(
    SegmentRecord(
        step=0,
        device="cpu",
        hardware="x",
        precision="fp32",
        tf32=False,
        channels_last=True,
        compile=False,
        deterministic=False,
        world_size=1,
        threads=2,
        git_revision="0" * 40,
        git_clean=True,
    )
)
RESULT = {"kind": "result", "test_error_last10": 1.5, "run_id": "run-1", "timing": TIMING, "curves": {"lr": [0.1]}}


def epoch(number, error):
    return as_json(
        EpochRecord(
            epoch=number,
            step=number * 4,
            lr=0.1,
            train_loss=1.0,
            train_error=30.0,
            test_loss=0.9,
            test_error=error,
            timing=TIMING,
        )
    )


def test_json_lines_are_on_disk_at_once_and_hold_no_result(tmp_path):
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    tracker.log(SEGMENT)
    tracker.log(epoch(1, 20.0))
    tracker.log(RESULT)
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
    bar.close()
    within, ended = stream.getvalue().splitlines()
    assert within.startswith("epoch 1/2 at  50%: loss 1.250, error 40.00%")
    assert within.endswith("left")
    assert "\r" not in stream.getvalue()
    assert "test error  20.00%" in ended
    assert ended.endswith("50 images/s  0:03 left")


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


def wandb_tracker(folder, **changes):
    arguments = dict(mode="offline", project="p", entity=None, run_id="run-1", config={"seed": 0}, group="g")
    return WandbTracker(**{**arguments, **changes}, metrics_path=folder / "metrics.jsonl")


def test_an_offline_run_is_written_at_the_end_from_metrics_jsonl(tmp_path):
    lines = [SEGMENT, epoch(1, 20.0), epoch(2, 10.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tracker = wandb_tracker(tmp_path)
    for line in lines:
        tracker.log(line)
    assert not (tmp_path / "wandb").exists(), "nothing before the run has finished"
    torn = tmp_path / "wandb" / "offline-run-20260101_000000-run-1"  # of a process that died while it wrote
    torn.mkdir(parents=True)
    tracker.log(RESULT)
    tracker.close()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-run-1.wandb")
    command = Path(sys.executable).with_name("wandb")
    if not command.exists() and shutil.which("wandb") is None:
        pytest.skip("the wandb command is not installed")
    shown = subprocess.run(
        [str(command), "leet", "inspect", "--json", "--summary", str(written)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    assert "1.5" in shown.stdout
    assert "test_error_last10" in shown.stdout


def test_an_unfinished_offline_run_leaves_nothing(tmp_path):
    tracker = wandb_tracker(tmp_path)
    tracker.log(epoch(1, 20.0))
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_failing_wandb_is_one_line_and_training_goes_on(tmp_path, monkeypatch, capsys, mode):
    import wandb

    def refuse(**arguments):
        raise RuntimeError("no disk, no network, no luck")

    monkeypatch.setattr(wandb, "init", refuse)
    tracker = wandb_tracker(tmp_path, mode=mode)
    tracker.log(epoch(1, 20.0))
    tracker.log(RESULT)
    tracker.close()
    assert capsys.readouterr().err.splitlines() == [
        "warning: W&B is off for this run, training goes on: no disk, no network, no luck"
    ]
