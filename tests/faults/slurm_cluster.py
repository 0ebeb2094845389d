"""Tools of ``faults_of_slurm.py``: a SLURM cluster on this host, and sweeps of runs on digits submitted to it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_target import ROOT, RUN

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.runs.records import SegmentRecord, read_metrics
from isda_repro.sweeps.slurm_queue import call_slurm

LONG = "recipe.epochs=400"  # several minutes, so that a time limit is reached
SETTINGS = [*(setting for setting in RUN if not setting.startswith("loss=")), "checkpoint.steps=3", "compute=cpu"]
TABLE = """
title: four cells, of which one waits for another
metric: test_error_last10
seeds: [0]
set: [{settings}]
rows:
  - {{digits: []}}
columns:
  - {{CE: loss=ce, ISDA: loss=isda, Focal: loss=focal, Center: loss=center}}
cells:
  - {{row: digits, column: ISDA, needs: {{column: CE}}}}
"""
ONE = """
title: one run
metric: test_error_last10
seeds: [0]
set: [{settings}]
rows:
  - {{digits: []}}
columns:
  - {{ISDA: loss=isda}}
"""


@contextmanager
def cluster() -> Iterator[None]:
    """Bring up SLURM on this host for this process and its children; take it down at the end."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UserError("slurm/cluster_up.sh needs root on Debian: run this in a container for example")
    folder = tempfile.mkdtemp(prefix="slurm-")
    os.environ |= {"SLURM_DIR": folder, "SLURM_CONF": f"{folder}/slurm.conf", "NODE_TIMEOUT": "15"}
    try:
        subprocess.run(["bash", ROOT / "slurm" / "cluster_up.sh"], check=True, stdout=sys.stderr)
        yield
    finally:
        subprocess.run(["bash", ROOT / "slurm" / "cluster_down.sh"], check=True, stdout=sys.stderr)
        shutil.rmtree(folder)


def until(what: str, holds: Callable[[], bool], seconds: float = 900) -> None:
    """Wait until ``holds()`` is true.

    Raises:
        TimeoutError: it was not within ``seconds``; the message has the queue.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s; " + "; ".join(call_slurm("squeue", "--array")))
        time.sleep(0.2)


class Sweep:
    """A table in a file of its own, submitted to the cluster by scripts/sweep.py as a user does."""

    def __init__(self, folder: Path, table: str, *options: str, settings: tuple[str, ...] = ()) -> None:
        folder.mkdir()
        file = folder / "table.yaml"
        file.write_text(table.format(settings=", ".join([*SETTINGS, *settings])))
        self.runs_dir = folder / "runs"
        self.names = [f"table={file}", f"runs_dir={self.runs_dir}"]
        self._options = ["cluster=slurm", "gpus=0", "time=10", *options]

    def command(self, *words: str) -> str:
        """Run ``scripts/sweep.py`` and return its output."""
        done = subprocess.run(
            [sys.executable, "scripts/sweep.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"sweep.py {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *more: str) -> str:
        """Submit the sweep, and return the output."""
        return self.command(*self.names, *self._options, *more)

    def status(self) -> str:
        """Return the status of the sweep, one line for each cell."""
        return self.command("status", *self.names).partition("\n")[2]

    def folder(self, loss: str = "isda", *settings: str) -> Path:
        """Return the directory of the run with this loss."""
        return self.runs_dir / str(compose([*SETTINGS, f"loss={loss}", *settings]).run_id)

    def until_finished(self, folder: Path, seconds: float = 900) -> None:
        """Wait until the run has its result."""
        until(f"result of {folder.name}", (folder / "result.json").exists, seconds)


def checkpoints(folder: Path) -> Callable[[], bool]:
    """Return a predicate: True once there are checkpoints that did not exist at this call."""
    before = set(folder.glob("checkpoint-*.pt"))
    return lambda: bool(set(folder.glob("checkpoint-*.pt")) - before)


def segments(folder: Path) -> int:
    """Return the number of processes that have started or resumed the run."""
    return sum(isinstance(line, SegmentRecord) for line in read_metrics(folder / "metrics.jsonl"))


def processes_of(job: str, and_watcher: bool = False) -> list[int]:
    """Return the ids of all processes of a job; with ``and_watcher`` also of slurmstepd, which watches them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            named = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        watches = named.startswith(b"slurmstepd: ")
        is_its = f"[{job}.".encode() in named if watches else f"SLURM_JOB_ID={job}".encode() in variables
        if is_its and (and_watcher or not watches):
            found.append(int(folder.name))
    return found


def shown(status: str) -> str:
    """Return a line of status without the names of directories."""
    return re.sub(r"\S*/(runs/\S*)", r"\1", status.partition("; ")[2] or status.split("  ")[-1])
