"""The shorter half of tests/faults/faults_of_slurm.py on a real SLURM cluster on this host."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slurm
def test_runs_survive_what_a_cluster_does_to_them():
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("slurm/cluster_up.sh needs root, on Debian")
    command = [sys.executable, "tests/faults/faults_of_slurm.py", "small=true"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600)
    if "packages cannot be installed here" in done.stderr:
        pytest.skip(done.stderr[done.stderr.index("packages cannot") :].splitlines()[0])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.endswith("| yes |")]
    assert len(rows) == 6
