"""The step that a CUDA graph captures, run without a graph: the same bits as the ordinary step."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from interrupted_runs import NETWORKS, RESNET, assert_same, outcome, stopped_after

from isda_repro.config import CONF_DIR, build, compose
from isda_repro.errors import UserError
from isda_repro.training import session
from isda_repro.training.checkpoint import Checkpoints, Saver
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.run import build_trainer, run
from isda_repro.training.static_step import StaticStep
from isda_repro.training.trainer import DivergedError

RUN = [
    *("dataset=digits", "dataset.train_limit=60", "dataset.test_limit=20", "recipe.epochs=2", "recipe.batch_size=25"),
    *("tracking=none", "compute.precision=fp32"),  # an epoch has two batches of 25 and one of 10
]
EAGER = {"isda_sampled"}
LOSSES = sorted({path.stem for path in (CONF_DIR / "loss").glob("*.yaml")} - EAGER)


def resolved(*arguments):
    return replace(resolve(*arguments), cuda_graph=True)


resolve = session.resolve_compute


@pytest.fixture
def static(monkeypatch):
    """Make runs take static steps; return the list of steps taken."""
    steps, take = [], StaticStep.take

    def counted(self, numbers, progress, step):
        steps.append(step)
        take(self, numbers, progress, step)

    monkeypatch.setattr(session, "resolve_compute", resolved)
    monkeypatch.setattr(StaticStep, "take", counted)
    return steps


def settings(folder, *more):
    return compose([*RUN, f"runs_dir={folder}", *more])


def both(tmp_path, monkeypatch, static, *more):
    """Return the folders of a run with static and with ordinary steps; the short last batch is always ordinary."""
    cfg, other = settings(tmp_path / "static", *more), settings(tmp_path / "ordinary", *more)
    run(cfg)
    assert static == [0, 1, 3, 4]
    monkeypatch.setattr(session, "resolve_compute", resolve)
    run(other)
    assert len(static) == 4
    return tmp_path / "static" / cfg.run_id, tmp_path / "ordinary" / other.run_id


@pytest.mark.parametrize("network", NETWORKS)
def test_every_family_of_networks_has_the_bits_of_ordinary_steps(tmp_path, monkeypatch, static, network):
    assert_same(*both(tmp_path, monkeypatch, static, "loss=isda", *NETWORKS[network]))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_the_bits_of_ordinary_steps(tmp_path, monkeypatch, static, loss):
    more = ("loss.truncation=0.1",) if loss == "lq" else ()
    assert_same(*both(tmp_path, monkeypatch, static, f"loss={loss}", *RESNET, *more))


@pytest.mark.parametrize(
    "more",
    [
        ("augmentation=baseline", "augmentation.padding=1", "augmentation.flip=true"),
        ("augmentation=cutout", "augmentation.cutout.length=3"),
        ("compute.channels_last=false", "augmentation.padding=1"),
        ("recipe.passes=2", "faithful=official"),
        ("loss=isda", "loss.weight=[1,2,3,4,5,6,7,8,9,10]", "loss.label_smoothing=0.1"),
        ("recipe.mixup=0.4", "loss=isda", "augmentation=cutout", "augmentation.cutout.length=3"),
    ],
)
def test_every_way_to_make_a_batch_has_the_bits_of_ordinary_steps(tmp_path, monkeypatch, static, more):
    cfg, other = (settings(tmp_path / name, *RESNET, *more) for name in ("static", "ordinary"))
    run(cfg)
    assert static
    monkeypatch.setattr(session, "resolve_compute", resolve)
    run(other)
    assert_same(tmp_path / "static" / cfg.run_id, tmp_path / "ordinary" / other.run_id)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_form_of_accelerators_has_the_numbers_of_ordinary_steps(tmp_path, monkeypatch, static, loss):
    """Shapes must not depend on values where a graph is compiled; compared in float32 over six steps."""
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        cfg = settings(tmp_path / "static", f"loss={loss}", *RESNET)
        run(cfg)
    monkeypatch.setattr(session, "resolve_compute", resolve)
    run(settings(tmp_path / "ordinary", f"loss={loss}", *RESNET))
    found, expected = (outcome(tmp_path / name / cfg.run_id) for name in ("static", "ordinary"))
    for one, other in zip(found[1], expected[1], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-5)
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, expected[0][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, static, step):
    more = (*RESNET, "loss=isda", "model.dropout=0.2", "checkpoint.steps=1")
    cfg, other = (settings(tmp_path / name, *more) for name in ("whole", "stopped"))
    run(cfg)
    stopped_after(other, step, monkeypatch)
    run(other)
    assert_same(tmp_path / "whole" / cfg.run_id, tmp_path / "stopped" / other.run_id)


@pytest.mark.parametrize(
    "more",
    [
        ("loss=isda_sampled",),
        ("compute.micro_batch=5",),
        ("augmentation=autoaugment",),
    ],
)
def test_what_cannot_be_captured_takes_ordinary_steps_and_is_refused_where_it_must(tmp_path, static, more):
    cfg = settings(tmp_path, *RESNET, *more)
    run(cfg)
    assert static == []
    cfg.compute.cuda_graph, cfg.run_id = True, "wanted"
    with pytest.raises(UserError, match=r"compute\.cuda_graph=true"):
        run(cfg)
    assert not (tmp_path / "wanted").exists()


def test_a_graph_without_a_gpu_is_refused_and_the_option_renames_no_run(tmp_path):
    cfg = settings(tmp_path, *RESNET)
    assert settings(tmp_path, *RESNET, "compute.cuda_graph=false").run_id == cfg.run_id
    with pytest.raises(UserError, match=r"compute\.cuda_graph"):
        run(settings(tmp_path, *RESNET, "compute.cuda_graph=true"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cause", "raised"),
    [(RuntimeError("a host copy is not permitted"), UserError), (RuntimeError("CUDA out of memory"), RuntimeError)],
)
def test_a_capture_that_fails_says_why_and_not_how_it_ended(monkeypatch, cause, raised):
    @contextmanager
    def graph(*arguments, **options):
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def run():
        raise cause

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    step = StaticStep(None, None, [], torch.device("cpu"))
    monkeypatch.setattr(step, "_run", run)
    with pytest.raises(raised, match=str(cause)):
        step._captured()


def test_a_loss_that_is_no_longer_finite_ends_a_static_run_at_the_step_of_an_ordinary_one(
    tmp_path, monkeypatch, static
):
    more, said = (*RESNET, "recipe.lr=1e30"), []
    for name in ("static", "ordinary"):
        with pytest.raises(DivergedError) as caught:
            run(settings(tmp_path / name, *more))
        said.append(str(caught.value))
        monkeypatch.setattr(session, "resolve_compute", resolve)
    assert static
    assert said[0] == said[1]


def test_a_rate_in_a_tensor_follows_the_schedule_in_its_place_and_is_a_number_in_checkpoints(tmp_path):
    """On a GPU a captured step reads the rate from a tensor, which must also survive loading a checkpoint."""
    trainers = []
    for _ in range(2):
        cfg = settings(tmp_path, *RESNET, "recipe.epochs=8")
        trainer = build_trainer(cfg, build(cfg.dataset.source), resolve(cfg.compute), SINGLE_PROCESS)
        (group,) = trainer.optimizer.param_groups
        group["lr"] = torch.tensor(group["lr"])
        trainers.append((trainer, group["lr"]))
    (trained, rate), (resumed, place) = trainers
    trained.train([], None, Saver(Checkpoints(tmp_path), trained.state_dict))
    assert trained.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(cfg.recipe.lr / 100), "it has dropped twice"
    state = trained.state_dict()
    assert isinstance(state["optimizer"]["param_groups"][0]["lr"], float)
    resumed.load_state_dict(state, [])
    assert resumed.optimizer.param_groups[0]["lr"] is place
