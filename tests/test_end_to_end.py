"""The whole path from the command line to the table, and short runs on real data."""

import os
import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from isda_repro.config import compose
from isda_repro.runs.records import read_result
from isda_repro.training.run import run


def command(root, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"  # check=True would not show the output
    return done.stdout


@pytest.mark.slow
def test_the_demo_from_the_sweep_to_the_table_and_the_picture(root, tmp_path):
    reduced = ["table=demo", f"runs_dir={tmp_path}", "set=[recipe.epochs=1,dataset.train_limit=200,tracking=none]"]
    command(root, "scripts/sweep.py", *reduced)
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(results) == 6
    command(root, "scripts/sweep.py", *reduced)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")} == results, "finished runs stay"
    table = command(root, "scripts/tables.py", *reduced)
    for loss in ("ce", "isda"):
        errors = [read_result(path).test_error_last10 for path in results if f"-{loss}-" in path.parent.name]
        assert f"{sum(errors) / 3:.2f}" in table
    assert "(n = 3)" in table
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert (tmp_path / "demo.svg").exists()


DATASET = """
source:
  _target_: isda_repro.data.load_digits
  train_limit: ${dataset.train_limit}
  test_limit: ${dataset.test_limit}
  holdout: ${dataset.holdout}
train_limit: 64
test_limit: 20
holdout: null
mean: [0.3, 0.3, 0.3]
std: [0.4, 0.4, 0.4]
"""


@pytest.mark.slow
def test_a_data_set_of_ones_own_is_trained_on_once_it_declares_what_the_augmentation_asks(root, tmp_path):
    file, runs = tmp_path / "dataset" / "mine.yaml", tmp_path / "runs"
    small = ["model=resnet8", "recipe=digits", "recipe.epochs=1", "compute=cpu", "tracking=none", f"runs_dir={runs}"]
    asked = ["train.py", f"--config-dir={tmp_path}", "dataset=mine", "augmentation=cutout", *small]
    file.parent.mkdir()
    file.write_text(DATASET)
    for more in ([], ["--cfg", "job", "--resolve"]):
        refused = subprocess.run([sys.executable, *asked, *more], cwd=root, capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "dataset=mine" in refused.stderr
        assert "dataset.augment.padding=" in refused.stderr
    file.write_text(DATASET + "augment: {padding: 1, flip: false}\n")
    command(root, *asked, "dataset.augment.cutout_length=3")
    (config,) = runs.glob("*/config.yaml")
    assert OmegaConf.load(config).augmentation.cutout.length == 3
    file.write_text(DATASET + "augment: {padding: 1, flip: false, cutout_length: 3}\n")
    for same in (asked, ["train.py", str(config)]):
        assert "already" in command(root, *same), "declared in the file, it is the same run"


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "largest"), [("cifar10", 75), ("cifar100", 98)])
def test_a_short_run_on_real_cifar_learns(cifar_dir, tmp_path, dataset, largest):
    """5,000 images and 3 epochs with ISDA reached 66% and 96% error.

    Chance is 90% and 99%; with 1,000 test images it varies by 1% and 0.3%.
    """
    sizes = ["dataset.train_limit=5000", "dataset.test_limit=1000", "recipe.epochs=3"]
    places = [f"data_dir={cifar_dir}", f"runs_dir={tmp_path}", "tracking=none", "compute.precision=fp32"]
    result = run(compose(["model=resnet8", "loss=isda", f"dataset={dataset}", *sizes, *places]))
    assert result.test_error_final < largest
    assert result.test_images == 1000


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++") and not shutil.which("g++"), reason="torch.compile wants a C++ compiler")
def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path):
    """Both forms sum in different orders, so in fp32 on digits the curves agree to 1% only."""
    small = ["model=resnet8", "dataset=digits", "dataset.train_limit=640", "loss=isda", "recipe.epochs=1"]

    def losses(compiled):
        places = [f"runs_dir={tmp_path / str(compiled)}", f"compute.compile={compiled}", "compute.precision=fp32"]
        return run(compose([*small, "tracking=none", *places])).curves["train_loss"]

    assert losses(True) == pytest.approx(losses(False), rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounts small file systems: needs root on Linux"
)
def test_runs_survive_what_a_machine_does_to_them(root):
    """The short version of tests/faults/faults.py: kills, full and read-only disks, damaged files."""
    table = command(root, "tests/faults/faults.py", "small=true")
    assert "| NO |" not in table
    assert table.count("| yes |") == 7


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes of torchrun in /proc")
def test_runs_of_two_processes_survive_what_is_done_to_one(root):
    """The short version of faults_of_several.py: kills, a signal, a hanging rank, an error of one rank."""
    table = command(root, "tests/faults/faults_of_several.py", "small=true")
    assert "| NO |" not in table
    assert table.count("| yes |") == 4
