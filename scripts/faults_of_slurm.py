"""What happens to runs on a SLURM cluster: a real one, on this host, brought up and taken down. Prints a table.

    python scripts/faults_of_slurm.py                                   # as root, on Debian; a quarter of an hour
    python scripts/faults_of_slurm.py output=results/faults_of_slurm.md # also writes what it prints

Runs on digits are submitted as a user submits them, by scripts/sweep.py cluster=slurm or slurm/train.sbatch; then
something is done to their jobs. A run has survived if it ends, by itself or when the same sweep is given again, with
the weights, statistics and curves of an undisturbed run, bit for bit. Exits 1 if one did not.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarking import conclude, machine
from patient import ROOT, RUN, Patient, fingerprint

from isda_repro.config import compose
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.options import parse_options
from isda_repro.tables.queue import ask
from isda_repro.tables.records import SegmentRecord, read_metrics
from isda_repro.training.environment import provenance

LONG = "recipe.epochs=400"  # minutes, for a time limit to come
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


@dataclass
class Options:
    """What is typed behind the script."""

    output: str | None = None


class Outcome(NamedTuple):
    """What was done, what was seen, and whether all went as it should."""

    fault: str
    seen: str
    survived: bool


@contextmanager
def cluster() -> Iterator[None]:
    """SLURM on this host, for the commands of this process and its children."""
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
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s; " + "; ".join(ask("squeue", "--array")))
        time.sleep(0.2)


class Sweep:
    """A table of its own, submitted to the cluster as a user does."""

    def __init__(self, folder: Path, table: str, *options: str, settings: tuple[str, ...] = ()) -> None:
        folder.mkdir()
        file = folder / "table.yaml"
        file.write_text(table.format(settings=", ".join([*SETTINGS, *settings])))
        self.runs_dir = folder / "runs"
        self._names = [f"table={file}", f"runs_dir={self.runs_dir}"]
        self._options = ["cluster=slurm", "gpus=0", "time=10", *options]

    def command(self, *words: str) -> str:
        """What ``scripts/sweep.py`` says."""
        done = subprocess.run(
            [sys.executable, "scripts/sweep.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"sweep.py {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *more: str) -> str:
        """Give the sweep."""
        return self.command(*self._names, *self._options, *more)

    def status(self) -> str:
        """Its cells, a line each."""
        return self.command("status", *self._names).partition("\n")[2]

    def folder(self, loss: str = "isda", *settings: str) -> Path:
        """Of the run with this loss."""
        return self.runs_dir / str(compose([*SETTINGS, f"loss={loss}", *settings]).run_id)

    def until_finished(self, folder: Path, seconds: float = 900) -> None:
        """Wait for a result, and until the queue knows of it."""
        until(f"result of {folder.name}", (folder / "result.json").exists, seconds)


def checkpoints(folder: Path) -> Callable[[], bool]:
    """Whether there are some, beyond those that were there when this was called."""
    before = set(folder.glob("checkpoint-*.pt"))
    return lambda: bool(set(folder.glob("checkpoint-*.pt")) - before)


def segments(folder: Path) -> int:
    """How often a process has begun or gone on with it."""
    return sum(isinstance(line, SegmentRecord) for line in read_metrics(folder / "metrics.jsonl"))


class Faults:
    """What is done on the cluster, one method each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references = Path(folder / "undisturbed")

    def _same(self, folder: Path, *more: str, launcher: tuple[str, ...] = (sys.executable,)) -> bool:
        """Whether a run ended as one here that nothing is done to."""
        undisturbed = Patient(self._references / str(len(launcher)), *more, "compute=cpu", launcher=launcher)
        if fingerprint(undisturbed.folder) is None:
            undisturbed.end(undisturbed.start())
        reference = fingerprint(undisturbed.folder)
        assert reference is not None, undisturbed.seen
        return bool(fingerprint(folder) == reference)

    def two_nodes(self) -> Outcome:
        """torchrun on two nodes, by slurm/train.sbatch."""
        runs_dir = self.folder / "two"
        settings = [*SETTINGS, "loss=isda"]
        log = self.folder / "two.log"
        ask("sbatch", "--nodes=2", f"--output={log}", "slurm/train.sbatch", *settings, f"runs_dir={runs_dir}")
        folder = runs_dir / compose(settings).run_id
        until("two nodes", (folder / "result.json").exists)
        result = json.loads((folder / "result.json").read_text())
        worlds = {segment["world_size"] for segment in result["segments"]}
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        same = self._same(folder, launcher=torchrun)
        return Outcome(
            "sbatch --nodes=2 slurm/train.sbatch", f"processes: {worlds}, as two on one host", same and worlds == {2}
        )

    def four_cells(self) -> Outcome:
        """An array, throttled, and a cell that waits for another."""
        sweep = Sweep(self.folder / "four", TABLE, "max_parallel=2")
        said = sweep.submit()
        again = sweep.submit()
        first, most, order = sweep.status(), 0, set()
        array = json.loads((sweep.folder("ce") / "job.json").read_text())["job_id"].partition("_")[0]
        names = {"CE": sweep.folder("ce"), "ISDA": sweep.folder("isda")}

        def over() -> bool:
            nonlocal most
            running = ask("squeue", "--noheader", "--array", "--states=RUNNING", f"--jobs={array}", "--format=%i")
            most = max(most, len(running))
            if (names["ISDA"] / "metrics.jsonl").exists():
                order.add((names["CE"] / "result.json").exists())
            return sweep.status().count("done 1 of 1") == 4

        until("four cells", over)
        in_queue = "4 in the queue, 0 to submit" in again or "3 in the queue, 0 to submit" in again
        good = "4 to submit" in said and in_queue
        good = good and "queued (job" in first and "Dependency" in first and most <= 2 and order == {True}
        seen = (
            f"first: {_shown(first.strip().splitlines()[1].strip())}; at most {most} at once; that cell was done first"
        )
        return Outcome(
            "a sweep of four cells, max_parallel=2, one needs another", seen, good and self._same(names["ISDA"])
        )

    def multirun(self) -> Outcome:
        """Hydra's own way, with its submitit launcher."""
        runs_dir = self.folder / "multirun"
        launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=10"]
        few = [f"runs_dir={runs_dir}", "recipe.epochs=2", "loss=ce,isda"]
        command = [sys.executable, "train.py", "-m", *launcher, "hydra.launcher.cpus_per_task=1", *SETTINGS, *few]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        results = len(list(runs_dir.glob("*/result.json")))
        good = done.returncode == 0 and results == 2
        return Outcome("python train.py -m hydra/launcher=submitit_slurm loss=ce,isda", f"{results} results", good)

    def preempted(self) -> Outcome:
        """A job of a higher partition takes its node."""
        sweep = Sweep(self.folder / "preempted", ONE, "partition=low", "cpus=4", "slurm=[nodelist=node1]")
        sweep.submit()
        folder = sweep.folder()
        until("training", checkpoints(folder))
        running = sweep.status().strip()
        ask("sbatch", "--partition=high", "--nodelist=node1", "-c4", "--output=/dev/null", "--wrap=sleep 8")
        until("preemption", lambda: "queued" in sweep.status())
        queued = sweep.status().strip()
        sweep.until_finished(folder)
        good = "running, epoch" in running and segments(folder) >= 2
        return Outcome("preempted by a job of another partition", _shown(queued), good and self._same(folder))

    def killed(self) -> Outcome:
        """The training process is killed; the job fails, and the same sweep submits it again."""
        sweep = Sweep(self.folder / "killed", ONE)
        sweep.submit()
        folder = sweep.folder()
        until("training", checkpoints(folder))
        os.kill(json.loads((folder / "owner.json").read_text())["pid"], signal.SIGKILL)
        until("failure", lambda: "failed" in sweep.status())
        failed = sweep.status().strip()
        sweep.submit()
        sweep.until_finished(folder)
        good = "failed: ended by SIGKILL (log: " in failed and segments(folder) == 2
        return Outcome("training process killed; submitted again", _shown(failed), good and self._same(folder))

    def cancelled(self) -> Outcome:
        """``sweep.py cancel``, and the same sweep again."""
        sweep = Sweep(self.folder / "cancelled", ONE)
        sweep.submit()
        folder = sweep.folder()
        until("training", checkpoints(folder))
        said = sweep.command("cancel", *sweep._names)
        until("the end of the job", lambda: "running" not in sweep.status())
        stopped = sweep.status().strip()
        sweep.submit()
        sweep.until_finished(folder)
        good = "asked to stop: 1 jobs" in said and segments(folder) == 2
        return Outcome("scancel; submitted again", _shown(stopped), good and self._same(folder))

    def node_lost(self, name: str, with_its_jobs: bool) -> Outcome:
        """slurmd of a node is killed. After a while SLURM takes the node for dead and starts its job elsewhere."""
        sweep = Sweep(self.folder / f"lost-{with_its_jobs}", ONE, settings=(LONG,))
        sweep.submit()
        folder = sweep.folder("isda", LONG)
        until("training", checkpoints(folder))
        job = json.loads((folder / "job.json").read_text())["job_id"]
        (node,) = ask("squeue", "--noheader", "--format=%N", f"--jobs={job}")
        os.kill(int((Path(os.environ["SLURM_DIR"]) / "pid" / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
        if with_its_jobs:
            for pid in _processes_of(job):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        until("another node", lambda: (folder / "log.txt").read_text().count(f"--- job {job}") == 2)
        sweep.until_finished(folder)
        until("the end of the job", lambda: "running" not in sweep.status() and not ask("squeue", "-h", f"-j{job}"))
        parts = segments(folder)
        whose = "the first job's process went on, and the second waited for it" if parts == 1 else "the second went on"
        good = parts == (2 if with_its_jobs else 1)
        return Outcome(
            name, f"put on another node; {whose}; {_shown(sweep.status().strip())}", good and self._same(folder, LONG)
        )

    def begin_time_limit(self) -> Sweep:
        """A run that is longer than its jobs may be."""
        sweep = Sweep(self.folder / "limit", ONE, "time=3", settings=(LONG,))
        sweep.submit()
        return sweep

    def time_limit(self, sweep: Sweep) -> Outcome:
        """It has been put back into the queue until it was done."""
        folder = sweep.folder("isda", LONG)
        sweep.until_finished(folder)
        log = (folder / "log.txt").read_text()
        jobs, parts = log.count("--- job"), segments(folder)
        seen = f"{jobs} times on a node, {parts} of them trained; {_shown(sweep.status().strip())}"
        return Outcome("time limit reached", seen, parts >= 2 and self._same(folder, LONG))


def _processes_of(job: str) -> list[int]:
    """All processes of a job, those that SLURM watches it with too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            named = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}".encode() in variables or named.startswith(f"slurmstepd: [{job}.".encode()):
            found.append(int(folder.name))
    return found


def _shown(status: str) -> str:
    """A line of status without folders."""
    return re.sub(r"\S*/(runs/\S*)", r"\1", status.partition("; ")[2] or status.split("  ")[-1])


def main() -> None:
    """Do all, report."""
    options = parse_options(Options, sys.argv[1:])
    os.environ["OMP_NUM_THREADS"] = "1"
    origin, outcomes = provenance(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, cluster():  # what fails is said first
        faults = Faults(Path(name))
        limited = faults.begin_time_limit()
        done: list[Callable[[], Outcome]] = [
            faults.two_nodes,
            faults.four_cells,
            faults.multirun,
            faults.preempted,
            faults.killed,
            faults.cancelled,
            lambda: faults.node_lost("slurmd of the node killed", with_its_jobs=False),
            lambda: faults.node_lost("slurmd of the node and all its processes killed", with_its_jobs=True),
            lambda: faults.time_limit(limited),
        ]
        for fault in done:
            outcomes.append(fault())
            print(f"{outcomes[-1].fault}: {outcomes[-1].seen}", file=sys.stderr, flush=True)
    lines = [
        "# Faults on a SLURM cluster: what the user saw, and whether the run survived",
        "",
        "`python scripts/faults_of_slurm.py`: SLURM on one host (slurm/cluster_up.sh), four nodes, a small ResNet on",
        "digits. Survived: the run ended with the weights, statistics and curves of an undisturbed one, bit for bit.",
        "",
        "| fault | seen | survived |",
        "| --- | --- | --- |",
        *(f"| {one.fault} | {one.seen.replace('|', '/')} | {'yes' if one.survived else 'NO'} |" for one in outcomes),
        "",
        *machine(),
        f"Revision {origin['git_revision']}{'' if origin['git_clean'] else ', changed since'}.",
    ]
    missed = (one.fault for one in outcomes if not one.survived)
    conclude(lines, missed, None if options.output is None else Path(options.output))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
