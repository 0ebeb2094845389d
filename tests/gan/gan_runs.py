"""Helpers of tests of generator runs: short runs on digits, and how to compare two of them."""

import json

import pytest
import torch

from isda_repro.config import compose_generator
from isda_repro.gan.run import train_generator
from isda_repro.gan.trainer import GanTrainer

KINDS = ("wgan", "cgan", "acgan", "infogan")
SHORT = [
    *("dataset=digits", "dataset.train_limit=100", "gan.epochs=2", "gan.batch_size=10", "gan.game.width=16"),
    *("tracking=none", "compute.device=cpu"),
]
WGAN = [
    *("gan.game.settling_steps=3", "gan.game.settling_for=1", "gan.game.critic_steps=2"),
    *("gan.batch_size=5", "gan.classes=[7,1]"),
]


class Killed(BaseException):
    """Raised in place of SIGKILL; nothing catches it."""


def settings(kind, folder, *more):
    own = WGAN if kind == "wgan" else []
    return compose_generator([f"gan={kind}", *SHORT, *own, f"runs_dir={folder}", *more])


def outcome(folder):
    """Return weights, epochs without timing, and the last picture of a finished run."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["network"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{**line, "timing": None} for line in lines if line["kind"] == "epoch"]
    networks = [*state["generators"], *state["discriminators"]]
    picture = max((folder / "samples").iterdir()).read_bytes()
    return [tensor for network in networks for tensor in network.values()], epochs, picture


def assert_same(one, other):
    (tensors, *rest), (other_tensors, *other_rest) = outcome(one), outcome(other)
    assert rest == other_rest
    assert len(tensors) == len(other_tensors)
    assert all(map(torch.equal, tensors, other_tensors))


def killed_at(cfg, step, monkeypatch):
    """Run until the ``step``-th step is about to begin, and kill the run there."""
    original, count = GanTrainer._step, 0

    def fatal(self, *arguments):
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GanTrainer, "_step", fatal)
        with pytest.raises(Killed):
            train_generator(cfg)
