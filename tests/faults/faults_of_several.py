"""Faults of one of the two processes of a run, or of their launcher, and whether the run survives. Prints a table.

    python tests/faults/faults_of_several.py                                     # half an hour on two cores
    python tests/faults/faults_of_several.py output=results/faults_of_several.md # also writes what it prints
    python tests/faults/faults_of_several.py small=true                          # one fault of each kind

Like tests/faults/faults.py, but under torchrun: each fault is inflicted on a run on digits, and the same command is
given again. The run has survived if it ends with the weights, statistics and curves of an undisturbed run of two
processes, bit for bit. Exits 1 if a run did not survive.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fault_target import PATIENCE, FaultTarget, fingerprint
from torchrun_target import FAULTY, TorchrunTarget

from isda_repro.config.options import parse_options
from isda_repro.errors import one_sentence_errors
from isda_repro.measurements import conclude, machine, output_path
from isda_repro.runs.records import SegmentRecord, read_metrics
from isda_repro.runs.run_directory import provenance

HANG_MINUTES = 0.1
RESTARTS = 3
LONG = "recipe.epochs=60"


@dataclass
class Options:
    """Options of the script.

    Attributes:
        output: Markdown file to write the table to.
        kills: number of SIGKILLs at random times.
        small: try one fault of each kind.
    """

    output: str | None = None
    kills: int = 50
    small: bool = False


class Outcome(NamedTuple):
    """A fault, the message that the user saw, seconds until both processes had gone, and whether the run survived."""

    fault: str
    seen: str
    seconds: float | None
    survived: bool


@dataclass
class Tally:
    """Counts of kills and of their outcomes.

    Attributes:
        killed: kills of one rank.
        resumed: resumptions from a checkpoint after them.
        restarted: resumptions that torchrun's own restart brought about.
        slowest: largest number of seconds until both ranks had gone.
    """

    killed: int = 0
    resumed: int = 0
    restarted: int = 0
    slowest: float = 0.0


class Faults:
    """The faults, one method each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[str, Any] = {}
        begin, folder_of_it = time.monotonic(), self._undisturbed()
        self.timing = _training_seconds(folder_of_it)
        self.start_up = time.monotonic() - begin - self.timing

    def _undisturbed(self, *more: str) -> Path:
        target = TorchrunTarget(self.folder / "undisturbed", *more)
        target.end(target.start())
        self._references[target.folder.name] = fingerprint(target.folder)
        assert self._references[target.folder.name] is not None, target.seen
        return target.folder

    def same(self, target: FaultTarget) -> bool:
        """Return True if the run has ended with the fingerprint of the undisturbed run."""
        if target.folder.name not in self._references:
            self._undisturbed(*target.more)
        return bool(fingerprint(target.folder) == self._references[target.folder.name])

    def kills(self, kills: int) -> Outcome:
        """Kill a random rank at random times while a run trains; when a run ends, start another."""
        draw, targets, tally = random.Random(0), [self._new(LONG, restarts=RESTARTS)], Tally()
        while self._killed_until_it_ends(targets[-1], kills, draw, tally).killed < kills:
            targets.append(self._new(LONG, restarts=RESTARTS))
        same = sum(self.same(one) for one in targets)
        seen = f"{tally.killed} kills, {tally.resumed} resumptions from a checkpoint, {tally.restarted} of them by "
        seen += (
            f"--max-restarts={RESTARTS}, the others by the same command; {same} of {len(targets)} runs bit-identical"
        )
        fault = f"SIGKILL of one of two ranks while they train, {kills} random times"
        good = kills == tally.killed == tally.resumed and same == len(targets)
        return Outcome(fault, seen, tally.slowest, good)

    def _killed_until_it_ends(self, target: TorchrunTarget, kills: int, draw: random.Random, tally: Tally) -> Tally:
        """Kill ranks of one run until it ends; when torchrun gives up restarting, start the command again."""
        launcher, heard = target.start(), 0
        ranks = target.until_training(launcher)
        while True:
            try:
                launcher.wait(timeout=draw.uniform(0, self.timing) if tally.killed < kills else PATIENCE)
                break
            except subprocess.TimeoutExpired:
                begin = time.monotonic()
                _kill(ranks[draw.randrange(2)])
                target.until_gone(ranks)
            if (target.folder / "result.json").exists():  # the kill came too late
                break
            tally.killed, tally.slowest = tally.killed + 1, max(tally.slowest, time.monotonic() - begin)
            if target.until_going_on(launcher, heard):
                tally.restarted += 1
            else:
                target.end(launcher)
                launcher, heard = target.start(), 0
                target.until_going_on(launcher, heard)
            tally.resumed += target.times_gone_on > heard
            heard, ranks = heard + 1, target.ranks(launcher)
        target.end(launcher)
        return tally

    def early_kills(self, kills: int) -> Outcome:
        """Kill a random rank between the start of the processes and the first checkpoint: nothing can be resumed."""
        draw, target = random.Random(1), self._new()
        killed, slowest = 0, 0.0
        while killed < kills:
            launcher = target.start()
            ranks = target.until_there(launcher)
            time.sleep(draw.uniform(0, self.start_up))
            if target.checkpoints():  # the kill would come too late
                target.stop(launcher)
                target = self._new()
                continue
            _kill(ranks[draw.randrange(2)])
            slowest = max(slowest, target.ended(launcher, ranks))
            killed += 1
        _, start = target.resumed()
        seen = f"{killed} kills; the same command then {start}"
        return Outcome(f"before their first checkpoint, {kills} random times", seen, slowest, self.same(target))

    def own_error(self) -> Outcome:
        """Raise an error in rank 1 alone: its message must come first, then rank 0's about the lost contact."""
        target = self._new()
        launch = target.command.index("train.py")
        target.command[launch] = str(self.folder / "faulty.py")
        (self.folder / "faulty.py").write_text(FAULTY)
        launcher = target.start()
        ranks = target.until_training(launcher)
        seconds = target.ended(launcher, ranks)
        errors = [line for line in target.said if line.startswith("error: ")]
        target.command[launch] = "train.py"
        target.resumed()
        good = errors[0] == "error: rank 1's own" and "rank 0 of 2 has lost contact" in errors[1]
        return Outcome("an error of rank 1 alone", "; then ".join(errors), seconds, good and self.same(target))

    def _new(self, *more: str, restarts: int = 0) -> TorchrunTarget:
        return TorchrunTarget(Path(tempfile.mkdtemp(dir=self.folder)), *more, torchrun=[f"--max-restarts={restarts}"])

    def disturbed(self, fault: str, do: Callable[[subprocess.Popen[str], list[int]], Any], *more: str) -> Outcome:
        """Apply ``do`` to the launcher and the ranks while they train, wait for their end, and resume."""
        target = self._new(*more)
        launcher = target.start()
        ranks = target.until_training(launcher)
        do(launcher, ranks)
        seconds, seen = target.ended(launcher, ranks), target.seen
        target.resumed()
        return Outcome(fault, seen, seconds, self.same(target) and _segments(target.folder) > 1)

    def elastic(self) -> Outcome:
        """Kill rank 0, then rank 1; torchrun must restart the processes by itself each time."""
        target = self._new(restarts=RESTARTS)
        launcher = target.start()
        for victim in (0, 1):
            ranks = target.until_training(launcher)
            os.kill(ranks[victim], signal.SIGKILL)
            while set(target.ranks(launcher)) & {ranks[victim]}:
                time.sleep(0.05)
        target.end(launcher)
        segments, fault = _segments(target.folder), f"--max-restarts={RESTARTS}, rank 0 killed, then rank 1"
        seen = f"one command, {segments} segments (exit code {launcher.returncode})"
        good = launcher.returncode == 0 and segments == 3
        return Outcome(fault, seen, None, good and self.same(target))


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, signal.SIGKILL)


def _training_seconds(folder: Path) -> float:
    timing = json.loads((folder / "result.json").read_text())["timing"]
    return float(sum(timing[name] for name in ("train", "evaluation", "saving")))


def _segments(folder: Path) -> int:
    return sum(isinstance(line, SegmentRecord) for line in read_metrics(folder / "metrics.jsonl"))


def all_of(faults: Faults, options: Options) -> list[Callable[[], Outcome]]:
    """List the faults; with ``small=true`` one of each kind, with two kills."""
    to_rank, hang = faults.disturbed, f"compute.timeout_minutes={HANG_MINUTES}"
    if options.small:
        return [
            lambda: faults.kills(2),
            lambda: to_rank("SIGTERM to torchrun alone", lambda launcher, _: launcher.terminate()),
            lambda: to_rank("rank 1 hangs", lambda _, ranks: os.kill(ranks[1], signal.SIGSTOP), hang),
            faults.own_error,
        ]
    return [
        lambda: faults.kills(options.kills),
        lambda: faults.early_kills(max(1, options.kills // 5)),
        lambda: to_rank("SIGTERM to torchrun alone", lambda launcher, _: launcher.terminate()),
        lambda: to_rank("Ctrl-C", lambda launcher, _: launcher.send_signal(signal.SIGINT)),
        lambda: to_rank("SIGTERM to rank 1 alone", lambda _, ranks: os.kill(ranks[1], signal.SIGTERM)),
        lambda: to_rank("SIGKILL of torchrun", lambda launcher, _: launcher.kill()),
        lambda: to_rank("rank 0 hangs", lambda _, ranks: os.kill(ranks[0], signal.SIGSTOP), hang),
        lambda: to_rank("rank 1 hangs", lambda _, ranks: os.kill(ranks[1], signal.SIGSTOP), hang),
        faults.own_error,
        faults.elastic,
    ]


def main() -> None:
    """Try all faults, print the table, and exit with 1 if a run did not survive."""
    options = parse_options(Options, sys.argv[1:])
    output = output_path(options.output)
    os.environ["OMP_NUM_THREADS"] = "1"
    origin, outcomes = provenance(), []
    with tempfile.TemporaryDirectory() as name:
        for fault in all_of(Faults(Path(name)), options):
            outcomes.append(fault())
            print(f"{outcomes[-1].fault}: {outcomes[-1].seen}", file=sys.stderr, flush=True)
    lines = [
        "# Faults of runs of several processes: what the user saw, and whether the run survived",
        "",
        "`python tests/faults/faults_of_several.py`: torchrun, two processes, a small ResNet on digits, 20 epochs (of",
        "the first fault 60), a checkpoint every 3 steps. Survived: the same command, given again, ended with the",
        "weights, statistics and curves of an undisturbed run of two processes, bit for bit. Seconds: from the fault",
        "until all had gone, of many the longest.",
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
    conclude(lines, missed, output)


def _row(one: Outcome) -> str:
    seconds = "" if one.seconds is None else f"{one.seconds:.1f}"
    return f"| {one.fault} | {one.seen.replace('|', '/')} | {seconds} | {'yes' if one.survived else 'NO'} |"


if __name__ == "__main__":
    with one_sentence_errors():
        main()
