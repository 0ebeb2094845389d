"""Whole runs on a GPU: captured steps equal eager ones, runs resume, and the host does not wait."""

import contextlib
import gc

import gan_runs
import pytest
import torch
import torch.distributed as dist
from interrupted_runs import NETWORKS, RESNET, assert_same, outcome, stopped_after

from isda_repro.config import CONF_DIR, build, compose
from isda_repro.errors import UserError
from isda_repro.gan.run import train_generator
from isda_repro.training.checkpoint import Checkpoints, Saver
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes
from isda_repro.training.run import build_trainer, run
from isda_repro.training.static_step import WARM_UP_STEPS

pytestmark = pytest.mark.gpu

RUN = [
    *("dataset=digits", "dataset.train_limit=60", "dataset.test_limit=20", "recipe.epochs=8", "recipe.batch_size=25"),
    "tracking=none",  # an epoch has two batches of 25 and one of 10; the rate drops in epochs 4 and 6
]
EXACT = ("compute.precision=fp32", "compute.tf32=false", "compute.deterministic=true")
EAGER = "compute.cuda_graph=false"
LOSSES = sorted({path.stem for path in (CONF_DIR / "loss").glob("*.yaml")} - {"isda_sampled"})


@pytest.fixture
def settings(tmp_path, device):
    """Return a function from a folder's name and overrides to a run's configuration."""

    def composed(folder, *more):
        where = "compute=gpu" if device.type == "cuda" else "compute=cpu"
        return compose([*RUN, where, *more, f"runs_dir={tmp_path / folder}"])

    return composed


def trained(settings, folder, *more):
    """Train a run, and return its result."""
    return run(settings(folder, *more))


def losses(result):
    return result.curves["train_loss"] + result.curves["test_loss"]


def test_a_run_captures_its_steps_and_says_so(settings, on_gpu):
    captured, eager = trained(settings, "captured", *RESNET), trained(settings, "eager", *RESNET, EAGER)
    (segment,) = captured.segments
    assert segment["device"] == ("cuda" if on_gpu else "cpu")
    assert "eager_because" not in segment
    assert ("eager_because" in eager.segments[0]) == on_gpu
    assert ("criterion" in captured.timing) != on_gpu
    assert captured.timing["peak_memory_mib"] > 0
    assert captured.curves["train_loss"][-1] < captured.curves["train_loss"][0]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_captured_run_equals_an_eager_one(settings, loss):
    """Disturbed labels, dropout, progress and the learning rate change from step to step, for 24 steps."""
    more = (f"loss={loss}", *RESNET, "model.dropout=0.2", *EXACT)
    captured, eager = trained(settings, "captured", *more), trained(settings, "eager", *more, EAGER)
    assert captured.curves["lr"] == eager.curves["lr"]
    assert losses(captured) == pytest.approx(losses(eager), rel=1e-5)


@pytest.mark.parametrize("loss", ["ce", "isda", "isda_diagonal"])
def test_a_captured_run_mixes_as_an_eager_one(settings, loss):
    more = (f"loss={loss}", *RESNET, *EXACT, "recipe.mixup=0.4", "recipe.epochs=4")
    captured, eager = trained(settings, "captured", *more), trained(settings, "eager", *more, EAGER)
    assert "eager_because" not in captured.segments[0]
    assert losses(captured) == pytest.approx(losses(eager), rel=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_family_of_networks_is_captured(settings, network):
    more = (*NETWORKS[network], *EXACT, "loss=isda", "recipe.epochs=3")
    captured, eager = trained(settings, "captured", *more), trained(settings, "eager", *more, EAGER)
    assert losses(captured) == pytest.approx(losses(eager), rel=1e-5)


def test_the_gpu_learns_what_a_cpu_learns(settings, tmp_path):
    more = (*RESNET, "loss=isda", "recipe.epochs=2")
    on_cpu = run(compose([*RUN, "compute=cpu", "compute.precision=fp32", *more, f"runs_dir={tmp_path / 'cpu'}"]))
    assert losses(trained(settings, "exact", *more, *EXACT)) == pytest.approx(losses(on_cpu), rel=1e-3)
    assert losses(trained(settings, "bf16", *more)) == pytest.approx(losses(on_cpu), rel=0.1)


@pytest.mark.parametrize("form", ["captured", "eager"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(settings, tmp_path, monkeypatch, form):
    more = (*RESNET, "loss=isda", "model.dropout=0.2", *EXACT, "checkpoint.steps=1", *([EAGER] * (form == "eager")))
    whole, stopped = settings("whole", *more), settings("stopped", *more)
    run(whole)
    stopped_after(stopped, 11, monkeypatch)
    run(stopped)
    assert_same(tmp_path / "whole" / whole.run_id, tmp_path / "stopped" / stopped.run_id)


@pytest.mark.parametrize("first", ["cpu", "gpu"])
def test_a_run_goes_on_on_another_device(settings, tmp_path, monkeypatch, first):
    more = (*RESNET, "loss=isda", *EXACT, "checkpoint.steps=1")
    here = settings("moved", *more)
    there = compose([*RUN, "compute=cpu", *more, f"runs_dir={tmp_path / 'moved'}"])
    begins, ends = (there, here) if first == "cpu" else (here, there)
    assert begins.run_id == ends.run_id
    stopped_after(begins, 11, monkeypatch)
    moved, whole = run(ends), trained(settings, "whole", *more)
    assert len(moved.segments) == 2
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-2)


@pytest.mark.parametrize("more", [("compute.micro_batch=7",), ("augmentation=autoaugment",), ("loss=isda_sampled",)])
def test_what_is_not_captured_trains_and_says_why(settings, on_gpu, more):
    result = trained(settings, "run", *RESNET, "recipe.epochs=2", *more)
    assert ("eager_because" in result.segments[0]) == on_gpu


def test_cutout_on_a_gpu_trains_as_on_a_cpu(settings, tmp_path):
    more = (*RESNET, "augmentation=cutout", "recipe.epochs=2")
    on_cpu = run(compose([*RUN, "compute=cpu", "compute.precision=fp32", *more, f"runs_dir={tmp_path / 'cpu'}"]))
    assert losses(trained(settings, "gpu", *more, *EXACT)) == pytest.approx(losses(on_cpu), rel=1e-3)


@pytest.mark.parametrize("form", ["captured", "eager"])
@pytest.mark.parametrize("loss", ["ce", "isda", "isda_diagonal"])
def test_the_host_never_waits_in_a_step(settings, device, no_waiting, loss, form):
    cfg = settings("run", *RESNET, f"loss={loss}", "recipe.epochs=40", *([EAGER] * (form == "eager")))
    compute = resolve_compute(cfg.compute)
    compute.apply()
    trainer = build_trainer(cfg, build(cfg.dataset.source), compute, SINGLE_PROCESS)
    trainer.network.train()
    trainer._set_rates(1)
    for epoch in (1, 2, 3):
        batches = trainer.batches(epoch, 0)
        for _ in range(trainer.train_batches.steps_per_epoch):
            batch = next(batches)  # the first one copies the epoch's numbers to the device
            quiet = trainer.step > WARM_UP_STEPS + 1 and trainer.step % 50
            with no_waiting() if quiet else contextlib.nullcontext():
                trainer.take_step(batch)
    assert trainer.step == 9


def test_a_group_of_one_rank_trains_as_a_process_alone(settings, device, tmp_path):
    """Covers the exchange of gradients, features, buffers and objects, by NCCL on a GPU."""
    more = (*RESNET, "loss=isda", "recipe.epochs=2", *EXACT)
    expected = trained(settings, "alone", *more, EAGER)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        processes = Processes(group=dist.group.WORLD)
        cfg = settings("one of one", *more)
        trainer = build_trainer(cfg, build(cfg.dataset.source), resolve_compute(cfg.compute), processes)
        assert trainer.eager_because is not None
        records = trainer.train([], None, Saver(Checkpoints(tmp_path), trainer.state_dict, processes=processes))
        assert processes.all_gather("word") == ["word"]
    finally:
        dist.destroy_process_group()
    assert [record.train_loss for record in records] == pytest.approx(expected.curves["train_loss"], rel=1e-4)


def test_too_little_memory_is_one_sentence(settings, on_gpu):
    if not on_gpu:
        pytest.skip("a CPU's memory cannot be limited here")
    gc.collect()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 100 * 2**20  # earlier tests leave workspaces; the step needs over 300 MiB
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(UserError, match=r"compute\.micro_batch"):
            trained(settings, "large", "model=resnet110", "dataset.train_limit=1400", "recipe.batch_size=1400")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_generators_train(tmp_path, on_gpu):
    cfg = gan_runs.settings("acgan", tmp_path, *(["compute.device=gpu"] if on_gpu else []))
    train_generator(cfg)
    tensors, epochs, _ = gan_runs.outcome(tmp_path / cfg.run_id)
    assert len(epochs) == 2
    assert all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())


def test_a_finished_run_is_on_the_cpu(settings, tmp_path):
    cfg = settings("run", *RESNET, "loss=isda", "recipe.epochs=1")
    run(cfg)
    tensors, _ = outcome(tmp_path / "run" / cfg.run_id)
    assert all(tensor.is_cpu for tensor in tensors.values())
