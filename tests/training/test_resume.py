"""Runs that stop anywhere and go on as if they had not: same weights, statistics and curves, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from isda_repro.config import compose, read_frozen
from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED, StoppedError
from isda_repro.tables.records import EpochRecord, SegmentRecord, read_metrics
from isda_repro.training import checkpoint
from isda_repro.training.run import run
from isda_repro.training.trainer import Trainer

STEPS_PER_EPOCH = 4
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=200", "dataset.test_limit=100"),
    *("recipe.epochs=3", "loss=isda", "model.dropout=0.2", "tracking=none"),
]


class Killed(BaseException):
    """What a test puts in the place of SIGKILL: nothing catches it."""


def settings(tmp_path, *more):
    return compose([*RUN, f"runs_dir={tmp_path}", *more])


def outcome(folder):
    """Weights, statistics and epochs of a finished run, timing apart."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{**line, "timing": None} for line in lines if line["kind"] == "epoch"]
    return {**state["network"], **state["criterion"]}, epochs


def assert_same(one, other):
    (tensors, epochs), (other_tensors, other_epochs) = outcome(one), outcome(other)
    assert epochs == other_epochs
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    cfg = settings(folder)
    run(cfg)
    return folder / cfg.run_id


def kill_at(monkeypatch, method, calls):
    """Make the ``calls``-th call of a method of the trainer the last thing that its process does."""
    original, count = getattr(Trainer, method), 0

    def fatal(self, *arguments):
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, method, fatal)


@pytest.mark.parametrize("step", [1, 3, 5, 9, 12])
@pytest.mark.parametrize("every", ["null", "1"])
def test_a_run_killed_at_any_step_ends_like_one_that_was_not(tmp_path, monkeypatch, undisturbed, step, every):
    cfg = settings(tmp_path, f"checkpoint.steps={every}")
    with monkeypatch.context() as patch:
        kill_at(patch, "_step", step)
        with pytest.raises(Killed):
            run(cfg)
    result = run(cfg)
    folder = tmp_path / cfg.run_id
    assert_same(folder, undisturbed)
    saved = step - 1 if every == "1" else (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert [segment["step"] for segment in result.segments] == ([0, saved] if saved else [0])
    assert [record.epoch for record in read_metrics(folder / "metrics.jsonl") if isinstance(record, EpochRecord)] == [
        *(1, 2, 3)
    ]
    assert not list(folder.glob("checkpoint-*"))


def test_a_run_killed_again_and_again_gets_there(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    for _ in range(5):
        with monkeypatch.context() as patch:
            kill_at(patch, "_step", 3)
            with pytest.raises(Killed):
                run(cfg)
    assert len(run(cfg).segments) == 6
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("method", ["_timing", "state_dict"])
def test_a_run_killed_between_training_and_saving_evaluates_again(tmp_path, monkeypatch, undisturbed, method):
    cfg = settings(tmp_path, "checkpoint.steps=2")
    with monkeypatch.context() as patch:
        kill_at(patch, method, 2)
        with pytest.raises(Killed):
            run(cfg)
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


def stopped_after(cfg, steps, monkeypatch):
    """Leave a run of ours with checkpoints after ``steps`` and the step before."""
    with monkeypatch.context() as patch:
        kill_at(patch, "_step", steps + 1)
        with pytest.raises(Killed):
            run(cfg)


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["truncated", "emptied", "one bit flipped"])
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_costs_steps_and_a_warning(tmp_path, monkeypatch, capsys, undisturbed, how, both):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    files = sorted(folder.glob("checkpoint-*.pt"))
    assert [file.name for file in files] == ["checkpoint-000000005.pt", "checkpoint-000000006.pt"]
    for file in files if both else files[1:]:
        damage(file, how)
    result = run(cfg)
    assert "checkpoint-000000006.pt is not a whole checkpoint" in capsys.readouterr().err
    assert [segment["step"] for segment in result.segments] == ([0] if both else [0, 5])
    assert_same(folder, undisturbed)


def test_half_a_line_and_lines_too_many_in_metrics_are_written_again(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines, lines[-1], lines[-1][:40]]))
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_lost_metrics_send_the_run_back_to_where_they_are_whole(tmp_path, monkeypatch, capsys, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert [segment["step"] for segment in run(cfg).segments] == [0, STEPS_PER_EPOCH]
    assert "when a checkpoint was written; trying the one before it" in capsys.readouterr().err
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
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


def test_a_frozen_configuration_resumes_too(root, tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 6, monkeypatch)
    frozen = tmp_path / cfg.run_id / "config.yaml"
    done = subprocess.run(
        [sys.executable, "train.py", str(frozen)], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert f"goes on after step {STEPS_PER_EPOCH} of 12" in done.stdout
    assert_same(frozen.parent, undisturbed)


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss of step 0 is finite, the weights after it are not."""
    original = Trainer._step

    def spoiled(self, *arguments):
        original(self, *arguments)
        self.network.head.weight.data[0, 0] = torch.inf

    monkeypatch.setattr(Trainer, "_step", spoiled)
    cfg = settings(tmp_path, "checkpoint.steps=1")
    with pytest.raises(ValueError, match=r"a weight is no longer finite at step 0 \(epoch 1\), .* no such weights"):
        run(cfg)
    assert not list((tmp_path / cfg.run_id).glob("checkpoint*"))


def test_a_full_disk_is_a_warning_and_the_checkpoint_before_stays(tmp_path, monkeypatch, capsys, undisturbed):
    original, count = torch.save, 0

    def full(state, file):
        nonlocal count
        count += 1
        if 2 <= count <= 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        original(state, file)

    cfg = settings(tmp_path, "checkpoint.steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full)
        stopped_after(cfg, 3, patch)
    error = capsys.readouterr().err
    assert error.count("No space left on device") == 2
    assert [path.name for path in (tmp_path / cfg.run_id).glob("checkpoint-*")] == ["checkpoint-000000001.pt"]
    assert [segment["step"] for segment in run(cfg).segments] == [0, 1]
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize(
    "message",
    ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "could not create a primitive", None],
)
def test_out_of_memory_is_one_sentence_and_another_error_is_not(tmp_path, monkeypatch, message):
    def full(*arguments, **options):
        raise RuntimeError(message or "a defect")

    monkeypatch.setattr("isda_repro.training.trainer.compute_gradients", full)
    with pytest.raises(RuntimeError if message is None else ValueError) as error:
        run(settings(tmp_path))
    expected = (
        "out of memory with 64 images at once on cpu: set compute.micro_batch=32 or less" if message else "defect"
    )
    assert expected in str(error.value)


def test_force_moves_aside_and_deletes_nothing(tmp_path, capsys):
    cfg, forced = settings(tmp_path), settings(tmp_path, "force=true")
    assert cfg.run_id == forced.run_id
    first = run(cfg)
    before = (tmp_path / cfg.run_id / "result.json").read_bytes()
    second = run(forced)
    assert (tmp_path / f"{cfg.run_id}.before-1" / "result.json").read_bytes() == before
    assert first.curves == second.curves
    assert "force=true: the finished run is now" in capsys.readouterr().out
    frozen = tmp_path / cfg.run_id / "config.yaml"
    assert run(read_frozen(frozen)) == second
    assert "is already done" in capsys.readouterr().out


def test_a_forced_run_that_was_killed_goes_on(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path, "force=true")
    stopped_after(cfg, 5, monkeypatch)
    assert [segment["step"] for segment in run(cfg).segments] == [0, STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("trouble", [MemoryError(), OSError(5, "Input/output error")])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, undisturbed, trouble):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    before = {path.name: path.read_bytes() for path in (tmp_path / cfg.run_id).iterdir() if path.is_file()}

    def failing(*arguments, **options):
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "load", failing)
        with pytest.raises(type(trouble)):
            run(cfg)
    assert {path.name: path.read_bytes() for path in (tmp_path / cfg.run_id).iterdir() if path.is_file()} == before
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize(
    "override", ["checkpoint=null", "checkpoint.minutes=0", "checkpoint.steps=0", "checkpoint.steps=1.5", "force=3"]
)
def test_impossible_intervals_are_refused(override):
    with pytest.raises(ValueError, match="must be"):
        settings("runs", override)


def test_a_killed_process_goes_on_where_it_was(root, tmp_path, undisturbed):
    """A real SIGKILL, at a time that the clock chooses."""
    command = [sys.executable, "train.py", *RUN, f"runs_dir={tmp_path}", "checkpoint.steps=1"]
    folder = tmp_path / undisturbed.name
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("checkpoint-*.pt")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True)
    assert "goes on after step" in done.stdout
    assert_same(folder, undisturbed)
    assert isinstance(next(read_metrics(folder / "metrics.jsonl")), SegmentRecord)
