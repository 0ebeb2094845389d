"""A run on digits by two processes under torchrun, for ``faults_of_several.py``; see ``fault_target.py``."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fault_target import PATIENCE, FaultTarget

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
Thing = TypeVar("Thing")
FAULTY = """
import os, runpy
from isda_repro.errors import UserError
from isda_repro.training.trainer import Trainer

step = Trainer.take_step

def faulty(self, batch):
    if os.environ["RANK"] == "1" and self.step == 10:
        raise UserError("rank 1's own")
    step(self, batch)

Trainer.take_step = faulty
runpy.run_path("train.py", run_name="__main__")
"""


class TorchrunTarget(FaultTarget):
    """A run of two processes that torchrun launches."""

    def __init__(self, runs_dir: Path, *more: str, torchrun: Sequence[str] = ()) -> None:
        super().__init__(runs_dir, *more, launcher=(*TORCHRUN, *torchrun))

    def ranks(self, launcher: subprocess.Popen[str]) -> list[int]:
        """Return the ids of torchrun's processes in the order of their ranks; empty before it has started them."""
        found: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0") if parent == launcher.pid else []
            except (OSError, IndexError):  # the process has ended meanwhile
                continue
            found |= {int(one[5:]): int(folder.name) for one in variables if one.startswith(b"RANK=")}
        return [found[rank] for rank in sorted(found)]

    def until_there(self, launcher: subprocess.Popen[str]) -> list[int]:
        """Wait until both processes exist, and return their ids."""
        return _wait(launcher, lambda: self.ranks(launcher), lambda ranks: len(ranks) == 2, "two processes")

    def until_training(self, launcher: subprocess.Popen[str]) -> list[int]:
        """Wait until this launch has written a checkpoint, and return the ids of its processes."""
        before = self.checkpoints()
        _wait(launcher, self.checkpoints, lambda now: bool(now - before), "a checkpoint")
        return self.ranks(launcher)

    def until_going_on(self, launcher: subprocess.Popen[str], heard: int) -> bool:
        """Wait until the launch has reported more than ``heard`` resumptions; return False if it ended first."""
        return _wait(launcher, lambda: self.times_gone_on, lambda times: times > heard, "word of going on") > heard

    def until_gone(self, ranks: Sequence[int]) -> None:
        """Wait until all these processes have ended."""
        while any(_lives(pid) for pid in ranks):
            time.sleep(0.05)

    def checkpoints(self) -> set[Path]:
        """Return the paths of the checkpoints on disk."""
        return set(self.folder.glob("checkpoint-*.pt"))

    def ended(self, launcher: subprocess.Popen[str], ranks: Sequence[int]) -> float:
        """Wait until the launcher and all ranks have ended, and return the seconds that this took."""
        begin = time.monotonic()
        self.end(launcher)
        self.until_gone(ranks)
        return time.monotonic() - begin


def _wait(
    launcher: subprocess.Popen[str], look: Callable[[], Thing], is_so: Callable[[Thing], bool], what: str
) -> Thing:
    """Call ``look`` until ``is_so`` accepts its value or the launcher has ended, and return the last value."""
    deadline = time.monotonic() + PATIENCE
    while not is_so(seen := look()) and launcher.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.01)
    return seen


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
