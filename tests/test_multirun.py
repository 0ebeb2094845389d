"""Command lines that Hydra parses: ``-m`` and lists of values, and settings with hyphens."""

import os
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
from hydra._internal.utils import get_args_parser

from isda_repro.config.command_line import HYDRA_FLAGS, run_command_line, without_hyphens

NO_TRAINING = """
import os, signal, sys, types
def run(cfg):
    from isda_repro.errors import StoppedError, UserError
    print("run", cfg.run_id, cfg.choice.model, cfg.choice.loss, cfg.seed, flush=True)
    if cfg.seed == 1:
        raise UserError("seed 1 diverges")
    if cfg.seed == 2:
        raise ZeroDivisionError("seed 2 meets a bug")
    if cfg.seed == 3:
        raise StoppedError("seed 3 was asked to stop", 75)
    if cfg.seed == 4:
        os.kill(os.getpid(), signal.SIGKILL)
module = types.ModuleType("isda_repro.training.run")
module.run = run
sys.modules[module.__name__] = module
"""


@pytest.fixture
def multirun(root, tmp_path):
    """Return a function that starts ``train.py`` with its arguments, but without training, also in other processes."""
    (tmp_path / "sitecustomize.py").write_text(NO_TRAINING)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}

    def start(*arguments, **more):
        command = [sys.executable, "train.py", *arguments, f"runs_dir={tmp_path}/runs", "model=resnet20"]
        return subprocess.run(
            command, cwd=root, env={**environment, **more}, capture_output=True, text=True, check=False, timeout=60
        )

    return start


def seeds(done):
    return [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("run ")]


def failures(done):
    """Return the sentence for each seed whose job is named at the end."""
    last = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    return {int(re.search(r"seed=(\d)", line)[1]): line for line in last}


def test_multirun_starts_every_combination_in_order(multirun):
    done = multirun("-m", "augmentation=none,baseline", "loss=isda", "seed=0,5")
    assert done.returncode == 0, done.stderr
    runs = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("run ")]
    assert len({name for name, *_ in runs}) == 4
    assert [choices for _, *choices in runs] == [["resnet20", "isda", seed] for seed in "0505"]


@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi"])
def test_the_flag_of_a_multirun_can_stand_anywhere(multirun, flag):
    done = multirun("loss=isda", flag, "--seed=0,5")
    assert (done.returncode, seeds(done)) == (0, [0, 5]), done.stderr


def test_an_unknown_flag_is_one_sentence(multirun):
    done = multirun("loss=isda", "--sweep", "seed=5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--sweep" in done.stderr


def test_a_failing_job_does_not_end_a_multirun_and_is_named_at_its_end(multirun):
    """Errors of users, bugs, and settings that are refused when the job begins."""
    done = multirun("-m", "seed=0,1,-1,2,5", "hydra.sweeper.max_batch_size=2")
    assert seeds(done) == [0, 1, 2, 5]
    assert done.returncode == 1
    named = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(named) == 3
    for sentence, line in zip(("seed 1 diverges", "seed=-1 must", "seed 2 meets"), named, strict=True):
        assert sentence in line
    assert "Traceback" in done.stderr, "of the bug"


def test_a_stop_ends_a_multirun_whose_jobs_run_here(multirun):
    done = multirun("-m", "seed=1,3,5")
    assert (done.returncode, seeds(done)) == (75, [1, 3])
    assert failures(done).keys() == {1}


def test_a_failure_of_one_of_several_processes_ends_them(multirun):
    """They could not find each other again for the next job."""
    done = multirun("-m", "seed=1,5", WORLD_SIZE="2")
    assert (done.returncode, seeds(done)) == (2, [1])


def test_a_single_run_fails_as_before(multirun):
    done = multirun("seed=1")
    assert (done.returncode, done.stdout.count("run ")) == (2, 1)
    assert done.stderr.splitlines() == ["error: seed 1 diverges"]


@pytest.mark.slow
def test_a_failing_job_of_a_cluster_is_named_at_the_end_too(multirun):
    """The launcher ``submitit_local`` hands its results over as ``submitit_slurm`` does, in files of pickles."""
    done = multirun("-m", "seed=1,3,5", "hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1")
    assert done.returncode == 1, done.stderr
    assert failures(done).keys() == {1, 3}, "a stopped job is one of those that are left to do"


@pytest.mark.slow
def test_a_killed_job_of_a_cluster_is_one_sentence(multirun):
    done = multirun("-m", "seed=1,4,5", "hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1")
    assert done.returncode == 2
    assert failures(done).keys() == {1}
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------- settings with hyphens


def test_settings_can_have_hyphens_as_wandb_agent_writes_them(multirun):
    done = multirun("--seed=5", "--loss=isda")
    assert (done.returncode, seeds(done)) == (0, [5]), done.stderr
    unknown = multirun("--sed=5")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "seed" in unknown.stderr


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--exp"])
def test_no_pickle_is_run(tmp_path, flag, capsys):
    (tmp_path / "job.pickle").write_bytes(b"cbuiltins\nbreakpoint\n(tR.")
    with pytest.raises(SystemExit) as left:
        run_command_line([f"{flag}={tmp_path / 'job.pickle'}"], Mock(), Mock(side_effect=AssertionError))
    assert left.value.code == 2
    assert "config.yaml" in capsys.readouterr().err


def test_flags_of_hydra_stay_flags():
    assert set(HYDRA_FLAGS) == {
        flag for action in get_args_parser()._actions for flag in action.option_strings if flag.startswith("--")
    }
    kept = (
        "--multirun",
        "--cfg=job",
        "--conf=x",
        "--config-dir=a=b",
        "--package=x",
        "-m",
        "a=--seed=1",
        "--a-b=1",
        "--",
    )
    assert [without_hyphens(one) for one in kept] == list(kept)
    turned = {"--recipe.lr=0.1": "recipe.lr=0.1", "--a@b.c=x=y": "a@b.c=x=y", "--hydra/launcher=x": "hydra/launcher=x"}
    assert {one: without_hyphens(one) for one in turned} == turned
