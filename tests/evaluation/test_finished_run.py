"""Loading of finished classifiers from their folders."""

import json
from pathlib import Path

import pytest
import torch

from isda_repro.config import compose, compose_generator, read_frozen, write_frozen
from isda_repro.errors import UserError
from isda_repro.evaluation import load_finished_run
from isda_repro.runs.records import as_json, read_metrics
from isda_repro.runs.to_wandb import finished_records
from isda_repro.training import run as running
from isda_repro.training.checkpoint import load, load_part
from isda_repro.training.running_metrics import covariance_summary

SMALL = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=100", "dataset.test_limit=50"),
    *("recipe.epochs=2", "tracking=none", "loss=isda"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run, and its trainer with everything that was in memory at the end."""
    cfg, kept = compose([*SMALL, f"runs_dir={tmp_path_factory.mktemp('runs')}"]), []
    original = running.build_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "build_trainer", lambda *parts: kept.append(original(*parts)) or kept[0])
        running.run(cfg)
    return Path(cfg.runs_dir) / cfg.run_id, kept[0]


def changed(folder, to, change):
    """Return a copy of a run's folder whose checkpoint has been changed."""
    to.mkdir()
    for name in ("config.yaml", "result.json"):
        (to / name).write_bytes((folder / name).read_bytes())
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, to / "checkpoint.pt")
    return to


def test_finished_classifier_is_what_was_in_memory(trained):
    folder, learner = trained
    found = load_finished_run(folder)
    assert (found.compute.precision, found.cfg.compute.tf32) == ("fp32", False)
    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, then = found.network.eval()(images), learner.network.eval()(images)
    assert torch.equal(ours.logits, then.logits)
    assert torch.equal(ours.features, then.features)
    for label in range(10):
        covariance = found.isda.class_covariance(label)
        assert covariance.any()
        assert torch.equal(covariance, learner.criterion.class_covariance(label))
    *_, last = read_metrics(folder / "metrics.jsonl")
    assert covariance_summary(found.criterion, found.network.head, (last.step - 1) / last.step) == last.covariances
    assert found.result.curves["covariances/ratio"][-1] == last.covariances["ratio"] > 0
    assert finished_records(folder).epochs[-1] == as_json(last), "the run can be sent to W&B"
    assert found.result.test_error_final == json.loads((folder / "result.json").read_text())["test_error_final"]
    assert (len(found.source.train), len(found.source.test)) == (100, 50)


def test_settings_that_need_a_gpu_are_left_out_where_a_finished_run_is_read(trained, tmp_path):
    folder = changed(trained[0], tmp_path / "changed", lambda state: None)
    cfg = read_frozen(folder / "config.yaml")
    cfg.compute.cuda_graph, cfg.loss.kernels = True, True
    write_frozen(cfg, folder / "config.yaml")
    found = load_finished_run(folder, device="cpu")
    assert found.isda.class_covariance(0).any()


def test_folder_that_is_not_of_a_finished_classifier_is_refused(trained, tmp_path):
    folder, _ = trained
    whole = changed(folder, tmp_path / "whole", lambda state: None)
    for name in ("result.json", "checkpoint.pt", "config.yaml"):
        (whole / name).unlink()
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_finished_run(whole)
    few = ["dataset.train_limit=100", "gan.batch_size=10", "tracking=none", f"runs_dir={tmp_path}"]
    cfg = compose_generator(["gan=cgan", "dataset=digits", *few])
    (tmp_path / cfg.run_id).mkdir()
    write_frozen(cfg, tmp_path / cfg.run_id / "config.yaml")
    with pytest.raises(UserError, match=cfg.run_id):
        load_finished_run(tmp_path / cfg.run_id)
    with pytest.raises(UserError, match="tpu"):
        load_finished_run(folder, device="tpu")


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (lambda state: state.pop("criterion"), "criterion"),
        (lambda state: state["criterion"].pop("statistics.mean"), r"statistics\.mean"),
        (lambda state: state["criterion"].update({"statistics.mean": torch.zeros(3, 3)}), r"statistics\.mean"),
        (lambda state: state["criterion"]["statistics.covariance"].fill_(float("nan")), "changed"),
    ],
)
def test_statistics_that_are_not_there_or_not_finite_are_refused(trained, tmp_path, change, token):
    folder = changed(trained[0], tmp_path / "changed", change)
    found = load_finished_run(folder)
    with pytest.raises(UserError, match=token) as caught:
        _ = found.isda
    assert str(folder / "checkpoint.pt") in str(caught.value)


def test_one_part_of_a_checkpoint_is_read_without_the_others(trained, tmp_path):
    folder = changed(trained[0], tmp_path / "changed", lambda state: None)
    path = folder / "checkpoint.pt"
    part, whole = load_part(path, "criterion")["statistics.covariance"].numpy().tobytes()[:64], path.read_bytes()
    assert whole.count(part) == 1
    path.write_bytes(whole.replace(part, bytes(64)))
    assert load_part(path, "data")["classes"] == list("0123456789")
    assert load_part(path, "nothing") is None
    for damaged in (lambda: load(path), lambda: load_part(path, "criterion")):
        with pytest.raises(UserError, match=str(path)):
            damaged()


def test_covariances_of_another_loss_are_refused(trained, tmp_path):
    cfg = compose([*SMALL, "loss=ce", "recipe.epochs=1", f"runs_dir={tmp_path}"])
    running.run(cfg)
    with pytest.raises(UserError, match="loss=ce"):
        _ = load_finished_run(tmp_path / cfg.run_id).isda
