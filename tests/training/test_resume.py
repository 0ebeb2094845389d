"""Runs that stop anywhere and go on as if they had not: same weights, statistics and curves, bit for bit."""

import dataclasses
import errno
import json
import os
import shutil
import threading

import pytest
import torch
from interrupted_runs import (
    FILES,
    STEPS,
    STEPS_PER_EPOCH,
    Killed,
    assert_same,
    before_call,
    kill,
    killed,
    settings,
    steps_of_segments,
    stopped_after,
)

from isda_repro.config import build, read_frozen
from isda_repro.config.checks import ConfigError
from isda_repro.runs.exit_status import read_exit_status
from isda_repro.runs.lock import FolderLock
from isda_repro.runs.records import EpochRecord, read_metrics
from isda_repro.training import checkpoint
from isda_repro.training import run as running
from isda_repro.training.checkpoint import CheckpointError, Saver
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.run import build_trainer, run
from isda_repro.training.trainer import Trainer


@pytest.mark.parametrize("step", [1, 4, 6, STEPS])
@pytest.mark.parametrize("every", [None, 1])
def test_run_killed_at_any_step_equals_uninterrupted_run(tmp_path, monkeypatch, undisturbed, step, every):
    cfg = settings(tmp_path, f"checkpoint.steps={every or 'null'}")
    killed(cfg, monkeypatch, Saver, "step_taken", step)
    result = run(cfg)
    folder = tmp_path / cfg.run_id
    assert_same(folder, undisturbed)
    saved = step - 1 if every else (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert steps_of_segments(result) == ([0, saved] if saved else [0])
    epochs = [record.epoch for record in read_metrics(folder / "metrics.jsonl") if isinstance(record, EpochRecord)]
    assert epochs == [1, 2, 3]
    assert {path.name for path in folder.iterdir()} == FILES


def test_momentum_takes_the_layout_that_the_weights_have_now(tmp_path):
    """A GPU's fused optimizer refuses another one."""
    trainers = []
    for channels_last in ("false", "true"):
        cfg = settings(tmp_path, f"compute.channels_last={channels_last}")
        trainer = build_trainer(cfg, build(cfg.dataset.source), resolve_compute(cfg.compute), SINGLE_PROCESS)
        trainer.network.train()
        trainer.take_step(next(trainer.batches(1, 0)))
        trainers.append(trainer)
    before, now = trainers
    now.load_state_dict(checkpoint.snapshot(before.state_dict()), [])
    pairs = zip(before.network.parameters(), now.network.parameters(), strict=True)
    momentum = [(before.optimizer.state[a], now.optimizer.state[b], b) for a, b in pairs]
    for old, new, weight in momentum:
        assert new["momentum_buffer"].stride() == weight.stride()
        assert torch.equal(new["momentum_buffer"], old["momentum_buffer"])


def test_run_killed_again_and_again_gets_to_its_end(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    for _ in range(5):
        stopped_after(cfg, 2, monkeypatch)
    result = run(cfg)
    assert len(result.segments) == 6
    assert_same(tmp_path / cfg.run_id, undisturbed)
    environment = json.loads((tmp_path / cfg.run_id / "environment.json").read_text())
    assert len(environment["before"]) == 5
    assert [one["git_revision"] for one in [*environment["before"], environment]] == [
        segment["git_revision"] for segment in result.segments
    ]


@pytest.mark.parametrize(
    ("owner", "method"), [(Saver, "stop_if_asked"), (Saver, "epoch_ended"), (Trainer, "state_dict")]
)
def test_run_killed_between_training_and_saving_evaluates_again(tmp_path, monkeypatch, undisturbed, owner, method):
    cfg = settings(tmp_path, "checkpoint.steps=2")
    killed(cfg, monkeypatch, owner, method, 2)
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_process_killed_at_any_file_operation_is_gone_on_from(tmp_path, monkeypatch, epochs):
    """A killed process leaves its folder as it is then: before each operation on files a copy is taken, with its lock,
    and each copy is gone on from to the end that the run itself came to."""
    more = ("checkpoint.steps=1", f"recipe.epochs={epochs}", "dataset.train_limit=100")  # of two steps each
    cfg = settings(tmp_path / "whole", *more)
    folder, copies, one_at_a_time = tmp_path / "whole" / cfg.run_id, {}, threading.RLock()

    def copied(operation):
        def copy_and_do(*arguments, **options):
            with one_at_a_time:
                if folder.exists():
                    files = {path.name: path.read_bytes() for path in folder.iterdir()}
                    names = (name if not name.endswith(".tmp") else "tmp" for name in files)
                    copies.setdefault(tuple(sorted(zip(names, files.values(), strict=True))), files)
                return operation(*arguments, **options)

        return copy_and_do

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "fsync"):
            patch.setattr(os, name, copied(getattr(os, name)))
        run(cfg)
    starts = []
    for number, files in enumerate(copies.values()):
        again = settings(tmp_path / str(number), *more)
        there = tmp_path / str(number) / again.run_id
        there.mkdir(parents=True)
        for name, content in files.items():
            (there / name).write_bytes(content)
        newest = max((int(path.stem.split("-")[1]) for path in there.glob("checkpoint-*.pt")), default=0)
        is_finished = "result.json" in files
        begun = [step for step in steps_of_segments(run(again)) if not is_finished]
        assert begun[-1:] == ([] if is_finished else [newest])
        starts += begun[-1:] or ["finished"]
        assert_same(there, folder)
        only_the_lock_was_left = is_finished and not any(name.startswith("checkpoint-") for name in files)
        left = {"lock", "owner.json"} if only_the_lock_was_left else set()
        assert {path.name for path in there.iterdir()} - left == FILES
        shutil.rmtree(there)
    assert {*range(2 * epochs + 1), "finished"} == set(starts)


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize(
    ("how", "both"), [("truncated", False), ("emptied", False), ("one bit flipped", False), ("one bit flipped", True)]
)
def test_damaged_checkpoint_costs_steps_and_is_set_aside(tmp_path, monkeypatch, capsys, undisturbed, how, both):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    files = sorted(folder.glob("checkpoint-*.pt"))
    assert [file.name for file in files] == ["checkpoint-000000005.pt", "checkpoint-000000006.pt"]
    for file in files if both else files[1:]:
        damage(file, how)
    result = run(cfg)
    assert "checkpoint-000000006.pt" in capsys.readouterr().err
    assert steps_of_segments(result) == ([0] if both else [0, 5])
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


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_weights_are_kept_when_metrics_are_lost(tmp_path, monkeypatch, undisturbed, checkpoints):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    folder = tmp_path / cfg.run_id
    for older in sorted(folder.glob("checkpoint-*.pt"))[:-checkpoints]:
        older.unlink()
    metrics = folder / "metrics.jsonl"
    content = metrics.read_text()
    metrics.write_text(content.replace("{", "?", 1))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1"):
        run(cfg)
    assert {path.name for path in folder.iterdir()} == before | {"ended.json"}
    metrics.unlink()
    with pytest.raises(ValueError, match=r"metrics.jsonl"):
        run(cfg)
    metrics.write_text(content)
    run(cfg)
    assert_same(folder, undisturbed)


def test_lost_lines_of_metrics_send_the_run_back_to_where_they_are_whole(tmp_path, monkeypatch, capsys, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert steps_of_segments(run(cfg)) == [0, STEPS_PER_EPOCH]
    assert "checkpoint-000000008.pt.damaged-1" in capsys.readouterr().err
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss of step 0 is finite, the weights after it are not."""

    def spoil(self, *_arguments):
        self.network.head.weight.data[0, 0] = torch.inf
        return state_dict(self)

    state_dict = Trainer.state_dict
    monkeypatch.setattr(Trainer, "state_dict", spoil)
    cfg = settings(tmp_path, "checkpoint.steps=1")
    with pytest.raises(ValueError, match="step 0"):
        run(cfg)
    assert not list((tmp_path / cfg.run_id).glob("checkpoint*"))


def test_full_disk_is_a_warning_and_the_checkpoint_before_stays(tmp_path, monkeypatch, capsys, undisturbed):
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
        patch.setattr(torch, "save", full)
        stopped_after(cfg, 3, patch)
    assert capsys.readouterr().err.count("No space left on device") == 2
    assert [path.name for path in (tmp_path / cfg.run_id).glob("checkpoint-*")] == ["checkpoint-000000001.pt"]
    assert steps_of_segments(run(cfg)) == [0, 1]
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_snapshot_does_not_change_with_what_it_is_of():
    state = {"a": [torch.zeros(2, requires_grad=True), 1], "b": (torch.zeros(1), None)}
    copy = checkpoint.snapshot(state)
    with torch.no_grad():
        state["a"][0] += 1
        state["b"][0].add_(1)
    assert copy["a"][0].tolist() == [0, 0]
    assert copy["b"][0].tolist() == [0]
    assert not copy["a"][0].requires_grad
    assert (copy["a"][1], copy["b"][1]) == (1, None)


def test_tensors_of_an_accelerator_are_copied_together_with_their_strides():
    weights = torch.randn(5, 3, 2, 2)
    tensors = [weights, weights.contiguous(memory_format=torch.channels_last), weights[:, 1:], torch.tensor(3)]
    tensors += [torch.arange(4), torch.zeros(0, 7), weights[2]]
    copies = checkpoint.copy_to_host(tensors)
    for copy, tensor in zip(copies, tensors, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
        assert copy.untyped_storage().nbytes() == tensor.nbytes
    assert copies[1].stride() == tensors[1].stride()
    weights.zero_()
    assert copies[0].any()


def test_force_moves_a_finished_run_aside_and_deletes_nothing(tmp_path, capsys):
    cfg, forced = settings(tmp_path), settings(tmp_path, "force=true")
    assert cfg.run_id == forced.run_id
    first = run(cfg)
    before = (tmp_path / cfg.run_id / "result.json").read_bytes()
    metrics = (tmp_path / cfg.run_id / "metrics.jsonl").read_bytes()
    assert run(cfg) == first
    assert (tmp_path / cfg.run_id / "metrics.jsonl").read_bytes() == metrics, "it has not run twice"
    second = run(forced)
    assert (tmp_path / f"{cfg.run_id}.before-1" / "result.json").read_bytes() == before
    assert first.curves == second.curves
    assert first != second
    assert f"{cfg.run_id}.before-1" in capsys.readouterr().out
    frozen = tmp_path / cfg.run_id / "config.yaml"
    assert run(read_frozen(frozen)) == second, "its own file does not force"


def test_forced_run_that_was_killed_goes_on(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path, "force=true")
    stopped_after(cfg, 5, monkeypatch)
    assert steps_of_segments(run(cfg)) == [0, STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, undisturbed)


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize("trouble", [MemoryError(), NO_MEMORY, OSError(5, "Input/output error")])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, undisturbed, trouble):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def failing(*arguments, **options):
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", failing)
        with pytest.raises(OSError if isinstance(trouble, OSError) else MemoryError, match=r"checkpoint-000000006\.pt"):
            run(cfg)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert "checkpoint-000000006.pt" in json.loads(after.pop("ended.json"))["said"]
    assert after == before
    run(cfg)
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", [1], {"something": 1}, OSError(errno.EINVAL, "x")])
def test_damaged_checkpoint_names_the_file(tmp_path, monkeypatch, content):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        checkpoint.torch.save({"epoch": 1, "network": {}} if isinstance(content, OSError) else content, path)
    if isinstance(content, OSError):  # what some damaged archives make PyTorch raise

        def failing(*arguments, **options):
            raise content

        monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def rewrite(path, change):
    state = checkpoint.load(path)
    change(state)
    checkpoint.save(path, state)


@pytest.mark.parametrize(
    "change", [lambda state: state.pop("ranks"), lambda state: state.update(run_id="another")], ids=["ranks", "another"]
)
def test_checkpoint_of_another_version_or_run_is_set_aside(tmp_path, monkeypatch, capsys, undisturbed, request, change):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    rewrite(max((tmp_path / cfg.run_id).glob("checkpoint-*.pt")), change)
    assert steps_of_segments(run(cfg)) == [0, 5]
    said = capsys.readouterr().err
    assert "checkpoint-000000006.pt" in said
    assert request.node.callspec.id in said
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_whole_checkpoint_that_does_not_fit_is_left_for_the_user(tmp_path, monkeypatch):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    whole = {path: path.read_bytes() for path in folder.glob("checkpoint-*.pt")}
    before = {path.name for path in folder.iterdir()}
    for part in ("network", "criterion", "optimizer"):
        for path, content in whole.items():
            path.write_bytes(content)
            rewrite(path, lambda state, part=part: state[part].pop(next(iter(state[part]))))
        with pytest.raises(ValueError, match=r"checkpoint-000000006\.pt") as caught:
            run(cfg)
        assert "\n" not in str(caught.value)
        assert {path.name for path in folder.iterdir()} == before | {"ended.json"}


def test_finished_run_is_moved_aside_only_once_by_two_that_are_told_to(tmp_path, monkeypatch, undisturbed):
    """Of two, the second finds when it has the lock that the first has begun anew."""
    cfg = settings(tmp_path, "force=true")
    run(cfg)

    def come_late():
        (tmp_path / cfg.run_id).rename(tmp_path / f"{cfg.run_id}.before-1")
        (tmp_path / cfg.run_id).mkdir()

    before_call(monkeypatch, FolderLock, "__enter__", 1, come_late)
    run(cfg)
    assert not (tmp_path / f"{cfg.run_id}.before-2").exists()
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize(
    "override", ["checkpoint=null", "checkpoint.minutes=0", "checkpoint.steps=0", "checkpoint.steps=1.5", "force=3"]
)
def test_impossible_intervals_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        settings("runs", override)


class Log:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.kinds = []

    def log(self, record):
        self.kinds.append(record["kind"])

    def close(self):
        self.kinds.append("closed")


def test_what_was_left_to_do_after_the_result_is_done_by_the_next_command(tmp_path, monkeypatch):
    """The process died when it had written the result, before it told W&B."""
    cfg, logs = settings(tmp_path), []

    def trackers(*arguments):
        logs.append(Log())
        return logs[-1:]

    monkeypatch.setattr(running, "CLASSIFIER", dataclasses.replace(running.CLASSIFIER, build_trackers=trackers))
    with monkeypatch.context() as patch:
        patch.setattr(Log, "log", lambda self, record: kill() if record["kind"] == "result" else None)
        with pytest.raises(Killed):
            run(cfg)
    folder = tmp_path / cfg.run_id
    assert list(folder.glob("checkpoint-*.pt"))
    result = run(cfg)
    assert result.epochs == 3
    assert [log.kinds for log in logs] == [["closed"], ["result", "closed"]]
    assert not list(folder.glob("checkpoint-*.pt"))
    run(cfg)
    assert len(logs) == 2, "once"


def test_how_a_run_ended_is_noted_until_a_process_works_on_it(tmp_path, monkeypatch):
    cfg = settings(tmp_path, "recipe.lr=1e30")
    folder = tmp_path / cfg.run_id
    for defect, noted in ((KeyError("a defect"), (1, "KeyError: 'a defect'")), (OSError(5, "x", "file"), (2, "file"))):

        def failing(*arguments, defect=defect, **options):
            raise defect

        with monkeypatch.context() as patch:
            patch.setattr(Saver, "step_taken", failing)
            patch.setattr(Trainer, "train", failing)
            with pytest.raises(type(defect)):
                run(cfg)
        assert read_exit_status(folder).exit_code == noted[0]
        assert noted[1] in read_exit_status(folder).said
    with FolderLock(folder), pytest.raises(ValueError, match="pid"):
        run(cfg)
    assert read_exit_status(folder).exit_code == 2, "who is refused notes nothing"
    fine = settings(tmp_path)
    stopped_after(fine, 1, monkeypatch)
    (tmp_path / fine.run_id / "ended.json").write_bytes((folder / "ended.json").read_bytes())
    run(fine)
    assert read_exit_status(tmp_path / fine.run_id) is None
