"""Whole runs on digits, as a user starts them."""

import errno
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from interrupted_runs import FILES, RUN, assert_same
from together import trainer_of

from isda_repro import revision
from isda_repro.config import build, compose, run_command_line
from isda_repro.data import DataError
from isda_repro.errors import UserError
from isda_repro.losses import CrossEntropy
from isda_repro.models import ResNet
from isda_repro.runs.exit_status import read_exit_status
from isda_repro.runs.records import CLASS_ERRORS, EpochRecord, SegmentRecord, read_metrics, read_result
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import FoundDiverged, results_of_runs
from isda_repro.training import session
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.run import build_trainer, run, summary
from isda_repro.training.trainer import DivergedError, Trainer

TINY = ["model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=200", "recipe.epochs=2"]
QUIET = ["tracking=none", "compute.precision=fp32"]


def settings(tmp_path, *more):
    return compose([*TINY, *QUIET, f"runs_dir={tmp_path}", *more])


def weights(tmp_path, cfg):
    return torch.load(tmp_path / cfg.run_id / "checkpoint.pt", weights_only=True)


def test_run_leaves_its_directory_complete(tmp_path):
    cfg = settings(tmp_path, "loss=isda", "recipe.epochs=12")
    result = run(cfg)
    folder = tmp_path / cfg.run_id
    assert {path.name for path in folder.iterdir()} == FILES
    assert read_result(folder / "result.json") == result
    segment, *epochs = read_metrics(folder / "metrics.jsonl")
    assert isinstance(segment, SegmentRecord)
    assert segment.precision == "fp32"
    assert all(isinstance(epoch, EpochRecord) for epoch in epochs)
    errors = [epoch.test_error for epoch in epochs]
    assert [epoch.epoch for epoch in epochs] == list(range(1, 13))
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.05] * 5 + [0.005] * 4 + [0.0005] * 3), "drops in 6 and 10"
    assert epochs[-1].train_loss < 0.7 * epochs[0].train_loss
    assert result.curves["test_error"] == errors
    assert result.test_error_last10 == pytest.approx(sum(errors[2:]) / 10)
    assert result.test_error_final == errors[-1]
    assert result.test_error_best == min(errors)
    assert result.curves["test_top5_error"] == [epoch.test_top5_error for epoch in epochs]
    assert result.test_top5_error_final == epochs[-1].test_top5_error < epochs[-1].test_error
    assert result.steps == epochs[-1].step == 12 * 4
    assert (result.epochs, result.feature_dim, result.parameters) == (12, 64, count(ResNet(8, num_classes=10)))
    assert (result.evaluated_on, result.train_images, result.test_images) == ("test", 200, 360)
    provenance = json.loads((folder / "environment.json").read_text())
    assert provenance["versions"]["torch"] == version("torch")
    assert result.environment.items() <= provenance.items()
    state = weights(tmp_path, cfg)
    assert state["criterion"]["statistics.count"].sum() == 12 * 200
    assert str(tmp_path) not in (folder / "result.json").read_text(), "a result is committed: no machine's paths in it"


def test_long_tailed_run_has_the_errors_of_its_groups_of_classes(tmp_path):
    long = ["dataset.train_limit=null", "dataset.imbalance=10"]
    cfg = settings(tmp_path, *long, "recipe=long_tail", "recipe.epochs=2", "recipe.batch_size=64")
    result = run(cfg)
    assert read_result(tmp_path / cfg.run_id / "result.json") == result
    *_, last = read_metrics(tmp_path / cfg.run_id / "metrics.jsonl")
    source = build(cfg.dataset.source)
    assert result.train_images == sum(source.train_counts)
    groups = [sum(a < n <= b for n in source.train_counts) for a, b in ((100, 1e9), (19, 100), (0, 19))]
    assert sum(groups) == 10
    assert min(groups) >= 2
    trainer = build_trainer(cfg, source, resolve_compute(cfg.compute), SINGLE_PROCESS)
    trainer.network.load_state_dict(weights(tmp_path, cfg)["network"])
    trainer.network.eval()
    ((images, targets),) = trainer.test_batches.epoch(0)
    with torch.inference_mode():
        wrong = trainer.network(images).logits.argmax(1) != targets
    errors = [100 * wrong[targets == label].double().mean().item() for label in range(10)]
    split = [errors, *(errors[a:b] for a, b in ((0, groups[0]), (groups[0], 10 - groups[2]), (10 - groups[2], 10)))]
    assert len(CLASS_ERRORS) == 4
    for name, members in zip(CLASS_ERRORS, split, strict=True):
        mean = pytest.approx(sum(members) / len(members))
        assert getattr(result, f"{name}_final") == getattr(last, name) == result.curves[name][-1] == mean, name
    many, medium, few = (f"{sum(members) / len(members):.2f}%" for members in split[1:])
    assert summary(result).endswith(f", final many-shot {many}, final medium-shot {medium}, final few-shot {few}")
    assert result.curves["lr"] == pytest.approx([0.02, 0.1 * 2 / 5 * 0.01**2]), "milestones in epoch 2"


def test_run_of_balanced_classes_has_no_errors_of_groups(tmp_path):
    result = run(settings(tmp_path, "dataset.train_limit=100", "recipe.epochs=1"))
    assert result.test_class_error_final is None
    assert "shot" not in summary(result)
    assert not {*CLASS_ERRORS} & {*result.curves}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_ce_and_isda_of_one_seed_are_paired(tmp_path):
    """Initial weights and batches are the same, so that ISDA with lambda_0 = 0 equals CE in each step."""
    ce, isda = settings(tmp_path, "loss=ce"), settings(tmp_path, "loss=isda", "loss.lambda_0=0")
    other = settings(tmp_path, "loss=ce", "seed=1")
    for cfg in (ce, isda, other):
        run(cfg)
    first, second, third = (weights(tmp_path, cfg)["network"] for cfg in (ce, isda, other))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-5, msg=key)
    assert not torch.allclose(first["head.weight"], third["head.weight"])


@pytest.mark.parametrize("kind", ["iteration", "epoch"])
def test_progress_moves_by_iteration_or_by_epoch(tmp_path, monkeypatch, kind):
    seen, forward = [], CrossEntropy.forward

    def watched(self, *arguments, progress, **options):
        seen.append(progress)
        return forward(self, *arguments, progress=progress, **options)

    monkeypatch.setattr(CrossEntropy, "forward", watched)
    run(settings(tmp_path, *(["faithful.progress=epoch"] if kind == "epoch" else [])))
    by_iteration = [step / 8 for step in range(8)]
    assert seen == pytest.approx(by_iteration if kind == "iteration" else [0.0] * 4 + [0.5] * 4)


def test_rates_of_all_groups_follow_the_schedule(tmp_path):
    trainer = trainer_of("center", SINGLE_PROCESS, epochs=2)
    initial = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    seen = []

    class Watching:
        def step_taken(self, _step):
            seen.append([group["lr"] for group in trainer.optimizer.param_groups])

        def epoch_ended(self):
            """Save nothing."""

        stop_if_asked = epoch_ended

    records = trainer.train([], None, Watching())
    assert seen == [initial] * 3 + [[rate / 2 for rate in initial]] * 3
    assert [record.lr for record in records] == [0.3, 0.15]
    assert trainer.images_done == 2 * 22


@pytest.mark.parametrize("message", ["can't allocate memory: you tried to allocate 9 bytes", "bad_alloc", None])
def test_out_of_memory_says_what_to_set_and_another_error_is_a_defect(tmp_path, monkeypatch, message):
    def full(*arguments, **options):
        raise RuntimeError(message or "a defect")

    monkeypatch.setattr(ResNet, "forward_features", full)
    cfg = settings(tmp_path)
    with pytest.raises(UserError if message else RuntimeError) as error:
        run(cfg)
    assert ("compute.micro_batch=32" if message else "defect") in str(error.value)
    assert isinstance(error.value, UserError) == bool(message)
    assert read_exit_status(tmp_path / cfg.run_id).exit_code == (2 if message else 1)


def test_loss_that_is_not_finite_stops_at_once_and_writes_no_weights(tmp_path):
    cfg = settings(tmp_path, "recipe.lr=1e30")
    with pytest.raises(DivergedError, match=r"1e\+30"):
        run(cfg)
    folder = tmp_path / cfg.run_id
    assert not (folder / "checkpoint.pt").exists()
    assert not (folder / "result.json").exists()
    assert read_exit_status(folder).exit_code == 2
    (found,) = results_of_runs(tmp_path)
    assert isinstance(found, FoundDiverged)
    assert (found.run.epoch, found.run.step, found.run.reason) == (1, 1, "the loss is no longer finite")


@pytest.fixture
def diverged(tmp_path, monkeypatch):
    """Return the configuration of a run that has diverged in epoch 2."""

    def stop(trainer):
        if trainer.step > trainer.train_batches.steps_per_epoch:
            raise trainer._diverged("the loss is no longer finite")

    cfg = settings(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_stop_if_diverged", stop)
        with pytest.raises(DivergedError):
            run(cfg)
    return cfg


def test_run_that_is_continued_has_no_longer_diverged(tmp_path, diverged):
    index = index_results(results_of_runs(tmp_path))
    assert index.diverged[diverged.run_id].run.epoch == 2
    assert index.problems == [], "its settings are those of its run id"
    result = run(diverged)
    assert not (tmp_path / diverged.run_id / "diverged.json").exists()
    assert [segment["step"] for segment in result.segments] == [0, result.steps // result.epochs]


def test_launch_that_is_refused_leaves_the_record_that_the_run_diverged(tmp_path, diverged, monkeypatch):
    monkeypatch.setattr(session, "check_same_data", Mock(side_effect=DataError("other data")))
    with pytest.raises(DataError):
        run(diverged)
    assert len(index_results(results_of_runs(tmp_path)).diverged) == 1


def test_full_disk_hides_no_divergence(tmp_path, monkeypatch, capfd):
    def fail(path, record):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(session, "write_result", fail)
    cfg = settings(tmp_path, "recipe.lr=1e30")
    with pytest.raises(DivergedError):
        run(cfg)
    assert "No space left" in capfd.readouterr().err
    assert "no longer finite" in read_exit_status(tmp_path / cfg.run_id).said


@pytest.mark.parametrize(
    ("overrides", "token"),
    [
        (["recipe.batch_size=5000"], "200"),
        (["dataset.train_limit=99999"], "1437"),
        (["compute=gpu"], "compute.device=gpu"),
        (["synthetic=acgan"], "acgan-digits-s0-"),
        (["dataset=cifar10", "data_dir={}"], "cifar-10-batches-py"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path, monkeypatch, overrides, token):
    for name in ("http_proxy", "https_proxy"):  # block the network
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=token):
        run(settings(tmp_path, *(override.format(tmp_path) for override in overrides)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_last_batch_of_one_image_is_refused_before_training(tmp_path):
    resnet50 = ["model=resnet50", "dataset=digits", "recipe.epochs=1", "recipe.batch_size=4", f"runs_dir={tmp_path}"]
    with pytest.raises(UserError, match="9 images in batches of 4"):
        run(compose([*resnet50, *QUIET, "dataset.train_limit=9", "dataset.test_limit=8"]))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="/dev/null/"):
        run(settings(Path("/dev/null")))


def test_result_of_another_run_or_a_damaged_one_is_not_taken_for_ones_own(tmp_path):
    cfg, other = settings(tmp_path, "recipe.epochs=1"), settings(tmp_path, "recipe.epochs=1", "seed=1")
    run(cfg)
    (tmp_path / cfg.run_id).rename(tmp_path / other.run_id)
    with pytest.raises(UserError, match=rf"result\.json.*{cfg.run_id}"):
        run(other)
    (tmp_path / other.run_id / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json"):
        run(other)


def test_holdout_micro_batches_and_bf16_are_recorded(tmp_path):
    more = ("dataset.holdout=137", "compute.micro_batch=20", "compute.precision=bf16", "loss=isda")
    result = run(settings(tmp_path, *more))
    assert (result.evaluated_on, result.test_images, result.train_images) == ("holdout", 137, 200)
    assert result.segments[0]["precision"] == "bf16"
    assert result.segments[0]["world_size"] == 1


@pytest.mark.slow
def test_short_training_reaches_a_low_error(tmp_path):
    """Half the recipe's epochs; over seeds 0-3 CE reached 1.1-4.4% and ISDA 1.7-1.9%, with seed 1 1.4% and 1.7%."""
    both = ["dataset=digits", "model=resnet20", "recipe.epochs=15", "seed=1", f"runs_dir={tmp_path}", *QUIET]
    for loss in ("ce", "isda"):
        assert run(compose([*both, f"loss={loss}"])).test_error_final < 4.0


def test_run_says_that_its_revision_is_unknown(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(revision, "ROOT", tmp_path)
    result = run(settings(tmp_path))
    assert (result.environment["git_revision"], result.environment["git_clean"]) == (None, None)
    assert sum("make revision" in line for line in capfd.readouterr().err.splitlines()) == 1
    (tmp_path / "revision.json").write_text(json.dumps(RECORDED))
    recorded = run(settings(tmp_path, "seed=1"))
    assert recorded.environment["git_revision"] == recorded.segments[0]["git_revision"] == RECORDED["git_revision"]
    assert "make revision" not in capfd.readouterr().err


RECORDED = {"git_revision": "a" * 40, "git_clean": True, "git_diff": "", "code": "of other files"}


KILLED = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from interrupted_runs import before_call
from isda_repro.training.checkpoint import Saver

class Patch:
    setattr = staticmethod(setattr)

before_call(Patch, Saver, "step_taken", 6, lambda: os.kill(os.getpid(), signal.SIGKILL))
program, *sys.argv = sys.argv[1], *sys.argv[1:]
runpy.run_path(program, run_name="__main__")
"""


def test_command_that_was_killed_goes_on_from_its_frozen_file(root, tmp_path, undisturbed):
    """Real processes are used; they must leave no file in their working directory."""
    here = tmp_path / "here"
    here.mkdir()
    options = {"cwd": here, "capture_output": True, "text": True, "timeout": 300}
    options["env"] = {**os.environ, "PYTHONPATH": str(root)}
    arguments = [root / "train.py", *RUN, f"runs_dir={tmp_path}", "checkpoint.steps=1"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / undisturbed.name
    assert (folder / "owner.json").exists()
    done = subprocess.run([sys.executable, root / "train.py", folder / "config.yaml"], **options)
    assert done.returncode == 0, done.stderr
    assert_same(folder, undisturbed)
    first, second = read_result(folder / "result.json").segments
    assert (first["step"], second["step"] in (4, 5)) == (0, True), "the last that was whole on the disk"
    assert list(here.iterdir()) == []


def test_frozen_file_takes_no_further_settings(undisturbed, capsys):
    with pytest.raises(SystemExit) as left:
        run_command_line([str(undisturbed / "config.yaml"), "seed=1"], pytest.fail, pytest.fail)
    assert left.value.code == 2
    assert "seed=1" in capsys.readouterr().err


WITHOUT_TORCH = """
import runpy, sys
sys.argv[:] = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("torch was imported" if "torch" in sys.modules else "")
"""


@pytest.mark.parametrize(("argument", "code", "token"), [("--help", 0, "loss=isda"), ("recipee=3", 2, "recipee")])
def test_help_and_mistakes_come_before_torch_is_imported(root, argument, code, token):
    command = [sys.executable, "-c", WITHOUT_TORCH, argument]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert "torch was imported" not in done.stdout
    assert token in (done.stderr if code else done.stdout)
    assert len(done.stderr.splitlines()) == (1 if code else 0)
    assert done.stderr.startswith("error: ") == bool(code)
