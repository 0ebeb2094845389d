"""A run on digits that ``faults.py`` disturbs, and its fingerprint for comparison with an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from isda_repro.config import compose

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "recipe.epochs=20", "loss=isda", "model.dropout=0.1"),
    *("dataset.train_limit=640", "dataset.test_limit=100", "tracking=none"),
]

PATIENCE = 900.0  # seconds; enough for a run on a busy machine


class FaultTarget:
    """A run that will be disturbed, in a directory of its own; ``launcher`` is the command that starts ``train.py``."""

    def __init__(self, runs_dir: Path, *more: str, launcher: Sequence[str] = (sys.executable,)) -> None:
        self.more = more
        self.command = [*launcher, "train.py", *RUN, f"runs_dir={runs_dir}", "checkpoint.steps=3", *more]
        self.runs_dir = runs_dir
        self.folder: Path = runs_dir / compose([*RUN, *more]).run_id
        self.said: list[str] = []
        self.seen = ""

    def start(self) -> subprocess.Popen[str]:
        """Start the run without waiting for it."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (until the next one)
        return subprocess.Popen(
            self.command, cwd=ROOT, stdout=self._output, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    @property
    def times_gone_on(self) -> int:
        """Number of times that the last process has reported to resume from a checkpoint."""
        return os.pread(self._output.fileno(), 1_000_000, 0).count(b"goes on after step")

    def held_by(self, pid: int) -> bool:
        """Return True if that process holds the lock of the run's directory."""
        owner = self.folder / "owner.json"
        try:
            return bool(json.loads(owner.read_text())["pid"] == pid)
        except (FileNotFoundError, ValueError):  # missing, or half written
            return False

    def wait_for(self, name: str) -> Path:
        """Wait until a file of the run is not empty, and return its path. An empty file will still grow on the disk."""
        deadline, path = time.monotonic() + PATIENCE, self.folder / name
        while not (path.exists() and path.stat().st_size):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} has no {name}")
            time.sleep(0.005)
        return path

    def wait_for_checkpoints(self, count: int = 2) -> None:
        """Wait until the run has saved ``count`` checkpoints."""
        deadline = time.monotonic() + PATIENCE
        while len(list(self.folder.glob("checkpoint-*.pt"))) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} has no {count} checkpoints")
            time.sleep(0.01)

    def stop(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, then do as ``end``."""
        process.send_signal(number)
        self.end(process)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Wait for the process; keep its messages in ``said``, and the last one with the exit code in ``seen``."""
        self.said = process.communicate(timeout=PATIENCE)[1].strip().splitlines()
        last = [line for line in self.said if line.startswith(("error", "warning", "SIG"))]
        seen = (last[-1] if last else "nothing").replace(str(self.runs_dir), "runs")
        self.seen = f"{seen} (exit code {process.returncode})"

    def interrupted(self) -> FaultTarget:
        """Run until there are two checkpoints, kill the process, and return self."""
        process = self.start()
        self.wait_for_checkpoints()
        self.stop(process)
        return self

    def resumed(self) -> tuple[str, str]:
        """Run the command to its end; return its warnings and errors, and the line that says where it started."""
        done = subprocess.run(self.command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
        warnings = [line for line in done.stderr.splitlines() if line.startswith(("error", "warning"))]
        start = next((line for line in done.stdout.splitlines() if line.startswith("goes on")), "starts at step 0")
        return "; ".join(warnings).replace(str(self.runs_dir), "runs") or "nothing", start


def fingerprint(folder: Path) -> Any:
    """Return weights, statistics and curves of a finished run for comparison; None if it has not finished."""
    if not (folder / "result.json").exists():
        return None
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    tensors = {**state["network"], **state["criterion"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{**line, "timing": None} for line in lines if line["kind"] == "epoch"]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, epochs


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    """Mount a file system of that size in memory, which needs root."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path, leave_kib: int) -> Path:
    """Write a file that leaves ``leave_kib`` KiB free, or less if the run writes meanwhile; return its path."""
    filler = disk / "filler"
    with suppress(OSError):  # the run writes at the same time: the file is then as long as fits
        filler.write_bytes(b"\0" * (shutil.disk_usage(disk).free - leave_kib * 1024))
    return filler
