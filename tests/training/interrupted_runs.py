"""Helpers of the tests of interrupted runs: a short run on digits, ways to kill it, and comparison of two runs."""

import json

import pytest
import torch

from isda_repro.config import compose
from isda_repro.training.checkpoint import Saver
from isda_repro.training.run import run

STEPS_PER_EPOCH, EPOCHS = 4, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=200", "dataset.test_limit=100"),
    *(f"recipe.epochs={EPOCHS}", "loss=isda", "model.dropout=0.2", "tracking=none"),
]
RESNET = ("model=resnet20", "model.depth=8")
NETWORKS = {
    "resnet with dropout": (*RESNET, "model.dropout=0.2"),
    "se_resnet": ("model=se_resnet110", "model.depth=8"),
    "densenet": ("model=densenet_bc100_12", "model.depth=10", "model.dropout=0.2"),
    "wide_resnet": ("model=wrn16_8", "model.depth=10", "model.width=1"),
    "shake_shake": ("model=shake_shake26_2x32d", "model.width=4"),
    "resnext": ("model=resnext29_8x64d", "model.depth=11", "model.base_width=4", "model.cardinality=2"),
}
"""Overrides of a small network of every family, for digits."""
FILES = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoint.pt", "result.json"}
"""Names of the files of a finished run."""


class Killed(BaseException):
    """Raised in place of SIGKILL; nothing catches it."""


def settings(tmp_path, *more):
    return compose([*RUN, f"runs_dir={tmp_path}", *more])


def outcome(folder):
    """Return weights and statistics, and the epochs without timing, of a finished run."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{**line, "timing": None} for line in lines if line["kind"] == "epoch"]
    return {**state["network"], **state["criterion"]}, epochs


def assert_same(one, other):
    """Assert that two finished runs are equal bit for bit."""
    (tensors, epochs), (other_tensors, other_epochs) = outcome(one), outcome(other)
    assert epochs == other_epochs
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)


def before_call(monkeypatch, owner, method, call, act):
    """Call ``act()`` at the beginning of the ``call``-th call of a method."""
    original, count = getattr(owner, method), 0

    def watched(*arguments, **options):
        nonlocal count
        count += 1
        if count == call:
            act()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, method, watched)


def kill():
    raise Killed


def killed(cfg, monkeypatch, owner, method, call):
    """Run until the ``call``-th call of a method, and kill the run there."""
    with monkeypatch.context() as patch:
        before_call(patch, owner, method, call, kill)
        with pytest.raises(Killed):
            run(cfg)


def stopped_after(cfg, steps, monkeypatch):
    """Kill a run after ``steps`` steps; if it saves each step, the last two checkpoints are on disk."""
    killed(cfg, monkeypatch, Saver, "step_taken", steps + 1)


def steps_of_segments(result):
    """Return the steps at which the segments of a run began."""
    return [segment["step"] for segment in result.segments]
