"""What happens to a run of two processes when one of them, or what started them, fails. Prints a table.

    python scripts/faults_of_several.py                                     # half an hour on two cores
    python scripts/faults_of_several.py output=results/faults_of_several.md # also writes what it prints
    python scripts/faults_of_several.py kills=3                             # all faults, this one less often

As scripts/faults.py, under torchrun: each fault is done to a run on digits, the same command is given again, and the
run has survived if it ends with the weights, statistics and curves of an undisturbed run of two processes, bit for bit.
Exits 1 if a run did not survive.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarking import conclude, machine
from patient import Patient, fingerprint

from isda_repro.errors import one_sentence_errors
from isda_repro.options import parse_options
from isda_repro.tables.records import SegmentRecord, read_metrics
from isda_repro.training.environment import provenance

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
HANG_MINUTES = 0.1


@dataclass
class Options:
    """What is typed behind the script."""

    output: str | None = None
    kills: int = 50


class Outcome(NamedTuple):
    """What was done, what the user saw, the seconds until all processes had gone, and whether the run survived."""

    fault: str
    seen: str
    seconds: float | None
    survived: bool


class Two(Patient):
    """A run of two processes."""

    def __init__(self, runs_dir: Path, *more: str, torchrun: Sequence[str] = ()) -> None:
        super().__init__(runs_dir, *more, launcher=(*TORCHRUN, *torchrun))

    def ranks(self, launcher: subprocess.Popen[str]) -> list[int]:
        """The processes that torchrun has started, in the order of their ranks; none before it has."""
        found: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0") if parent == launcher.pid else []
            except (OSError, IndexError):  # it has ended meanwhile
                continue
            found |= {int(one[5:]): int(folder.name) for one in variables if one.startswith(b"RANK=")}
        return [found[rank] for rank in sorted(found)]

    def until_training(self, launcher: subprocess.Popen[str]) -> list[int]:
        """Wait for checkpoints of this launch; its processes."""
        before = set(self.folder.glob("checkpoint-*.pt"))
        deadline = time.monotonic() + 120
        while not set(self.folder.glob("checkpoint-*.pt")) - before and launcher.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} has no checkpoint")
            time.sleep(0.01)
        return self.ranks(launcher)

    def ended(self, launcher: subprocess.Popen[str], ranks: Sequence[int]) -> float:
        """Seconds until all of them have gone."""
        begin = time.monotonic()
        self.end(launcher)
        while any(_lives(pid) for pid in ranks):
            time.sleep(0.05)
        return time.monotonic() - begin


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


class Faults:
    """The faults, one method each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        undisturbed = Two(folder / "undisturbed")
        undisturbed.end(undisturbed.start())
        self._reference = fingerprint(undisturbed.folder)
        assert self._reference is not None, undisturbed.seen
        self.timing = _training_seconds(undisturbed.folder)

    def same(self, patient: Patient) -> bool:
        """Whether the run has ended as the undisturbed one."""
        return bool(fingerprint(patient.folder) == self._reference)

    def kills(self, kills: int) -> Outcome:
        """Of a random rank at random times from when the run is taken up on; runs that end are begun anew."""
        draw, killed, finished, same, slowest = random.Random(0), 0, 0, 0, 0.0
        resumed = 0
        while True:
            patient = Two(self.folder / f"kills-{finished}")
            launcher = patient.start()
            while launcher.poll() is None and not any(patient.held_by(pid) for pid in patient.ranks(launcher)):
                time.sleep(0.01)
            try:
                launcher.wait(timeout=draw.uniform(0, self.timing) if killed < kills else 300)
            except subprocess.TimeoutExpired:
                ranks = patient.ranks(launcher)
                if len(ranks) == 2:
                    os.kill(ranks[draw.randrange(2)], signal.SIGKILL)
                    slowest = max(slowest, patient.ended(launcher, ranks))
                    killed += 1
                continue
            patient.end(launcher)
            resumed += _segments(patient.folder) - 1
            finished, same = finished + 1, same + self.same(patient)
            if killed >= kills:
                break
        seen = f"{killed} kills within {finished} runs, which had {resumed} resumptions in the middle of training (the "
        seen += f"others came before the first step); {same} of {finished} runs bit-identical"
        return Outcome(f"SIGKILL of one of two ranks, {kills} random times", seen, slowest, same == finished)

    def disturbed(self, fault: str, do: Callable[[subprocess.Popen[str], list[int]], Any], *more: str) -> Outcome:
        """Something is done to a launch that trains; the next one ends it."""
        patient = Two(Path(tempfile.mkdtemp(dir=self.folder)), *more)
        launcher = patient.start()
        ranks = patient.until_training(launcher)
        do(launcher, ranks)
        seconds, seen = patient.ended(launcher, ranks), patient.seen
        patient.resumed()
        return Outcome(fault, seen, seconds, self.same(patient) and _segments(patient.folder) > 1)

    def elastic(self) -> Outcome:
        """torchrun restarts the processes by itself."""
        patient = Two(Path(tempfile.mkdtemp(dir=self.folder)), torchrun=("--max-restarts=3",))
        launcher = patient.start()
        for victim in (0, 1):
            ranks = patient.until_training(launcher)
            os.kill(ranks[victim], signal.SIGKILL)
            while set(patient.ranks(launcher)) & {ranks[victim]}:
                time.sleep(0.05)
        patient.end(launcher)
        segments = _segments(patient.folder)
        seen = f"one command, {segments} segments (exit code {launcher.returncode})"
        good = launcher.returncode == 0 and segments == 3
        return Outcome("--max-restarts=3, rank 0 killed, then rank 1", seen, None, good and self.same(patient))


def _training_seconds(folder: Path) -> float:
    timing = json.loads((folder / "result.json").read_text())["timing"]
    return float(sum(timing[name] for name in ("train", "evaluation", "saving")))


def _segments(folder: Path) -> int:
    return sum(isinstance(line, SegmentRecord) for line in read_metrics(folder / "metrics.jsonl"))


def all_of(faults: Faults, options: Options) -> list[Callable[[], Outcome]]:
    """What is done, in this order."""
    to_rank, hang = faults.disturbed, f"compute.timeout_minutes={HANG_MINUTES}"
    return [
        lambda: faults.kills(options.kills),
        lambda: to_rank("SIGTERM to torchrun alone", lambda launcher, _: launcher.terminate()),
        lambda: to_rank("Ctrl-C", lambda launcher, _: launcher.send_signal(signal.SIGINT)),
        lambda: to_rank("SIGTERM to rank 1 alone", lambda _, ranks: os.kill(ranks[1], signal.SIGTERM)),
        lambda: to_rank("SIGKILL of torchrun", lambda launcher, _: launcher.kill()),
        lambda: to_rank("rank 0 hangs", lambda _, ranks: os.kill(ranks[0], signal.SIGSTOP), hang),
        lambda: to_rank("rank 1 hangs", lambda _, ranks: os.kill(ranks[1], signal.SIGSTOP), hang),
        faults.elastic,
    ]


def main() -> None:
    """Do them all, report."""
    options = parse_options(Options, sys.argv[1:])
    os.environ["OMP_NUM_THREADS"] = "1"
    origin, outcomes = provenance(), []
    with tempfile.TemporaryDirectory() as name:
        for fault in all_of(Faults(Path(name)), options):
            outcomes.append(fault())
            print(f"{outcomes[-1].fault}: {outcomes[-1].seen}", file=sys.stderr, flush=True)
    lines = [
        "# Faults of runs of several processes: what the user saw, and whether the run survived",
        "",
        "`python scripts/faults_of_several.py`: torchrun, two processes, a small ResNet on digits, 20 epochs, a",
        "checkpoint every 3 steps. Survived: the same command, given again, ended with the weights, statistics and",
        "curves of an undisturbed run of two processes, bit for bit. Seconds: from the fault until all had gone.",
        f"A hung rank was waited for with compute.timeout_minutes={HANG_MINUTES}.",
        "",
        "| fault | seen | seconds | survived |",
        "| --- | --- | ---: | --- |",
        *(_row(one) for one in outcomes),
        "",
        *machine(),
        f"Revision {origin['git_revision']}{'' if origin['git_clean'] else ', changed since'}.",
    ]
    missed = (one.fault for one in outcomes if not one.survived)
    conclude(lines, missed, None if options.output is None else Path(options.output))


def _row(one: Outcome) -> str:
    seconds = "" if one.seconds is None else f"{one.seconds:.1f}"
    return f"| {one.fault} | {one.seen.replace('|', '/')} | {seconds} | {'yes' if one.survived else 'NO'} |"


if __name__ == "__main__":
    with one_sentence_errors():
        main()
