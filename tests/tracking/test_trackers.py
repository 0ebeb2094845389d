"""Output of the trackers that need no account."""

import errno
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from wandb_runs import SEGMENT, epoch, result

from isda_repro.errors import UserError
from isda_repro.tracking import JsonLines, Progress
from isda_repro.tracking.progress_bar import duration

# ---------------------------------------------------------------------------------------------------------- JSON lines


def test_each_line_is_on_the_disk_when_log_returns_and_the_result_is_none(tmp_path, monkeypatch):
    path, events = tmp_path / "metrics.jsonl", []

    def fsync(descriptor, really=os.fsync):
        really(descriptor)
        events.append((os.fstat(descriptor).st_ino == path.stat().st_ino, path.read_text().count("\n")))

    monkeypatch.setattr(os, "fsync", fsync)
    tracker = JsonLines(path)
    for record in (SEGMENT, epoch(1, 20.0), result([epoch(1, 20.0)])):
        tracker.log(record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [SEGMENT, epoch(1, 20.0)]
    assert events == [(True, 1), (True, 2)]
    assert tracker.bytes_written == path.stat().st_size
    with pytest.raises(ValueError, match="JSON"):
        tracker.log(epoch(2, float("nan")))
    assert tracker.bytes_written == path.stat().st_size, "nothing of it"
    tracker.close()


def test_a_line_of_which_the_system_takes_a_part_at_a_time_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    file = tracker._file
    monkeypatch.setattr(tracker, "_file", SimpleNamespace(write=lambda line: file.write(line[:10]), fileno=file.fileno))
    tracker.log(SEGMENT)
    file.close()
    assert path.read_text() == json.dumps(SEGMENT) + "\n"


def test_a_resumed_run_keeps_the_lines_that_it_does_not_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("one\ntwo\n")
    tracker = JsonLines(path, keep=4)
    tracker.log(SEGMENT)
    tracker.close()
    assert path.read_text() == "one\n" + json.dumps(SEGMENT) + "\n"
    assert path.with_name("metrics.jsonl.dropped").read_text() == "two\n"
    JsonLines(path).close()
    assert path.read_text() == ""
    dropped = path.with_name("metrics.jsonl.dropped").read_text()
    assert dropped == "two\none\n" + json.dumps(SEGMENT) + "\n", "nothing is ever lost"


def test_nothing_is_cut_off_before_it_is_kept(tmp_path, monkeypatch):
    """The process is killed when it flushes what it cuts off, or the disk is full, or it has lost the run."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("one\ntwo\n")

    def fail(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse():
        raise RuntimeError("another process has this run")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="dropped"):
            JsonLines(path, keep=4)
    with pytest.raises(RuntimeError):
        JsonLines(path, keep=4, before_write=refuse)
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_file_that_cannot_be_appended_to_is_named(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="metrics"):
        JsonLines(tmp_path / "metrics.jsonl")


def test_what_is_called_before_a_line_can_keep_it_from_being_written(tmp_path):
    def refuse():
        raise RuntimeError("another process has this run")

    tracker = JsonLines(tmp_path / "metrics.jsonl", before_write=refuse)
    with pytest.raises(RuntimeError):
        tracker.log(SEGMENT)
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")  # noqa: PTH110
def test_a_full_disk_is_an_error_with_the_files_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, tracker._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match="metrics") as error:
        tracker.log(SEGMENT)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    tracker.close()


# ------------------------------------------------------------------------------------------------------------ progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose first item is the time in seconds; it passes only when a test changes it."""
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def numbers(line):
    return [found.strip(",") for found in re.findall(r"\d[\d,.:]*%?", line)]


def test_a_log_file_gets_a_line_a_minute_and_a_line_an_epoch(clock):
    stream, looks = io.StringIO(), []
    bar = Progress(epochs=4, images_per_epoch=3000, images_done=3000, stream=stream)

    def running():
        looks.append(clock[0])
        return 1.25, 40.0

    for seconds in (20, 39, 41, 20):
        clock[0] += seconds
        bar.advance(500, 2, running)
    assert looks == [1100.0], "once within the first two minutes, at the first step after the first"
    (line,) = stream.getvalue().splitlines()
    # epoch 2 of 4, 50%, loss, error, 1500 images in 100 s, 7,500 images left
    assert numbers(line) == ["2", "4", "50%", "1.250", "40.00%", "15", "8:20"]
    bar.log(epoch(2, 20.0))
    clock[0] += 59
    bar.advance(500, 3, running)
    assert len(looks) == 1, "an epoch's line counts as a look"
    bar.log(SEGMENT)
    bar.close()
    ended = stream.getvalue().splitlines()[1:]
    assert len(ended) == 1
    assert "\r" not in stream.getvalue()
    # two epochs of 2 + 1 s are left
    assert numbers(ended[0]) == ["2", "4", "0.1", "0.3333", "30.00%", "20.00%", "50", "0:06"]
    assert "1.25%" in bar.epoch_words({**epoch(2, 10.0), "test_top5_error": 1.25})


def test_a_terminal_gets_a_bar_that_looks_at_the_device_at_most_twice_a_second(clock):
    stream, looks = Terminal(), []
    bar = Progress(epochs=2, images_per_epoch=100, stream=stream)
    for seconds in (0.3, 0.3, 0.3, 0.3):
        clock[0] += seconds
        bar.advance(10, 1, lambda: looks.append(clock[0]) or (1.25, 40.0))
    assert len(looks) == 2
    bar._bar.refresh()
    assert (bar._bar.n, bar._bar.total) == (40, 200)
    bar.close()
    for token in ("1/2", "1.250", "40.00%"):
        assert token in stream.getvalue()


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_progress_goes_on_when_nobody_can_read_it(clock, code):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(code, "gone")

    bar = Progress(epochs=2, images_per_epoch=100, stream=Gone())
    clock[0] += 100
    bar.advance(50, 1, lambda: (1.25, 40.0))
    bar.log(epoch(1, 20.0))
    bar.close()


def test_durations_are_minutes_or_hours():
    shown = {0: "0:00", 59.6: "1:00", 61: "1:01", 3599: "59:59", 3600: "1:00:00", 36061: "10:01:01"}
    assert {seconds: duration(seconds) for seconds in shown} == shown
