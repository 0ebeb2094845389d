"""Faults of the machine during a run, and whether the run survives. Prints a table; real processes, signals and disks.

    python tests/faults/faults.py                                            # a quarter of an hour on one core
    python tests/faults/faults.py output=results/faults.md                   # also writes what it prints
    python tests/faults/faults.py small=true                                 # one fault of each kind

Each fault is inflicted on a run on digits; then the same command is given again, without the fault. The run has
survived if it ends with the weights, the statistics and the curves of an undisturbed run, bit for bit. Full and
read-only disks are small file systems that are mounted for this, so that it must run as root. Exits 1 if a run did not
survive.
"""

import functools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fault_target import ROOT, RUN, FaultTarget, fill, fingerprint, small_disk
from file_damage import append, both, flip, halve, metrics, newest

from isda_repro.config import compose
from isda_repro.config.options import parse_options
from isda_repro.errors import EXIT_STOPPED, UserError, one_sentence_errors
from isda_repro.measurements import conclude, machine, output_path
from isda_repro.runs.lock import HEARTBEAT_SECONDS, LockedError
from isda_repro.runs.run_directory import provenance
from isda_repro.training.run import run

ONE_GIB = 2**30
CIFAR, NO_CIFAR = ("dataset=cifar10",), "no CIFAR-10 under $ISDA_DATA"
ANSWERS = {True: "yes", False: "NO", None: "not tried"}


@dataclass
class Options:
    """Options of the script.

    Attributes:
        output: Markdown file to write the table to.
        kills: number of SIGKILLs at random times.
        pairs: number of simultaneous launches.
        small: try one fault of each kind.
    """

    output: str | None = None
    kills: int = 50
    pairs: int = 100
    small: bool = False


class Outcome(NamedTuple):
    """A fault, the message that the user saw, and whether the run survived; None if it could not be tried here."""

    fault: str
    seen: str
    survived: bool | None


class Faults:
    """The faults, one method each; every run gets a directory under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[tuple[str, ...], Any] = {}

    def undisturbed(self, *more: str) -> Path:
        """Return the directory of a finished run with these settings, which nothing has disturbed."""
        target = FaultTarget(self.folder / "undisturbed", *more)
        if fingerprint(target.folder) is None:
            target.end(target.start())
        assert fingerprint(target.folder) is not None, target.seen
        return target.folder

    def same(self, target: FaultTarget) -> bool:
        """Return True if the run has ended with the fingerprint of the undisturbed run."""
        if target.more not in self._references:
            self._references[target.more] = fingerprint(self.undisturbed(*target.more))
        return bool(fingerprint(target.folder) == self._references[target.more])

    def kills(self, kills: int) -> Outcome:
        """Kill a run at random times after it has taken its lock; when a run ends in spite of this, start another."""
        timing = json.loads((self.undisturbed() / "result.json").read_text())["timing"]
        seconds = sum(timing[name] for name in ("train", "evaluation", "saving"))
        draw = random.Random(0)
        killed = finished = same = 0
        while killed < kills:
            target = FaultTarget(self.folder / f"kills-{finished}")
            process = target.start()
            while process.poll() is None and not target.held_by(process.pid):
                time.sleep(0.005)
            try:
                process.wait(timeout=draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                target.stop(process)
                killed += 1
                continue
            target.end(process)
            finished, same = finished + 1, same + self.same(target)
        target.resumed()
        finished, same = finished + 1, same + self.same(target)
        seen = f"{killed} kills within {finished} runs; {same} of {finished} runs bit-identical"
        return Outcome(f"SIGKILL at {kills} random times", seen, same == finished)

    def full_disk(self, leave_kib: int, what: str) -> Outcome:
        """Fill the disk to ``leave_kib`` KiB, let the run fail, free the disk, and resume."""
        with small_disk(24) as disk:
            target = FaultTarget(disk / "runs")
            process = target.start()
            target.wait_for_checkpoints()
            filler = fill(disk, leave_kib)
            target.end(process)
            filler.unlink()
            _, start = target.resumed()
            return Outcome(f"disk full while writing {what}", f"{target.seen}; then {start}", self.same(target))

    def full_disk_at_the_result(self) -> Outcome:
        """Fill the disk so that everything fits but the last page of the result."""
        more = ("recipe.epochs=1", "recipe.batch_size=4", "checkpoint.steps=null")
        whole = self.undisturbed(*more)
        pages = [math.ceil((whole / name).stat().st_size / 4096) for name in ("checkpoint.pt", "result.json")]
        with small_disk(24) as disk:
            target = FaultTarget(disk / "runs", *more)
            process = target.start()
            target.wait_for("metrics.jsonl")
            filler = fill(disk, 4 * (sum(pages) - 1))
            target.end(process)
            filler.unlink()
            hit = "result.json" in target.seen and (target.folder / "checkpoint.pt").exists()
            target.resumed()
            return Outcome("disk full while writing the result", target.seen, hit and self.same(target))

    def read_only(self) -> Outcome:
        """Make the disk read-only between two commands."""
        with small_disk(24) as disk:
            target = FaultTarget(disk / "runs").interrupted()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            target.end(target.start())
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            target.resumed()
            return Outcome("run directory read-only", target.seen, self.same(target))

    def damaged(self, name: str, damage: Callable[[Path], None], files: Callable[[Path], list[Path]]) -> Outcome:
        """Apply ``damage`` to some files of an interrupted run, and resume it."""
        target = FaultTarget(Path(tempfile.mkdtemp(dir=self.folder))).interrupted()
        for file in files(target.folder):
            damage(file)
        warnings, start = target.resumed()
        return Outcome(name, f"{warnings}; {start}", self.same(target))

    def foreign_lock(self, host: str, seconds: int) -> Outcome:
        """Leave a lock behind whose owner is dead: on this host, or on another with an old heartbeat."""
        target = FaultTarget(Path(tempfile.mkdtemp(dir=self.folder))).interrupted()
        owner = target.folder / "owner.json"
        mine = json.loads(owner.read_text())
        owner.write_text(json.dumps({**mine, "host": mine["host"] if host == "this host" else host}))
        os.utime(owner, (time.time() - seconds,) * 2)
        begin = time.monotonic()
        target.end(target.start())
        seen = f"{target.seen}, {time.monotonic() - begin:.0f} s in all"
        return Outcome(f"lock left behind by {host}, {seconds} s ago", seen, self.same(target))

    def lock_of_a_living_owner(self) -> Outcome:
        """Hold the lock from another host whose heartbeat continues: the run must be refused."""
        target = FaultTarget(Path(tempfile.mkdtemp(dir=self.folder))).interrupted()
        owner = target.folder / "owner.json"
        mine = json.loads(owner.read_text())
        owner.write_text(json.dumps({**mine, "host": "another host"}))
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                os.utime(owner)

        heart = threading.Thread(target=beat)
        heart.start()
        target.end(target.start())
        over.set()
        heart.join()
        refused = "is being written by another process" in target.seen
        os.utime(owner, (0, 0))
        target.resumed()
        return Outcome("lock of another host whose heart beats", target.seen, refused and self.same(target))

    def stood_still(self) -> Outcome:
        """Stop a process until another host has taken its run, and wake it: it must leave the run alone."""
        target = FaultTarget(Path(tempfile.mkdtemp(dir=self.folder)))
        process = target.start()
        target.wait_for_checkpoints()
        process.send_signal(signal.SIGSTOP)
        owner = target.folder / "owner.json"
        mine = json.loads(owner.read_text())
        owner.write_text(json.dumps({**mine, "host": "another host", "token": "another"}))
        files = {path.name: path.read_bytes() for path in target.folder.iterdir() if path.suffix != ".tmp"}
        process.send_signal(signal.SIGCONT)
        target.end(process)
        untouched = all(_is_as_it_was(target.folder / name, content) for name, content in files.items())
        os.utime(owner, (0, 0))
        target.resumed()
        fault = "the process stands still, and another host takes the run"
        return Outcome(fault, target.seen, untouched and self.same(target))

    def signals(self) -> Outcome:
        """Send SIGTERM at random times: in a step, in an evaluation, while a checkpoint is being written."""
        draw, target = random.Random(1), FaultTarget(self.folder / "sigterm", "checkpoint.steps=1")
        codes: list[int] = []
        while not (target.folder / "result.json").exists():
            process = target.start()
            while not (target.folder / "owner.json").exists() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.1, 1.2))
            target.stop(process, signal.SIGTERM)
            codes.append(process.returncode)
        *stopped, _ = codes  # the last process finished, before or in spite of the signal
        good = set(stopped) == {EXIT_STOPPED} and self.same(target)
        seen = f"{len(stopped)} times stopped with exit code {EXIT_STOPPED}, then done"
        return Outcome("SIGTERM at random times, in steps, evaluations and checkpoints", seen, good)

    def data_deleted(self) -> Outcome:
        """Delete the data while the run trains; it must end all the same, because its data are on the device."""
        source = Path(os.environ.get("ISDA_DATA", "data")) / "cifar-10-batches-py"
        if not source.is_dir():
            return Outcome("data deleted during training", NO_CIFAR, None)
        data = self.folder / "data"
        shutil.copytree(source, data / source.name)
        small = (*CIFAR, "recipe.epochs=3")
        whole = self.undisturbed(*small)
        target = FaultTarget(self.folder / "deleted", *small, f"data_dir={data}")
        process = target.start()
        target.wait_for_checkpoints(1)
        shutil.rmtree(data)
        target.end(process)
        same = fingerprint(target.folder) == fingerprint(whole)
        return Outcome("data deleted during training", target.seen, same and not data.exists())

    def refused(self, name: str, words: str, *more: str, address_space: int | None = None) -> Outcome:
        """Start a run that cannot end well: it must exit with 2 and these words, without weights or a result."""
        target = FaultTarget(Path(tempfile.mkdtemp(dir=self.folder)), *more)
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (address_space or -1,) * 2)
        done = subprocess.run(
            target.command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=300
        )
        errors = (line for line in done.stderr.splitlines() if line.startswith("error"))
        seen = next(errors, "no sentence").replace(str(target.runs_dir), "runs")
        if "cifar10 in" in seen:
            return Outcome(name, NO_CIFAR, None)
        weights = list(target.folder.glob("checkpoint*")) + list(target.folder.glob("result.json"))
        holds = done.returncode == 2 and words in seen and not weights
        return Outcome(name, f"{seen} (exit code {done.returncode})", holds)

    def pairs(self, pairs: int) -> Outcome:
        """Start the same run in two processes at the same moment: exactly one must train."""
        context = multiprocessing.get_context("fork")
        good = 0
        for index in range(pairs):
            runs_dir = self.folder / f"pair-{index}"
            gate, answers = context.Barrier(2), context.Queue()
            two = [context.Process(target=_launch, args=(runs_dir, gate, answers)) for _ in range(2)]
            for process in two:
                process.start()
            said = sorted(answers.get(timeout=120) for _ in two)
            for process in two:
                process.join()
            (metrics,) = runs_dir.glob("*/metrics.jsonl")
            segments = metrics.read_text().count('"segment"')
            good += said in (["refused", "trained"], ["done", "trained"]) and segments == 1
        return Outcome("two launches at once", f"exactly one trained in {good} of {pairs}", good == pairs)


def _launch(runs_dir: Path, gate: Any, answers: Any) -> None:
    """Run in a process of its own, and report "trained", "done" (by the other process) or "refused"."""
    torch.set_num_threads(1)
    cfg = compose([*RUN, "recipe.epochs=1", "dataset.train_limit=64", f"runs_dir={runs_dir}"])
    metrics = runs_dir / cfg.run_id / "metrics.jsonl"
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        gate.wait()
        try:
            run(cfg)
        except LockedError:
            answers.put("refused")
            return
    owner_pid = json.loads((metrics.parent / "environment.json").read_text())["pid"]
    answers.put("trained" if owner_pid == os.getpid() else "done")


def _is_as_it_was(path: Path, content: bytes) -> bool:
    """Return True if the file is unchanged, or is a checkpoint that has been deleted.

    A process that is stopped while it writes a checkpoint still replaces the oldest one by it when it wakes.
    """
    is_gone = path.name.startswith("checkpoint-") and not path.exists()
    return is_gone or path.read_bytes() == content


def all_of(faults: Faults, options: Options) -> list[Callable[[], Outcome]]:
    """List the faults; with ``small=true`` one of each kind, with two kills and two pairs."""
    damaged, refused = faults.damaged, faults.refused
    if options.small:
        return [
            lambda: faults.pairs(2),
            lambda: faults.kills(2),
            lambda: faults.full_disk(200, "checkpoints"),
            faults.full_disk_at_the_result,
            faults.read_only,
            lambda: damaged("one bit of the last checkpoint flipped", flip, newest),
            faults.stood_still,
        ]
    too_big = ("model=wrn28_10", "model.depth=28", *CIFAR, "dataset.train_limit=4000", "recipe.batch_size=4000")
    tomorrow = time.time() + 86400
    return [
        lambda: faults.pairs(options.pairs),
        lambda: faults.kills(options.kills),
        faults.signals,
        lambda: faults.full_disk(200, "checkpoints"),
        lambda: faults.full_disk(0, "a line of metrics"),
        faults.full_disk_at_the_result,
        faults.read_only,
        lambda: damaged("last checkpoint truncated", halve, newest),
        lambda: damaged("last checkpoint emptied", lambda path: os.truncate(path, 0), newest),
        lambda: damaged("one bit of the last checkpoint flipped", flip, newest),
        lambda: damaged("both checkpoints damaged", flip, both),
        lambda: damaged("half a last line in metrics.jsonl", lambda path: append(path, '{"kind": "epo'), metrics),
        lambda: damaged(
            "clock set back by a day (files of tomorrow)",
            lambda path: os.utime(path, (tomorrow, tomorrow)),
            lambda folder: list(folder.iterdir()),
        ),
        lambda: faults.foreign_lock("this host", 1),
        lambda: faults.foreign_lock("another host", 90),
        lambda: faults.foreign_lock("another host", 300),
        faults.lock_of_a_living_owner,
        faults.stood_still,
        faults.data_deleted,
        lambda: refused("the loss becomes NaN", "no longer finite at step", "recipe.lr=1e30"),
        lambda: refused(
            "out of memory in a step", "set compute.micro_batch=", *too_big, address_space=9 * ONE_GIB // 2
        ),
    ]


def main() -> None:
    """Try all faults, print the table, and exit with 1 if a run did not survive."""
    options = parse_options(Options, sys.argv[1:])
    output = output_path(options.output)
    if os.geteuid() != 0:
        raise UserError("full and read-only disks are mounted for this: run it as root, in a container for example")
    origin, outcomes = provenance(), []
    with tempfile.TemporaryDirectory() as name:
        for fault in all_of(Faults(Path(name)), options):
            outcomes.append(fault())
            print(f"{outcomes[-1].fault}: {outcomes[-1].seen}", file=sys.stderr, flush=True)
    lines = [
        "# Faults: what the user saw, and whether the run survived",
        "",
        "`python tests/faults/faults.py`: a small ResNet on digits, 20 epochs, a checkpoint every 3 steps. Survived:",
        "the same command, given again without the fault, ended with the weights, statistics and curves of an",
        "undisturbed run, bit for bit; for runs that cannot end well, that they left neither weights nor a result.",
        "",
        "| fault | seen | survived |",
        "| --- | --- | --- |",
        *(f"| {one.fault} | {one.seen.replace('|', '/')} | {ANSWERS[one.survived]} |" for one in outcomes),
        "",
        *machine(),
        f"Revision {origin['git_revision']}{'' if origin['git_clean'] else ', changed since'}.",
    ]
    missed = (one.fault for one in outcomes if one.survived is False)
    conclude(lines, missed, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
