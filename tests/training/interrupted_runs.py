"""What the tests of runs that stop have in common: a short run on digits, ways to end it, and how to compare two."""

import json

import pytest
import torch

from isda_repro.config import compose
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


def stopped_after(cfg, steps, monkeypatch):
    """Leave a run of ours with checkpoints after ``steps`` and the step before."""
    with monkeypatch.context() as patch:
        kill_at(patch, "_step", steps + 1)
        with pytest.raises(Killed):
            run(cfg)
