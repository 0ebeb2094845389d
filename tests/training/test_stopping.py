"""Signals that ask a run to stop, and processes that end at any other point."""

import os
import signal
import subprocess
import sys
import time

import pytest
from interrupted_runs import RUN, STEPS_PER_EPOCH, assert_same, settings

from isda_repro.errors import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    INTERRUPTED,
    StoppedError,
    one_sentence_errors,
)
from isda_repro.tables.records import SegmentRecord, read_metrics
from isda_repro.training.evaluate import evaluate
from isda_repro.training.run import run
from isda_repro.training.trainer import Trainer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("during", ["_step", "_timing"])
def test_a_signal_saves_and_stops(tmp_path, monkeypatch, undisturbed, number, during):
    cfg = settings(tmp_path)
    original = getattr(Trainer, during)

    def signalled(self, *arguments):
        if self.step == 6 or during == "_timing":
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, during, signalled)
        with pytest.raises(StoppedError, match="the same command goes on from there") as stopped:
            run(cfg)
    assert stopped.value.exit_code == (EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED)
    assert signal.getsignal(number) == before
    segments = run(cfg).segments
    assert [segment["step"] for segment in segments] == [0, 7 if during == "_step" else STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_a_signal_ends_an_evaluation_between_two_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("isda_repro.training.parts.TEST_BATCH_SIZE", 50)
    cfg, other, batches = settings(tmp_path), settings(tmp_path / "undisturbed"), 0
    run(other)

    def signalled(network, images, compute, processes):
        def counted():
            nonlocal batches
            for batch in images:
                os.kill(os.getpid(), signal.SIGTERM)
                batches += 1
                yield batch

        return evaluate(network, counted(), compute, processes)

    with monkeypatch.context() as patch:
        patch.setattr("isda_repro.training.trainer.evaluate", signalled)
        with pytest.raises(StoppedError, match=f"saved after step {STEPS_PER_EPOCH}; the same command goes on"):
            run(cfg)
    assert batches == 1, "of two"
    lines = list(read_metrics(tmp_path / cfg.run_id / "metrics.jsonl"))
    assert [type(line) for line in lines] == [SegmentRecord], "the epoch is evaluated again"
    assert [segment["step"] for segment in run(cfg).segments] == [0, STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, tmp_path / "undisturbed" / other.run_id)


@pytest.mark.parametrize("during", ["_step", "_timing"])
def test_a_stop_that_could_not_be_saved_says_so(tmp_path, monkeypatch, capsys, undisturbed, during):
    cfg, original = settings(tmp_path), getattr(Trainer, during)

    def signalled(self, *arguments):
        if self.step == 7 or (during == "_timing" and self.step == 8):
            os.kill(os.getpid(), signal.SIGTERM)
            patch.setattr("isda_repro.training.checkpoint.save", full)
        return original(self, *arguments)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, during, signalled)
        with pytest.raises(StoppedError, match=r"SIGTERM: stopped after step 8, which could not be saved") as stopped:
            run(cfg)
    assert stopped.value.exit_code == EXIT_USER_ERROR
    assert "No space left on device" in capsys.readouterr().err
    assert [segment["step"] for segment in run(cfg).segments] == [0, STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, undisturbed)


SIGNALLED = """
import os, signal, sys, time
from pathlib import Path

from isda_repro.training.checkpoint import Checkpoints
from isda_repro.training.saving import Saver

saver = Saver(Checkpoints(Path(sys.argv[1])), dict)
with saver.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive")
"""


@pytest.mark.parametrize(("seconds", "code", "said"), [(0.0, 0, "alive\n"), (1.2, 128 + signal.SIGTERM, "")])
def test_a_second_signal_ends_the_process_at_once_and_an_echo_does_not(tmp_path, seconds, code, said):
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_whoever_started_the_process_has_it_ignore_stays_ignored(tmp_path, number):
    """nohup, and a shell's background."""
    code = SIGNALLED.replace("SIGTERM", number.name).replace(
        "import os", f"import signal\nsignal.signal({number}, 1)\nimport os"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "1.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("seconds", [0.15, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("command", [["train.py", *RUN], ["scripts/sweep.py", "table=demo", "dry_run=true"]])
def test_ctrl_c_while_a_program_starts_is_one_line(root, tmp_path, command, seconds):
    """Whatever it is doing then; the dry run may be over."""
    whole = [sys.executable, *command, f"runs_dir={tmp_path}"]
    process = subprocess.Popen(whole, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    # Python, when it ends, gives signals their old meaning back a little before it is gone
    over = "dry_run=true" in command and process.returncode in (0, -signal.SIGINT) and said == ""
    assert over or (process.returncode == EXIT_INTERRUPTED and said.strip().count("\n") == 0), said
    assert over or said.strip() in (INTERRUPTED.strip(), "") or "saved after step" in said


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_run_that_nobody_listens_to_goes_on(root, tmp_path, undisturbed, closed):
    """``| head``, or a terminal that is gone."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: subprocess.PIPE}
    command = [sys.executable, "train.py", *RUN, f"runs_dir={tmp_path}"]
    process = subprocess.Popen(command, cwd=root, **streams)
    getattr(process, closed).close()
    assert process.wait(timeout=120) == 0
    assert_same(tmp_path / undisturbed.name, undisturbed)


@pytest.mark.parametrize("error", ["UserError('x')", "StoppedError('x', 75)", "OSError(5, 'x')", "KeyboardInterrupt()"])
def test_the_exit_code_does_not_depend_on_who_listens(error):
    code = f"from isda_repro.errors import *\nwith one_sentence_errors(): raise {error}"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait(timeout=60) == {"S": EXIT_STOPPED, "K": EXIT_INTERRUPTED}.get(error[0], EXIT_USER_ERROR)


@pytest.mark.parametrize("error", [MemoryError("words"), RuntimeError("words: can't allocate memory"), RuntimeError()])
def test_exhausted_memory_is_one_sentence_and_a_defect_is_not(capsys, error):
    with pytest.raises(RuntimeError if not error.args else SystemExit), one_sentence_errors():
        raise error
    assert ("error: out of memory (words" in capsys.readouterr().err) == bool(error.args)


DIES = """
import os, sys
from pathlib import Path

from isda_repro.config import compose
from isda_repro.training import checkpoint, lock, run as run_module, saving

owner, name, call, when, *overrides = sys.argv[1:]
owner = {"path": Path, "run": run_module, "saver": saving.Saver, "lock": lock.FolderLock,
         "checkpoints": checkpoint.Checkpoints}[owner]
original, count = getattr(owner, name), 0

def fatal(*arguments, **options):
    global count
    count += 1
    if (count, when) == (int(call), "before"):
        os._exit(137)
    answer = original(*arguments, **options)
    if (count, when) == (int(call), "after"):
        os._exit(137)
    return answer

setattr(owner, name, fatal)
run_module.run(compose(overrides))
"""


@pytest.mark.parametrize(
    ("point", "at"),
    [
        (("saver", "epoch_ended", 1, "before"), {3, 4}),  # the epoch has its line, and no checkpoint yet
        (("path", "replace", 5, "after"), {3}),  # the third checkpoint in place, the first not yet pruned
        (("run", "write_result", 1, "after"), set()),
        pytest.param(("path", "replace", 5, "before"), {2}, marks=pytest.mark.slow),  # the third not yet in place
        pytest.param(("lock", "_create", 1, "after"), set(), marks=pytest.mark.slow),
        pytest.param(("path", "replace", 1, "before"), set(), marks=pytest.mark.slow),  # config.yaml
        pytest.param(("path", "replace", 2, "after"), set(), marks=pytest.mark.slow),  # environment.json
        pytest.param(("saver", "epoch_ended", 3, "after"), {11, 12}, marks=pytest.mark.slow),  # all trained
        pytest.param(("run", "write_result", 1, "before"), {12}, marks=pytest.mark.slow),  # the weights written
        pytest.param(("checkpoints", "clear", 1, "before"), set(), marks=pytest.mark.slow),
        pytest.param(("checkpoints", "clear_unfinished", 2, "after"), set(), marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_process_that_ends_at_any_point_is_gone_on_from(tmp_path, undisturbed, point, at):
    """A real process, ended there as SIGKILL would, with nothing cleaned up.

    ``at``: the step where the second segment may begin; none where the run begins anew or is finished already.
    """
    cfg = settings(tmp_path, "checkpoint.steps=1")
    command = [sys.executable, "-c", DIES, *map(str, point), *RUN, f"runs_dir={tmp_path}", "checkpoint.steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 137, done.stderr
    folder = tmp_path / cfg.run_id
    assert (folder / "owner.json").exists()
    first, *others = [segment["step"] for segment in run(cfg).segments]
    assert first == 0
    assert len(others) == bool(at)
    assert set(others) <= at
    assert_same(folder, undisturbed)
    names = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoint.pt", "result.json"}
    assert {path.name for path in folder.iterdir()} == names
