"""Runs that a signal stops, and the times at which the state is saved."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from interrupted_runs import RUN, STEPS_PER_EPOCH, assert_same, before_call, settings, steps_of_segments

from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR, StoppedError
from isda_repro.runs.exit_status import read_exit_status
from isda_repro.runs.records import SegmentRecord, read_metrics
from isda_repro.training.checkpoint import Checkpoints, Saver
from isda_repro.training.distributed import Processes
from isda_repro.training.run import run


@pytest.mark.parametrize(
    ("number", "method", "call", "saved"),
    [
        (signal.SIGTERM, "step_taken", 7, 7),
        (signal.SIGINT, "epoch_ended", 1, STEPS_PER_EPOCH),
        (signal.SIGUSR1, "stop_if_asked", 1, STEPS_PER_EPOCH),  # before the first batch of the evaluation
    ],
)
def test_signal_saves_and_stops(tmp_path, monkeypatch, undisturbed, number, method, call, saved):
    cfg, before = settings(tmp_path), signal.getsignal(number)
    with monkeypatch.context() as patch:
        before_call(patch, Saver, method, call, lambda: signal.raise_signal(number))
        with pytest.raises(StoppedError, match=f"{saved}") as stopped:
            run(cfg)
    assert stopped.value.exit_code == (EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED)
    folder = tmp_path / cfg.run_id
    assert read_exit_status(folder).exit_code == stopped.value.exit_code
    assert signal.getsignal(number) == before
    if method == "stop_if_asked":
        lines = list(read_metrics(folder / "metrics.jsonl"))
        assert [type(line) for line in lines] == [SegmentRecord], "the epoch is evaluated again"
    assert steps_of_segments(run(cfg)) == [0, saved]
    assert_same(folder, undisturbed)


def test_stop_that_could_not_be_saved_is_an_error(tmp_path, monkeypatch, capsys, undisturbed):
    cfg = settings(tmp_path)

    def fill_the_disk():
        signal.raise_signal(signal.SIGTERM)
        patch.setattr(torch, "save", full)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        before_call(patch, Saver, "step_taken", 7, fill_the_disk)
        with pytest.raises(StoppedError, match="7") as stopped:
            run(cfg)
    assert stopped.value.exit_code == EXIT_USER_ERROR
    assert "No space left on device" in capsys.readouterr().err
    assert steps_of_segments(run(cfg)) == [0, STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, undisturbed)


class LeftError(BaseException):
    """Raised in place of ``os._exit``."""


@pytest.mark.parametrize("on_a_cluster", [False, True])
def test_second_signal_ends_the_process_at_once(tmp_path, monkeypatch, on_a_cluster):
    """On a cluster it does not, because SLURM repeats its signals, and kills in the end."""
    now = 100.0

    def leave(code):
        raise LeftError(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv("SLURM_JOB_ID", "7") if on_a_cluster else monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        saver = Saver(Checkpoints(tmp_path), lambda: {"step": 3})
        with saver.listening():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # the repeated signal
            now += 2
            if on_a_cluster:
                signal.raise_signal(signal.SIGUSR1)
            else:
                with pytest.raises(LeftError, match=str(128 + signal.SIGUSR1)):
                    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(StoppedError):
        saver.stop_if_asked()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000003.pt"]


class Written:
    """A stub of ``Checkpoints`` that records the steps that were written."""

    def __init__(self):
        self.steps, self.written_at = [], time.monotonic()

    def write(self, state):
        self.steps.append(state["step"])
        self.written_at = time.monotonic()


def take_steps(saver, state, number):
    for _ in range(number):
        state["step"] += 1
        saver.step_taken(state["step"])


def test_state_is_saved_at_its_intervals_and_after_each_epoch():
    written, state = Written(), {"step": 0}
    saver = Saver(written, lambda: state, minutes=10, steps=3)
    take_steps(saver, state, 7)
    assert written.steps == [3, 6]
    saver.epoch_ended()
    saver.stop_if_asked()
    assert written.steps == [3, 6, 7]
    written.written_at -= 601
    take_steps(saver, state, 1)
    assert written.steps == [3, 6, 7, 8]
    written.written_at -= 500
    take_steps(Saver(written, lambda: state, minutes=10), state, 3)
    written.written_at -= 10_000
    take_steps(Saver(written, lambda: state), state, 3)
    assert written.steps == [3, 6, 7, 8]


def test_several_processes_save_once_when_it_is_time():
    """A process learns of another's request one step later."""

    class ALater(Processes):
        before = (0, 0)

        def agreed(self, *wishes):
            before, self.before = self.before, wishes
            return before

    for rank, expected in ((0, [2]), (1, [])):
        written, state = Written(), {"step": 0}
        saver = Saver(written, lambda state=state: state, minutes=1, processes=ALater(rank))
        written.written_at -= 61
        take_steps(saver, state, 5)
        assert written.steps == expected
        assert time.monotonic() - written.written_at < 50, "all count the minutes anew"


INTERRUPTED_AT = """
import runpy, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == module:
            signal.raise_signal(signal.SIGINT)

_, module, program, *arguments = sys.argv
sys.meta_path.insert(0, Interrupting())
sys.argv[:] = [program, *arguments]
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("train.py", "hydra"),
        ("train.py", "torch"),
        ("scripts/sweep.py", "omegaconf"),
        ("scripts/train_gan.py", "hydra"),
    ],
)
def test_interrupt_while_a_program_starts_is_one_line(root, tmp_path, program, module):
    """The interrupt comes during an import, where Python itself would print a traceback."""
    arguments = RUN if module == "torch" else ["wrong=1"]
    command = [sys.executable, "-c", INTERRUPTED_AT, module, program, *arguments, f"runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == EXIT_INTERRUPTED, done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_run_that_nobody_listens_to_goes_on(root, tmp_path):
    """This happens with ``| head``, and when a terminal is closed."""
    short = ["recipe.epochs=1", "dataset.train_limit=64"]
    reader, writer = os.pipe()
    os.close(reader)  # before the process starts
    command = [sys.executable, "train.py", *RUN, *short, f"runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=root, stdout=writer, stderr=writer, timeout=300)
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / settings(tmp_path, *short).run_id / "result.json").exists()
