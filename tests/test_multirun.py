"""Hydra's multirun: ``-m`` and lists of values."""

import subprocess
import sys

NO_TRAINING = """
import runpy, sys, types
run = types.ModuleType("isda_repro.training.run")
run.run = lambda cfg: print("run", cfg.run_id, cfg.choice.model, cfg.choice.loss, cfg.seed)
sys.modules[run.__name__] = run
runpy.run_path("train.py", run_name="__main__")
"""


def test_multirun_starts_every_combination_in_order(root, tmp_path):
    asked = ["model=resnet32,resnet110", "loss=isda", "seed=0,1", f"runs_dir={tmp_path}"]
    command = [sys.executable, "-c", NO_TRAINING, "-m", *asked]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("run ")]
    assert len({name for name, *_ in runs}) == 4
    assert [choices for _, *choices in runs] == [
        [model, "isda", seed] for model in ("resnet32", "resnet110") for seed in "01"
    ]
