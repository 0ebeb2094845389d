"""Runs of several processes: stops, resumption by more or fewer processes, and errors, which are reported once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from interrupted_runs import RUN, STEPS, STEPS_PER_EPOCH, assert_same, settings, steps_of_segments, stopped_after

from isda_repro.runs.exit_status import read_exit_status
from isda_repro.training.run import run

ROOT = Path(__file__).resolve().parents[2]


class Launch:
    """Several processes of one command, whose store is in this process, as torchrun's is in torchrun."""

    def __init__(self, *command, world=2, **variables):
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env={**os.environ, **common, **several, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
            for several in [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}]
        ]

    def end(self):
        """Return exit code, standard output and standard error of each process, after it has ended."""
        said = [rank.communicate(timeout=300) for rank in self.ranks]
        return [(rank.returncode, out, err) for rank, (out, err) in zip(self.ranks, said, strict=True)]


PLAN = [  # folder, settings, a signal (0: none), the rank that gets it, the step before whose end it comes
    ("whole", [], 0, 0, 0),
    ("stopped", [], signal.SIGTERM, 1, 6),
    ("stopped", [], 0, 0, 0),
    ("stopped", [], 0, 0, 0),
    ("grows", [], 0, 0, 0),
    ("diverges", ["recipe.lr=1e30"], 0, 0, 0),
    ("normalises", ["compute.sync_bn=true"], 0, 0, 0),
    ("shrinks", [], signal.SIGTERM, 0, 6),
    ("killed", ["checkpoint.steps=1"], signal.SIGKILL, 0, 6),
]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Return the folder of the runs, and the outcomes of both processes."""
    folder = tmp_path_factory.mktemp("launched")
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(settings(folder / "grows", "checkpoint.steps=1"), 6, patch)
    (folder / "plan.json").write_text(json.dumps(PLAN))
    (first, _, _), (second, _, errors) = Launch(Path(__file__).with_name("launched.py"), folder).end()
    assert (first, second) == (-signal.SIGKILL, 0), errors
    outcomes = [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(outcome) for outcome in outcomes] == [len(PLAN) - 1, len(PLAN)]
    return folder, outcomes


def folder_of(launched, place, *more):
    return launched[0] / place / settings(launched[0] / place, *more).run_id


def test_two_processes_stop_at_one_step_and_go_on_bit_for_bit(launched):
    """One process gets the signal, the other learns of it a step later; only the main process prints."""
    first, second = launched[1]
    assert (first[1]["kind"], second[1]["kind"]) == ("StoppedError", "StoppedError")
    assert (first[1]["exit_code"], second[1]["exit_code"]) == (75, 75)
    assert first[1]["said"]
    assert not second[1]["said"]
    assert first[2] == second[2] == {"steps": [0, 7], "error": first[0]["error"]}
    assert_same(folder_of(launched, "whole"), folder_of(launched, "stopped"))
    assert read_exit_status(folder_of(launched, "stopped")) is None


def test_finished_run_is_not_run_twice_by_two_processes(launched):
    first, second = launched[1]
    assert first[3] == second[3] == first[2]


def test_another_number_of_processes_goes_on(launched):
    first, second = launched[1]
    assert first[4] == second[4]
    assert first[4]["steps"] == [0, 6]
    cfg = settings(launched[0] / "shrinks")
    ending = read_exit_status(folder_of(launched, "shrinks"))
    assert ending.is_stop
    assert steps_of_segments(run(cfg)) == [0, 7]
    for place in ("grows", "shrinks"):
        lines = [json.loads(line) for line in (folder_of(launched, place) / "metrics.jsonl").open()]
        worlds = [line["world_size"] for line in lines if line["kind"] == "segment"]
        assert worlds == ([1, 2] if place == "grows" else [2, 1])
        epochs = [line for line in lines if line["kind"] == "epoch"]
        assert [epoch["step"] for epoch in epochs] == list(range(STEPS_PER_EPOCH, STEPS + 1, STEPS_PER_EPOCH))
        for epoch in epochs:  # errors cover all processes: multiples of 1/200
            assert 2 * epoch["train_error"] == pytest.approx(round(2 * epoch["train_error"]), abs=1e-9)


def test_loss_that_is_not_finite_ends_all_processes_and_is_noted(launched):
    first, second = launched[1]
    assert first[5]["kind"] == second[5]["kind"] == "DivergedError"
    folder = folder_of(launched, "diverges", "recipe.lr=1e30")
    assert not list(folder.glob("checkpoint*"))
    assert read_exit_status(folder).exit_code == 2
    assert json.loads((folder / "diverged.json").read_text())["segments"][0]["world_size"] == 2


def test_common_batch_normalisation_is_refused_before_the_folder_is_touched(launched):
    for outcome in launched[1]:
        assert "compute.sync_bn" in outcome[6]["said"]
    assert not (launched[0] / "normalises").exists()


def test_killed_process_takes_the_others_down_and_its_run_goes_on(launched):
    _, second = launched[1]
    assert second[8]["kind"] == "LostContactError"
    assert "rank 1 of 2" in second[8]["said"]
    folder = folder_of(launched, "killed")
    assert read_exit_status(folder) == (2, second[8]["said"])
    assert (folder / "owner.json").exists()
    result = run(settings(launched[0] / "killed"))
    assert result.segments[1]["step"] in (4, 5), "the last that was whole on the disk"
    assert result.steps == STEPS


STOPPED = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from interrupted_runs import before_call
from isda_repro.training.checkpoint import Saver

class Patch:
    setattr = staticmethod(setattr)

if os.environ["RANK"] == "1":
    before_call(Patch, Saver, "step_taken", 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_train_py_by_two_processes_leaves_with_the_codes_and_words_of_one(tmp_path):
    """The run is stopped, resumed, and then found finished."""
    arguments = (*RUN, f"runs_dir={tmp_path}")
    (first, _, said), (second, out, nothing) = Launch("-c", STOPPED, *arguments).end()
    assert (first, second) == (75, 75)
    assert "SIGTERM" in said
    assert out == nothing == ""
    for _ in range(2):
        (first, said, _), (second, out, nothing) = Launch("train.py", *arguments).end()
        assert (first, second) == (0, 0)
        assert "result.json" in said
        assert out == nothing == ""


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("loss", ["ce", "isda", "center"])
def test_two_gpus_with_common_batch_normalisation_train_as_one(tmp_path, loss):
    """NCCL is used; the 200 images make batches of 64, the last of 8."""
    exact = ("compute=gpu", "compute.precision=fp32", "compute.tf32=false", "compute.deterministic=true")
    asked = (*exact, f"loss={loss}", "model.dropout=0", "recipe.epochs=2")
    curves = []
    for world, more, variables in ((1, (), {"CUDA_VISIBLE_DEVICES": "0"}), (2, ("compute.sync_bn=true",), {})):
        place = tmp_path / str(world)
        launch = Launch("train.py", *RUN, *asked, *more, f"runs_dir={place}", world=world, **variables)
        assert [code for code, *_ in launch.end()] == [0] * world
        (result,) = place.glob("*/result.json")
        curves.append(json.loads(result.read_text())["curves"])
    assert curves[1]["train_loss"] == pytest.approx(curves[0]["train_loss"], rel=1e-3)
    assert curves[1]["test_loss"] == pytest.approx(curves[0]["test_loss"], rel=1e-2)
