"""Runs with mixup on digits: they learn, resume bit for bit, and a loss that takes no mixed targets is refused."""

import json

import pytest
import torch
from interrupted_runs import assert_same, killed

from isda_repro.config import CONF_DIR, compose
from isda_repro.config.checks import ConfigError
from isda_repro.training.checkpoint import Saver
from isda_repro.training.run import run
from isda_repro.training.running_metrics import RunningMetrics

RUN = ["model=resnet20", "model.depth=8", "dataset=digits", "tracking=none", "compute.precision=fp32"]
SHORT = ["dataset.train_limit=100", "dataset.test_limit=50", "recipe.epochs=2", "recipe.batch_size=30"]
TAKE_MIXTURES = {"ce", "isda", "isda_constant", "isda_diagonal", "isda_identity", "isda_shared"}
OTHERS = sorted({path.stem for path in (CONF_DIR / "loss").glob("*.yaml")} - TAKE_MIXTURES)


@pytest.mark.parametrize("loss", ["ce", "isda", "isda_diagonal"])
def test_a_resumed_run_has_the_mixtures_of_an_uninterrupted_one(loss, tmp_path, monkeypatch):
    settings = [*RUN, *SHORT, f"loss={loss}", "recipe.mixup=0.4"]
    whole, interrupted = (compose([*settings, f"runs_dir={tmp_path / name}"]) for name in ("whole", "interrupted"))
    run(whole)
    interrupted.checkpoint.steps = 1
    killed(interrupted, monkeypatch, Saver, "step_taken", 6)  # in the second of four batches of epoch 2
    run(interrupted)
    assert_same(tmp_path / "whole" / whole.run_id, tmp_path / "interrupted" / interrupted.run_id)


def test_cross_entropy_learns_the_digits_from_mixtures(tmp_path):
    result = run(compose([*RUN, "recipe.epochs=4", "loss=ce", "recipe.mixup=0.2", f"runs_dir={tmp_path}"]))
    assert result.test_error_final < 15
    assert result.request["recipe"]["mixup"] == 0.2
    assert json.loads((tmp_path / result.run_id / "result.json").read_text())["request"]["recipe"]["mixup"] == 0.2


@pytest.mark.parametrize("loss", OTHERS)
def test_a_loss_that_takes_no_mixed_targets_is_refused_before_training(loss, tmp_path):
    cfg = compose([*RUN, *SHORT, f"loss={loss}", "recipe.mixup=0.4", f"runs_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=rf"recipe\.mixup=0\.4 .*loss={loss} "):
        run(cfg)
    assert not (tmp_path / cfg.run_id / "metrics.jsonl").exists()


def test_errors_are_counted_against_the_label_with_the_larger_share():
    metrics = RunningMetrics(torch.device("cpu"))
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]])
    metrics.add(torch.tensor(1.5), logits, targets, 0)
    metrics.count(3)
    assert metrics.means() == (1.5, pytest.approx(100 / 3))
