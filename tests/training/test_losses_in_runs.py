"""Every ``loss=`` in a run on digits: it trains, resumes bit for bit, and starts from the same weights."""

import math

import pytest
import torch
from interrupted_runs import assert_same, stopped_after

from isda_repro.config import CONF_DIR, compose
from isda_repro.config.checks import ConfigError
from isda_repro.training.run import run

LOSSES = sorted(path.stem for path in (CONF_DIR / "loss").glob("*.yaml"))
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=100", "dataset.test_limit=50"),
    *("recipe.epochs=2", "recipe.batch_size=50", "tracking=none", "compute.precision=fp32"),
]


@pytest.fixture
def settings(tmp_path):
    def composed(loss, folder, *more):
        return compose([*RUN, f"loss={loss}", f"runs_dir={tmp_path / folder}", *more])

    return composed


@pytest.mark.filterwarnings("error:.*(logits|did not change)")
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_trains_and_resumes_bit_for_bit(loss, settings, tmp_path, monkeypatch):
    whole, interrupted = settings(loss, "whole"), settings(loss, "interrupted", "checkpoint.steps=1")
    first = run(whole)
    stopped_after(interrupted, 3, monkeypatch)
    run(interrupted)
    assert_same(tmp_path / "whole" / whole.run_id, tmp_path / "interrupted" / interrupted.run_id)
    assert all(loss > 0 and math.isfinite(loss) for loss in first.curves["train_loss"])


def test_each_is_another_loss_from_the_same_start(settings):
    """The test loss is cross-entropy for all losses, and after an epoch of two steps it differs for each."""
    after = {}
    for loss in LOSSES:
        after[loss] = run(settings(loss, "runs", "recipe.epochs=1")).curves["test_loss"][0]
    assert len(set(after.values())) == len(LOSSES) > 10, after


@pytest.mark.parametrize("loss", ["ce", "isda"])
def test_weights_smoothing_and_prior_reach_the_loss(settings, loss):
    few = "recipe.epochs=1"
    options = [[], ["loss.weight=[1,2,3,4,5,6,7,8,9,10]"], ["loss.label_smoothing=0.1"]]
    options += [["dataset.imbalance=2"], ["dataset.imbalance=2", "loss.weight=balanced"]]
    options += [["loss.prior=10"]] if loss == "isda" else []
    found = [run(settings(loss, "runs", few, *option)).curves["train_loss"][0] for option in options]
    assert len(set(found)) == len(options), found
    with pytest.raises(ConfigError, match=r"weight=\[1, 2\] must be 10 numbers"):
        run(settings(loss, "runs", "loss.weight=[1,2]"))


def test_large_margin_trains_a_head_without_bias_and_the_file_of_another_run_starts_it(settings, tmp_path):
    one = "recipe.epochs=1"
    plain, margin = settings("ce", "runs", one), settings("large_margin", "runs", one)
    run(plain)
    run(margin)
    folder = tmp_path / "runs"
    state = torch.load(folder / margin.run_id / "checkpoint.pt", weights_only=True)
    assert "head.weight" in state["network"]
    assert "head.bias" not in state["network"]
    weights = folder / plain.run_id / "checkpoint.pt"
    run(settings("large_margin", "tuned", one, f"model.weights={weights}"))


def test_margin_of_no_whole_number_is_refused(settings):
    with pytest.raises(ConfigError, match=r"margin=2\.5"):
        run(settings("large_margin", "runs", "loss.margin=2.5"))
