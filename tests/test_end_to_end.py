"""The main job on real data, from the command line to the table; slow."""

import os
import shutil
import subprocess
import sys

import pytest

from isda_repro.config import compose
from isda_repro.training.run import run


def command(root, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"  # which check=True would keep to itself
    return done.stdout


@pytest.mark.slow
def test_the_demo_from_the_sweep_to_the_table_and_the_picture(root, tmp_path):
    reduced = ["table=demo", f"runs_dir={tmp_path}", "set=[recipe.epochs=3,tracking=none]"]
    assert "table=demo: 6 of 6 runs done, 6 started now" in command(root, "scripts/sweep.py", *reduced)
    again = command(root, "scripts/sweep.py", *reduced)
    assert again.count("already done") == 6
    assert "6 of 6 runs done" in command(root, "scripts/sweep.py", "status", *reduced)
    table = command(root, "scripts/tables.py", *reduced)
    assert "(n = 3)" in table
    assert "ISDA − CE" in table
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert (tmp_path / "demo.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_a_short_run_on_real_cifar_learns(cifar_dir, tmp_path, dataset):
    """5,000 images, 4 epochs, ISDA. Measured: CIFAR-10 61%, CIFAR-100 93% (chance is 90% and 99%)."""
    sizes = ["dataset.train_limit=5000", "dataset.test_limit=1000", "recipe.epochs=4"]
    places = [f"data_dir={cifar_dir}", f"runs_dir={tmp_path}", "tracking=none", "compute.precision=fp32"]
    result = run(compose(["model=resnet20", "loss=isda", f"dataset={dataset}", *sizes, *places]))
    assert result.test_error_final < {"cifar10": 75, "cifar100": 97}[dataset]
    assert result.test_images == 1000


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++") and not shutil.which("g++"), reason="torch.compile wants a C++ compiler")
def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path):
    """fp32 on digits; the order of sums differs, so that the curves drift apart slowly. Measured: 0.01."""
    small = ["model=resnet20", "model.depth=8", "dataset=digits", "loss=isda", "recipe.epochs=3", "tracking=none"]

    def losses(compiled):
        places = [f"runs_dir={tmp_path / str(compiled)}", f"compute.compile={compiled}", "compute.precision=fp32"]
        return run(compose([*small, *places])).curves["train_loss"]

    assert losses(True) == pytest.approx(losses(False), rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounts small file systems: needs root on Linux"
)
def test_runs_survive_what_a_machine_does_to_them(root):
    """A part of results/faults.md: kills, full and read-only disks, damaged files."""
    table = command(root, "scripts/faults.py", "small=true")
    assert "| NO |" not in table
    assert table.count("| yes |") == 7


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes of torchrun in /proc")
def test_runs_of_two_processes_survive_what_is_done_to_one(root):
    """A part of results/faults_of_several.md: kills, a signal, a hanging rank, an error of one rank."""
    table = command(root, "scripts/faults_of_several.py", "small=true")
    assert "| NO |" not in table
    assert table.count("| yes |") == 4
