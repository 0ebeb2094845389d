"""Runs that stop anywhere and go on as if they had not: same weights, statistics and curves, bit for bit."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
from interrupted_runs import RUN, STEPS_PER_EPOCH, Killed, assert_same, kill_at, settings, stopped_after

from isda_repro.config import read_frozen
from isda_repro.tables.records import EpochRecord, SegmentRecord, read_metrics
from isda_repro.training import checkpoint
from isda_repro.training.lock import FolderLock
from isda_repro.training.run import Classification, run
from isda_repro.training.trainer import Trainer


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
    error = capsys.readouterr().err
    assert "checkpoint-000000006.pt is not a whole checkpoint" in error
    assert f"and the run {'begins anew' if both else 'goes on from checkpoint-000000005.pt'}" in error
    assert [segment["step"] for segment in result.segments] == ([0] if both else [0, 5])
    assert_same(folder, undisturbed)
    aside = {path.name for path in folder.glob("*.damaged-1")}
    lost = {"checkpoint-000000005.pt.damaged-1", "metrics.jsonl.damaged-1"} if both else set()
    assert aside == {"checkpoint-000000006.pt.damaged-1"} | lost, "nothing is thrown away"


def test_half_a_line_and_lines_too_many_in_metrics_are_written_again(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines, lines[-1], lines[-1][:40]]))
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_weights_are_not_thrown_away_because_metrics_are_lost(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    folder = tmp_path / cfg.run_id
    metrics = folder / "metrics.jsonl"
    content = metrics.read_text()
    metrics.write_text(content.replace("{", "?", 1))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: .*; restore that file, or delete the checkpoints"):
        run(cfg)
    assert {path.name for path in folder.iterdir()} == before | {"ended.json"}
    metrics.unlink()
    with pytest.raises(ValueError, match=r"metrics.jsonl has 0 bytes, and had .*; restore that file"):
        run(cfg)
    metrics.write_text(content)
    run(cfg)
    assert_same(folder, undisturbed)


def test_lost_metrics_send_the_run_back_to_where_they_are_whole(tmp_path, monkeypatch, capsys, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert [segment["step"] for segment in run(cfg).segments] == [0, STEPS_PER_EPOCH]
    error = capsys.readouterr().err
    assert "when a checkpoint was written; it is now checkpoint-000000008.pt.damaged-1, and the run goes on" in error
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


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (MemoryError(), r"while reading .*checkpoint-000000006.pt, \d+ MB"),
        (NO_MEMORY, r"while reading .*checkpoint-000000006.pt, \d+ MB"),
        (OSError(5, "Input/output error"), "Input/output error: .*checkpoint-000000006.pt"),
    ],
)
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, undisturbed, trouble, sentence):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    before = {path.name: path.read_bytes() for path in (tmp_path / cfg.run_id).iterdir() if path.is_file()}

    def failing(*arguments, **options):
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "load", failing)
        with pytest.raises(OSError if isinstance(trouble, OSError) else MemoryError, match=sentence):
            run(cfg)
    after = {path.name: path.read_bytes() for path in (tmp_path / cfg.run_id).iterdir() if path.is_file()}
    assert re.search(sentence, json.loads(after.pop("ended.json"))["said"])
    assert after == before
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


def rewrite(path, change):
    state = checkpoint.load(path)
    change(state)
    checkpoint.save(path, state)


def test_a_checkpoint_that_lacks_something_is_set_aside(tmp_path, monkeypatch, capsys, undisturbed):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    rewrite(max((tmp_path / cfg.run_id).glob("checkpoint-*.pt")), lambda state: state.pop("ranks"))
    assert [segment["step"] for segment in run(cfg).segments] == [0, 5]
    assert (
        "checkpoint-000000006.pt is of another version of this program: no ranks; it is now" in capsys.readouterr().err
    )
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("part", ["network", "criterion", "optimizer"])
def test_a_whole_checkpoint_that_does_not_fit_is_left_for_the_user(tmp_path, monkeypatch, part):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    for path in folder.glob("checkpoint-*.pt"):
        rewrite(path, lambda state: state[part].pop(next(iter(state[part]))))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=r"000006.pt is whole but does not fit .*: go on with the one that .* names"
    ) as caught:
        run(cfg)
    assert "\n" not in str(caught.value)
    assert {path.name for path in folder.iterdir()} == before | {"ended.json"}


def test_force_moves_aside_what_is_finished_when_the_lock_is_held(tmp_path, monkeypatch, undisturbed):
    """Of two that are told to, the second finds that the first has begun anew."""
    cfg = settings(tmp_path, "force=true")
    run(cfg)
    entered = FolderLock.__enter__

    def late(self):
        monkeypatch.setattr(FolderLock, "__enter__", entered)
        (tmp_path / cfg.run_id).rename(tmp_path / f"{cfg.run_id}.before-1")
        (tmp_path / cfg.run_id).mkdir()
        return entered(self)

    monkeypatch.setattr(FolderLock, "__enter__", late)
    run(cfg)
    assert not (tmp_path / f"{cfg.run_id}.before-2").exists()
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize(
    "override", ["checkpoint=null", "checkpoint.minutes=0", "checkpoint.steps=0", "checkpoint.steps=1.5", "force=3"]
)
def test_impossible_intervals_are_refused(override):
    with pytest.raises(ValueError, match="must be"):
        settings("runs", override)


def test_each_process_of_a_run_is_on_record(tmp_path, monkeypatch):
    cfg = settings(tmp_path)
    for _ in range(2):
        stopped_after(cfg, 5, monkeypatch)
    segments = run(cfg).segments
    environment = json.loads((tmp_path / cfg.run_id / "environment.json").read_text())
    assert [one["git_revision"] for one in [*environment["before"], environment]] == [
        segment["git_revision"] for segment in segments
    ]
    assert len(segments) == 3


class Log:
    """A tracker that keeps what it is told."""

    def __init__(self, *_arguments):
        self.kinds = []

    def log(self, record):
        self.kinds.append(record["kind"])

    def close(self):
        self.kinds.append("closed")


def test_what_was_left_to_do_after_the_result_is_done_by_the_next_command(tmp_path, monkeypatch, capsys):
    """The process died when it had written the result, before it told W&B."""
    cfg, logs = settings(tmp_path), []

    def trackers(*arguments):
        logs.append(Log())
        return logs[-1:]

    monkeypatch.setattr(Classification, "build_trackers", staticmethod(trackers))
    with monkeypatch.context() as patch:
        patch.setattr(Log, "log", lambda self, record: kill_if(record["kind"] == "result"))
        with pytest.raises(Killed):
            run(cfg)
    folder = tmp_path / cfg.run_id
    assert list(folder.glob("checkpoint-*.pt"))
    result = run(cfg)
    assert result.epochs == 3
    assert "is already done" in capsys.readouterr().out
    assert [log.kinds for log in logs] == [["closed"], ["result", "closed"]]
    assert not list(folder.glob("checkpoint-*.pt"))
    run(cfg)
    assert len(logs) == 2, "once"


def kill_if(condition):
    if condition:
        raise Killed


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
