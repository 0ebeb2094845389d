"""Faults of runs on a SLURM cluster, which is brought up on this host and taken down. Prints a table.

    python tests/faults/faults_of_slurm.py                                   # as root, on Debian; a quarter of an hour
    python tests/faults/faults_of_slurm.py output=results/faults_of_slurm.md # also writes what it prints
    python tests/faults/faults_of_slurm.py small=true                        # without lost nodes and time limits

Runs on digits are submitted as users submit them, by scripts/sweep.py cluster=slurm or slurm/train.sbatch; then their
jobs are disturbed. A run has survived if it ends with the weights, statistics and curves of an undisturbed run, bit for
bit, either by itself or after the same sweep is given again. Exits 1 if a run did not survive.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fault_target import ROOT, FaultTarget, fingerprint
from slurm_cluster import LONG, ONE, SETTINGS, TABLE, Sweep, checkpoints, cluster, processes_of, segments, shown, until

from isda_repro.config import compose
from isda_repro.config.options import parse_options
from isda_repro.errors import one_sentence_errors
from isda_repro.measurements import conclude, machine, output_path
from isda_repro.runs.run_directory import provenance
from isda_repro.sweeps.slurm_queue import call_slurm, job_of


@dataclass
class Options:
    """Options of the script.

    Attributes:
        output: Markdown file to write the table to.
        small: leave out lost nodes and time limits.
    """

    output: str | None = None
    small: bool = False


class Outcome(NamedTuple):
    """A fault, the status that was seen, and whether the run survived."""

    fault: str
    seen: str
    survived: bool


class Faults:
    """The faults on the cluster, one method each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references = Path(folder / "undisturbed")

    def _same(self, folder: Path, *more: str, launcher: tuple[str, ...] = (sys.executable,)) -> bool:
        """Return True if the run has ended with the fingerprint of an undisturbed run on this host."""
        undisturbed = FaultTarget(self._references / str(len(launcher)), *more, "compute=cpu", launcher=launcher)
        if fingerprint(undisturbed.folder) is None:
            undisturbed.end(undisturbed.start())
        reference = fingerprint(undisturbed.folder)
        assert reference is not None, undisturbed.seen
        return bool(fingerprint(folder) == reference)

    def two_nodes(self) -> Outcome:
        """Train with torchrun on two nodes through slurm/train.sbatch."""
        runs_dir = self.folder / "two"
        settings = [*SETTINGS, "loss=isda"]
        log = self.folder / "two.log"
        call_slurm("sbatch", "--nodes=2", f"--output={log}", "slurm/train.sbatch", *settings, f"runs_dir={runs_dir}")
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
        """Submit an array of four cells, at most two at a time, of which one (ISDA) waits for another (CE)."""
        sweep = Sweep(self.folder / "four", TABLE, "max_parallel=2")
        said = sweep.submit()
        again = sweep.submit()
        first, most, order = sweep.status(), 0, set()
        array = str(job_of(sweep.folder("ce"))).partition("_")[0]
        names = {"CE": sweep.folder("ce"), "ISDA": sweep.folder("isda")}

        def over() -> bool:
            nonlocal most
            running = call_slurm(
                "squeue", "--noheader", "--array", "--states=RUNNING", f"--jobs={array}", "--format=%i"
            )
            most = max(most, len(running))
            if (names["ISDA"] / "metrics.jsonl").exists():
                order.add((names["CE"] / "result.json").exists())
            return sweep.status().count("done 1 of 1") == 4

        until("four cells", over)
        in_queue = "4 in the queue, 0 to submit" in again or "3 in the queue, 0 to submit" in again
        good = "4 to submit" in said and in_queue
        good = good and "queued (job" in first and "Dependency" in first and most <= 2 and order == {True}
        seen = (
            f"first: {shown(first.strip().splitlines()[1].strip())}; at most {most} at once; that cell was done first"
        )
        return Outcome(
            "a sweep of four cells, max_parallel=2, one needs another", seen, good and self._same(names["ISDA"])
        )

    def multirun(self) -> Outcome:
        """Train two runs with Hydra's multirun and its submitit launcher; two others of it fail."""
        runs_dir = self.folder / "multirun"
        launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=10"]
        few = [f"runs_dir={runs_dir}", "recipe.epochs=2", "loss=ce,isda", "recipe.lr=-1,0.05"]
        command = [sys.executable, "train.py", "-m", *launcher, "hydra.launcher.cpus_per_task=1", *SETTINGS, *few]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        results = len(list(runs_dir.glob("*/result.json")))
        failed = sum(line.startswith("failed: ") and "recipe.lr=-1" in line for line in done.stderr.splitlines())
        good = (done.returncode, results, failed) == (1, 2, 2)
        seen = f"{results} results, {failed} failed jobs named"
        return Outcome("python train.py -m hydra/launcher=submitit_slurm loss=ce,isda recipe.lr=-1,0.05", seen, good)

    def preempted(self) -> Outcome:
        """Preempt a job by one of a partition with higher priority; SLURM must requeue it."""
        sweep = Sweep(self.folder / "preempted", ONE, "partition=low", "cpus=4", "slurm=[nodelist=node1]")
        sweep.submit()
        folder = sweep.folder()
        until("training", checkpoints(folder))
        running = sweep.status().strip()
        call_slurm("sbatch", "--partition=high", "--nodelist=node1", "-c4", "--output=/dev/null", "--wrap=sleep 8")
        until("preemption", lambda: "queued" in sweep.status())
        queued = sweep.status().strip()
        sweep.until_finished(folder)
        good = "running, epoch" in running and segments(folder) >= 2
        return Outcome("preempted by a job of another partition", shown(queued), good and self._same(folder))

    def killed(self, name: str, whole_job: bool) -> Outcome:
        """Kill the training process or its whole job; the job fails, and the same sweep submits it again."""
        sweep = Sweep(self.folder / f"killed-{whole_job}", ONE)
        sweep.submit()
        folder = sweep.folder()
        until("training", checkpoints(folder))
        job = str(job_of(folder))
        for pid in processes_of(job) if whole_job else [json.loads((folder / "owner.json").read_text())["pid"]]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until("failure", lambda: "failed" in sweep.status())
        failed = sweep.status().strip()
        sweep.submit()
        sweep.until_finished(folder)
        what = f"failed: job {job} is FAILED" if whole_job else "failed: ended by SIGKILL"
        good = what in failed and " (log: " in failed and segments(folder) == 2
        return Outcome(f"{name}; submitted again", shown(failed), good and self._same(folder))

    def cancelled(self) -> Outcome:
        """Cancel by ``sweep.py cancel``, and submit the same sweep again."""
        sweep = Sweep(self.folder / "cancelled", ONE)
        sweep.submit()
        folder = sweep.folder()
        until("training", checkpoints(folder))
        said = sweep.command("cancel", *sweep.names)
        until("the end of the job", lambda: "running" not in sweep.status())
        stopped = sweep.status().strip()
        sweep.submit()
        sweep.until_finished(folder)
        good = "asked to stop: 1 jobs" in said and segments(folder) == 2
        return Outcome("scancel; submitted again", shown(stopped), good and self._same(folder))

    def node_lost(self, name: str, with_its_jobs: bool) -> Outcome:
        """Kill slurmd of a node; when SLURM declares the node dead, it must start the job on another."""
        sweep = Sweep(self.folder / f"lost-{with_its_jobs}", ONE, settings=(LONG,))
        sweep.submit()
        folder = sweep.folder("isda", LONG)
        until("training", checkpoints(folder))
        job = str(job_of(folder))
        (node,) = call_slurm("squeue", "--noheader", "--format=%N", f"--jobs={job}")
        os.kill(
            int((Path(os.environ["SLURM_DIR"]) / "pid" / f"slurmd.{node}.pid").read_text().split()[0]), signal.SIGKILL
        )
        if with_its_jobs:
            for pid in processes_of(job, and_watcher=True):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        until("another node", lambda: (folder / "log.txt").read_text().count(f"--- job {job}") == 2)
        sweep.until_finished(folder)
        until(
            "the end of the job", lambda: "running" not in sweep.status() and not call_slurm("squeue", "-h", f"-j{job}")
        )
        parts = segments(folder)
        whose = "the first job's process went on, and the second waited for it" if parts == 1 else "the second went on"
        good = parts == (2 if with_its_jobs else 1)
        return Outcome(
            name, f"put on another node; {whose}; {shown(sweep.status().strip())}", good and self._same(folder, LONG)
        )

    def begin_time_limit(self) -> Sweep:
        """Submit a run that takes longer than the time limit of its jobs."""
        sweep = Sweep(self.folder / "limit", ONE, "time=3", settings=(LONG,))
        sweep.submit()
        return sweep

    def time_limit(self, sweep: Sweep) -> Outcome:
        """Wait until the run has finished; SLURM must have requeued it at each time limit."""
        folder = sweep.folder("isda", LONG)
        sweep.until_finished(folder)
        log = (folder / "log.txt").read_text()
        jobs, parts = log.count("--- job"), segments(folder)
        seen = f"{jobs} times on a node, {parts} of them trained; {shown(sweep.status().strip())}"
        return Outcome("time limit reached", seen, parts >= 2 and self._same(folder, LONG))


def all_of(faults: Faults, options: Options) -> list[Callable[[], Outcome]]:
    """List the faults and begin the run that meets a time limit; ``small=true`` omits those that wait for SLURM."""
    small: list[Callable[[], Outcome]] = [
        faults.two_nodes,
        faults.four_cells,
        faults.preempted,
        lambda: faults.killed("all processes of the job killed", whole_job=True),
        faults.cancelled,
        faults.multirun,
    ]
    if options.small:
        return small
    limited = faults.begin_time_limit()
    return [
        *small,
        lambda: faults.killed("training process killed", whole_job=False),
        lambda: faults.node_lost("slurmd of the node killed", with_its_jobs=False),
        lambda: faults.node_lost("slurmd of the node and all its processes killed", with_its_jobs=True),
        lambda: faults.time_limit(limited),
    ]


def main() -> None:
    """Try all faults, print the table, and exit with 1 if a run did not survive."""
    options = parse_options(Options, sys.argv[1:])
    output = output_path(options.output)
    os.environ["OMP_NUM_THREADS"] = "1"
    origin, outcomes = provenance(), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, cluster():  # an error of ours comes first
        for fault in all_of(Faults(Path(name)), options):
            outcomes.append(fault())
            print(f"{outcomes[-1].fault}: {outcomes[-1].seen}", file=sys.stderr, flush=True)
    lines = [
        "# Faults on a SLURM cluster: what the user saw, and whether the run survived",
        "",
        "`python tests/faults/faults_of_slurm.py`: SLURM on one host (slurm/cluster_up.sh), four nodes, a small ResNet",
        "on digits. Survived: the run ended with the weights, statistics and curves of an undisturbed one, bit",
        "for bit.",
        "",
        "| fault | seen | survived |",
        "| --- | --- | --- |",
        *(f"| {one.fault} | {one.seen.replace('|', '/')} | {'yes' if one.survived else 'NO'} |" for one in outcomes),
        "",
        *machine(),
        f"Revision {origin['git_revision']}{'' if origin['git_clean'] else ', changed since'}.",
    ]
    missed = (one.fault for one in outcomes if not one.survived)
    conclude(lines, missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
