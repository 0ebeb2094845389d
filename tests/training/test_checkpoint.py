"""Checkpoints: host copies, memory layouts, finite weights, full disks, and intervals between them."""

import json
import shutil

import pytest
import torch
from interrupted_runs import FILES, assert_same, before_call, settings, steps_of_segments, stopped_after

from isda_repro.config import build
from isda_repro.config.checks import ConfigError
from isda_repro.runs.lock import FolderLock, LockedError, here
from isda_repro.sweeps.sweep import is_over
from isda_repro.training import checkpoint
from isda_repro.training.checkpoint import Checkpoints, save
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.run import build_trainer, run
from isda_repro.training.trainer import Trainer


def test_momentum_takes_the_layout_that_the_weights_have_now(tmp_path):
    """A fused optimizer on a GPU refuses momentum with another layout than the weights."""
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


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss of step 0 is finite, but the weights after it are not."""

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


@pytest.mark.parametrize(
    "override", ["checkpoint=null", "checkpoint.minutes=0", "checkpoint.steps=0", "checkpoint.steps=1.5", "force=3"]
)
def test_impossible_intervals_are_refused(override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        settings("runs", override)


THEIRS = (
    *(
        "notes.tmp",
        "checkpoint-best.pt",
        "checkpoint-000000001.pt.bak",
        "checkpoint-1.pt",
        "checkpoint.pt.12345678.tmp~",
    ),
    *(
        "result.json.tmp",
        "checkpoint-000000001.pt.1234567.tmp",
        "my-checkpoint.pt.12345678.tmp",
        "config.yaml.12345678.tmp",
        "x-checkpoint-000000001.pt",
    ),
)


def test_only_what_is_ours_is_deleted(tmp_path):
    for name in (
        *THEIRS,
        "checkpoint-000000001.pt.0a1b2c3d.tmp",
        "checkpoint.pt.0a1b2c3d.tmp",
        "result.json.0a1b2c3d.tmp",
        "diverged.json.0a1b2c3d.tmp",
        "environment.json.0a1b2c3d.tmp",
        "checkpoint-000000007.pt",
    ):
        (tmp_path / name).write_text(name)
    checkpoints = Checkpoints(tmp_path)
    assert [path.name for path in checkpoints.newest_first()] == ["checkpoint-000000007.pt"]
    checkpoints.clear_unfinished()
    assert {path.name for path in tmp_path.iterdir()} == {*THEIRS, "checkpoint-000000007.pt"}
    checkpoints.clear()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in THEIRS}
    (tmp_path / "result.json").touch()
    assert is_over(tmp_path), "a sweep has nothing left to do"


@pytest.mark.parametrize("moment", ["before", "while it writes"])
def test_process_that_has_lost_its_lock_changes_nothing(tmp_path, monkeypatch, moment, capsys):
    names = {f"checkpoint-{step:09}.pt" for step in (1, 2, 3)}
    for name in names:
        (tmp_path / name).write_text("theirs")
    with FolderLock(tmp_path) as lock:
        checkpoints = Checkpoints(tmp_path, lock.ensure_held)
        owner = tmp_path / "owner.json"
        about = {**json.loads(owner.read_text()), "token": "another"}
        if moment == "before":
            owner.write_text(json.dumps(about))
        else:
            before_call(monkeypatch, torch, "save", 1, lambda: owner.write_text(json.dumps(about)))
        checkpoints.write({"step": 3, "network": {}, "epoch": 0})
        assert not checkpoints.wait()
        for act in (checkpoints.clear, lambda: save(tmp_path / "checkpoint.pt", {}, lock.ensure_held)):
            with pytest.raises(LockedError):
                act()
        assert {path.name: path.read_text() for path in tmp_path.glob("checkpoint*")} == dict.fromkeys(names, "theirs")
    assert json.loads(owner.read_text()) == about


def test_lock_of_a_finished_run_whose_process_died_is_removed(tmp_path, undisturbed):
    cfg = settings(tmp_path)
    folder = tmp_path / cfg.run_id
    shutil.copytree(undisturbed, folder)
    (folder / "lock").touch()
    (folder / "owner.json").write_text(json.dumps({**here(), "pid": 2**22 + 1, "token": "x"}))
    run(cfg)
    assert {path.name for path in folder.iterdir()} == FILES
