"""train.py as several processes: stopped, resumed by more or fewer, and what goes wrong told once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interrupted_runs import RUN, assert_same, settings

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.tables.ending import read_ending
from isda_repro.training.compute import refuse_differences, resolve
from isda_repro.training.joining import joined
from isda_repro.training.processes import Processes
from isda_repro.training.run import run

ROOT = Path(__file__).resolve().parents[2]


class Launch:
    """The processes of one run, as torchrun starts them."""

    def __init__(self, runs_dir, *more, world=2, **variables):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "train.py", *RUN, f"runs_dir={runs_dir}", *more]
        common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.folder = runs_dir / compose([*RUN, *more]).run_id
        self.ranks = []
        for rank in range(world):
            several = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
            self.ranks.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **common, **several, **variables},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def until_training(self):
        deadline = time.monotonic() + 60
        while not list(self.folder.glob("checkpoint-*.pt")):
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in self.ranks), self.end()
            time.sleep(0.01)
        return self

    def end(self):
        """Exit code and what was said on both streams, of each."""
        said = [rank.communicate(timeout=120) for rank in self.ranks]
        return [(rank.returncode, out, err) for rank, (out, err) in zip(self.ranks, said, strict=True)]


def segments(folder):
    return json.loads((folder / "result.json").read_text())["segments"]


LONG = ("recipe.epochs=40", "checkpoint.steps=1")


@pytest.mark.slow
def test_all_stop_after_the_step_at_which_one_is_asked_and_another_number_of_processes_goes_on(tmp_path):
    several = Launch(tmp_path / "shrinks", *LONG).until_training()
    several.ranks[1].send_signal(signal.SIGTERM)
    (first, _, said), (second, out, nothing) = several.end()
    assert (first, second) == (75, 75)
    assert "SIGTERM: stopped and saved after step " in said
    assert out == nothing == "", "one talks for all"
    assert read_ending(several.folder).is_stop
    one = Launch(tmp_path / "shrinks", *LONG, world=1)

    alone = Launch(tmp_path / "grows", *LONG, world=1).until_training()
    alone.ranks[0].send_signal(signal.SIGTERM)
    assert [code for code, *_ in alone.end()] == [75]
    assert [code for code, *_ in one.end()] == [0]
    grown = Launch(tmp_path / "grows", *LONG)
    assert [code for code, *_ in grown.end()] == [0, 0]

    for folder, worlds in ((several.folder, [2, 1]), (alone.folder, [1, 2])):
        assert [segment["world_size"] for segment in segments(folder)] == worlds
        assert 0 == segments(folder)[0]["step"] < segments(folder)[1]["step"] < 160
        epochs = [line for line in map(json.loads, (folder / "metrics.jsonl").open()) if line["kind"] == "epoch"]
        assert [epoch["step"] for epoch in epochs] == [4 * epoch for epoch in range(1, 41)]
        assert epochs[-1]["train_error"] < 20
        assert read_ending(folder) is None


def test_a_finished_run_is_not_run_twice_and_two_processes_give_the_same_bits_each_time(tmp_path):
    outcomes = [Launch(tmp_path / str(number)) for number in range(2)]
    for launch in outcomes:
        assert [code for code, *_ in launch.end()] == [0, 0]
    assert_same(outcomes[0].folder, outcomes[1].folder)
    before = (outcomes[0].folder / "result.json").stat().st_mtime
    (first, out, _), (second, silence, _) = Launch(tmp_path / "0").end()
    assert (first, second) == (0, 0)
    assert "is already done: test error" in out
    assert silence == ""
    assert (outcomes[0].folder / "result.json").stat().st_mtime == before


def test_a_killed_process_takes_the_others_down_and_its_run_goes_on(tmp_path):
    launch = Launch(tmp_path, *LONG).until_training()
    launch.ranks[0].kill()
    begin = time.monotonic()
    _, (code, _, said) = launch.end()
    assert time.monotonic() - begin < 10
    assert code == 2
    (sentence,) = (line for line in said.splitlines() if line.startswith("error"))
    assert sentence.startswith("error: rank 1 of 2 has lost contact to another rank")
    assert "Traceback" not in said
    assert "lost contact" in read_ending(launch.folder).said
    assert [code for code, *_ in Launch(tmp_path, *LONG).end()] == [0, 0]
    assert len(segments(launch.folder)) == 2


def test_a_loss_that_is_not_finite_is_one_sentence_of_each(tmp_path):
    launch = Launch(tmp_path, "recipe.lr=1e30")
    for code, _, said in launch.end():
        assert code == 2
        errors = [line for line in said.splitlines() if "error: " in line]
        assert len(errors) == 1
        assert "no longer finite" in errors[0] or "lost contact" in errors[0]
    assert not list(launch.folder.glob("checkpoint*"))
    assert "no longer finite" in read_ending(launch.folder).said


def test_common_batch_normalisation_needs_gpus(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there are some")
    for code, _, said in Launch(tmp_path, "compute.sync_bn=true").end():
        assert code == 2
        assert "error: compute.sync_bn=true needs GPUs" in said
    assert not list(tmp_path.iterdir()), "the run's folder has not been touched"


def test_half_of_torchruns_variables_are_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(UserError, match=r"WORLD_SIZE=2, but RANK, LOCAL_RANK, .* is not set: start several"),
        joined(1),
    ):
        pass


def test_processes_that_would_calculate_differently_are_refused():
    mine = resolve({**compose(["dataset=digits"]).compute, "precision": "fp32"})

    class Another(Processes):
        def told_to_all(self, thing):
            return [thing, {**thing, "precision": "bf16"}]

    with pytest.raises(UserError, match=r"compute\.precision became fp32 on rank 0 and bf16 on rank 1"):
        refuse_differences(mine, Another())
    refuse_differences(mine, Processes())


def test_how_a_run_ended_is_noted_until_somebody_works_on_it(tmp_path, monkeypatch):
    cfg = settings(tmp_path, "recipe.lr=1e30")
    with pytest.raises(UserError, match="no longer finite"):
        run(cfg)
    assert read_ending(tmp_path / cfg.run_id).exit_code == 2

    def defect(*arguments, **options):
        raise KeyError("a defect")

    monkeypatch.setattr("isda_repro.training.trainer.compute_gradients", defect)
    with pytest.raises(KeyError):
        run(cfg)
    assert read_ending(tmp_path / cfg.run_id) == (1, "KeyError: 'a defect'")
    monkeypatch.undo()
    fine = settings(tmp_path)
    run(fine)
    assert read_ending(tmp_path / fine.run_id) is None


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("loss", ["ce", "isda", "center"])
def test_two_gpus_with_common_batch_normalisation_train_as_one(tmp_path, loss):
    """By NCCL; 200 images in batches of 64, the last of 8."""
    exact = ("compute=gpu", "compute.precision=fp32", "compute.tf32=false", "compute.deterministic=true")
    asked = (*exact, f"loss={loss}", "model.dropout=0", "recipe.epochs=2")
    one = Launch(tmp_path / "one", *asked, world=1, CUDA_VISIBLE_DEVICES="0")
    assert [code for code, *_ in one.end()] == [0]
    two = Launch(tmp_path / "two", *asked, "compute.sync_bn=true")
    assert [code for code, *_ in two.end()] == [0, 0]
    curves = [json.loads((launch.folder / "result.json").read_text())["curves"] for launch in (one, two)]
    assert curves[1]["train_loss"] == pytest.approx(curves[0]["train_loss"], rel=1e-3)
    assert curves[1]["test_loss"] == pytest.approx(curves[0]["test_loss"], rel=1e-2)
