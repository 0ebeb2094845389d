"""What happens to a run when the machine fails it. Prints a table; real processes, real signals, real full disks.

    python scripts/faults.py                                            # a quarter of an hour on one core
    python scripts/faults.py output=results/faults.md                   # also writes what it prints

Each fault is done to a run on digits. Then the same command is given again, without the fault, and the run has survived
if it ends with the weights, the statistics and the curves of a run that nothing was done to, bit for bit. Full and
read-only disks are small file systems of their own, for which this must run as root. Exits 1 if a run did not survive.
"""

import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarking import conclude, machine, output_argument

from isda_repro.config import compose
from isda_repro.errors import one_sentence_errors
from isda_repro.training.lock import LockedError
from isda_repro.training.run import run

ROOT = Path(__file__).resolve().parents[1]
RUN = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "recipe.epochs=20", "loss=isda", "model.dropout=0.1"),
    *("dataset.train_limit=640", "dataset.test_limit=100", "tracking=none"),
]
KILLS, PAIRS = 50, 100
ONE_GIB = 2**30


class Outcome(NamedTuple):
    """What was done, what the user saw, and whether the run survived."""

    fault: str
    seen: str
    survived: bool


class Patient:
    """A run to which something is done, in a folder of its own."""

    def __init__(self, runs_dir: Path, *more: str) -> None:
        self.command = [sys.executable, "train.py", *RUN, f"runs_dir={runs_dir}", "checkpoint.steps=3", *more]
        self.runs_dir = runs_dir
        self.folder = runs_dir / compose([*RUN, *more]).run_id
        self.seen = ""

    def start(self) -> subprocess.Popen[str]:
        """Begin it, and do not wait."""
        return subprocess.Popen(
            self.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait_for_checkpoints(self, count: int = 2) -> None:
        """Until the run has saved its state."""
        deadline = time.monotonic() + 120
        while len(list(self.folder.glob("checkpoint-*.pt"))) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.folder} has no {count} checkpoints")
            time.sleep(0.01)

    def stop(self, process: subprocess.Popen[str], number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, and keep what the run said last."""
        process.send_signal(number)
        self.end(process)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Wait for it, and keep what it said last and how it left."""
        said = process.communicate(timeout=300)[1].strip().splitlines()
        last = [line for line in said if line.startswith(("error", "warning", "SIG"))]
        seen = (last[-1] if last else "nothing").replace(str(self.runs_dir), "runs")
        self.seen = f"{seen} (exit code {process.returncode})"

    def interrupted(self) -> "Patient":
        """Run until it has two checkpoints, then kill it."""
        process = self.start()
        self.wait_for_checkpoints()
        self.stop(process)
        return self

    def resumed(self) -> tuple[str, str]:
        """Give the command again; what it said of trouble, and where it started."""
        done = subprocess.run(self.command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        warnings = [line for line in done.stderr.splitlines() if line.startswith(("error", "warning"))]
        start = next((line for line in done.stdout.splitlines() if line.startswith("goes on")), "starts at step 0")
        return "; ".join(warnings).replace(str(self.runs_dir), "runs") or "nothing", start


def fingerprint(folder: Path) -> Any:
    """Weights, statistics and curves of a finished run; None if it is not finished."""
    if not (folder / "result.json").exists():
        return None
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    tensors = {**state["network"], **state["criterion"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [{**line, "timing": None} for line in lines if line["kind"] == "epoch"]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, epochs


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    """A file system of that size."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path, leave_kib: int) -> Path:
    """Take all room but that."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * (shutil.disk_usage(disk).free - leave_kib * 1024))
    return filler


class Faults:
    """The faults, one method each; ``reference`` is the fingerprint of the undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        undisturbed = Patient(folder / "undisturbed")
        undisturbed.end(undisturbed.start())
        self.reference = fingerprint(undisturbed.folder)
        assert self.reference is not None, undisturbed.seen

    def same(self, patient: Patient) -> bool:
        """Whether the run has ended as the undisturbed one."""
        return bool(fingerprint(patient.folder) == self.reference)

    def kills(self) -> Outcome:
        """At random times of the clock, the start of the process included; runs that end are begun anew."""
        draw = random.Random(0)
        killed = finished = same = in_training = 0
        while killed < KILLS:
            patient = Patient(self.folder / f"kills-{finished}")
            process = patient.start()
            try:
                process.wait(timeout=draw.uniform(0.5, 9))
            except subprocess.TimeoutExpired:
                owner = patient.folder / "owner.json"
                in_training += owner.exists() and json.loads(owner.read_text() or "{}").get("pid") == process.pid
                patient.stop(process)
                killed += 1
                continue
            patient.end(process)
            finished, same = finished + 1, same + self.same(patient)
        patient.resumed()
        finished, same = finished + 1, same + self.same(patient)
        seen = f"{killed} kills, {in_training} of them after the run had taken its folder; "
        seen += f"{same} of {finished} runs bit-identical"
        return Outcome(f"SIGKILL at {KILLS} random times", seen, same == finished)

    def full_disk(self, leave_kib: int, what: str) -> Outcome:
        """The disk fills up; room is made; the run goes on."""
        with small_disk(24) as disk:
            patient = Patient(disk / "runs")
            process = patient.start()
            patient.wait_for_checkpoints()
            filler = fill(disk, leave_kib)
            patient.end(process)
            filler.unlink()
            _, start = patient.resumed()
            return Outcome(f"disk full while writing {what}", f"{patient.seen}; then {start}", self.same(patient))

    def read_only(self) -> Outcome:
        """The disk becomes read-only between two commands."""
        with small_disk(24) as disk:
            patient = Patient(disk / "runs").interrupted()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            patient.end(patient.start())
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            patient.resumed()
            return Outcome("run directory read-only", patient.seen, self.same(patient))

    def damaged(self, name: str, damage: Callable[[Path], None], files: Callable[[Path], list[Path]]) -> Outcome:
        """Something is done to the files of an interrupted run."""
        patient = Patient(Path(tempfile.mkdtemp(dir=self.folder))).interrupted()
        for file in files(patient.folder):
            damage(file)
        warnings, start = patient.resumed()
        return Outcome(name, f"{warnings}; {start}", self.same(patient))

    def stale_lock(self, host: str, seconds: int) -> Outcome:
        """A lock that its dead owner has left behind."""
        patient = Patient(Path(tempfile.mkdtemp(dir=self.folder))).interrupted()
        owner = patient.folder / "owner.json"
        mine = json.loads(owner.read_text())
        owner.write_text(json.dumps({**mine, "host": mine["host"] if host == "this host" else host}))
        os.utime(owner, (time.time() - seconds,) * 2)
        patient.end(patient.start())
        seen = patient.seen.replace(mine["host"], "HOST")
        os.utime(owner, (0, 0)) if owner.exists() else None
        patient.resumed()
        return Outcome(f"lock left behind by {host}, {seconds} s ago", seen, self.same(patient))

    def signals(self) -> Outcome:
        """SIGTERM at random times: in a step, in an evaluation, while a checkpoint is being written."""
        draw, patient, codes = random.Random(1), Patient(self.folder / "sigterm", "checkpoint.steps=1"), []
        while not (patient.folder / "result.json").exists():
            process = patient.start()
            while not (patient.folder / "owner.json").exists() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.1, 1.2))
            patient.stop(process, signal.SIGTERM)
            codes.append(process.returncode)
        counted = ", ".join(f"{codes.count(code)} times exit code {code}" for code in sorted(set(codes)))
        return Outcome("SIGTERM at random times, in steps, evaluations and checkpoints", counted, self.same(patient))

    def data_deleted(self) -> Outcome:
        """The data goes away while the run trains: it is on the device already."""
        source = Path(os.environ.get("ISDA_DATA", "data")) / "cifar-10-batches-py"
        if not source.is_dir():
            return Outcome("data deleted during training", "not tried: no CIFAR-10 under $ISDA_DATA", False)
        data = self.folder / "data"
        shutil.copytree(source, data / source.name)
        small = ["dataset=cifar10", "recipe.epochs=3", f"data_dir={data}"]
        patient = Patient(self.folder / "deleted", *small)
        process = patient.start()
        patient.wait_for_checkpoints(1)
        shutil.rmtree(data)
        patient.end(process)
        return Outcome(
            "data deleted during training", patient.seen, fingerprint(patient.folder) is not None and not data.exists()
        )

    def refused(self, name: str, words: str, *more: str, address_space: int | None = None) -> Outcome:
        """A run that cannot end well says why, in these words, and leaves no result."""
        patient = Patient(Path(tempfile.mkdtemp(dir=self.folder)), *more)
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (address_space or -1,) * 2)
        done = subprocess.run(
            patient.command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=limit, timeout=300
        )
        errors = (line for line in done.stderr.splitlines() if line.startswith("error"))
        seen = next(errors, "no sentence").replace(str(patient.runs_dir), "runs")
        weights = list(patient.folder.glob("checkpoint*")) + list(patient.folder.glob("result.json"))
        holds = done.returncode == 2 and words in seen and not weights
        return Outcome(name, f"{seen} (exit code {done.returncode})", holds)

    def pairs(self) -> Outcome:
        """The same run started by two processes at the same moment."""
        context = multiprocessing.get_context("fork")
        good = 0
        for index in range(PAIRS):
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
        return Outcome("two launches at once", f"exactly one trained in {good} of {PAIRS}", good == PAIRS)


def _launch(runs_dir: Path, gate: Any, answers: Any) -> None:
    """In a process of its own."""
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


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path: Path, text: str) -> None:
    """To the end of a file."""
    with path.open("a") as file:
        file.write(text)


def newest(folder: Path) -> list[Path]:
    """The last checkpoint."""
    return [max(folder.glob("checkpoint-*.pt"))]


def both(folder: Path) -> list[Path]:
    """All checkpoints."""
    return list(folder.glob("checkpoint-*.pt"))


def main() -> None:
    """Do them all, report."""
    output = output_argument(sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        faults = Faults(Path(name))
        halve: Callable[[Path], None] = lambda path: os.truncate(path, path.stat().st_size // 2)  # noqa: E731
        to_do: list[Callable[[], Outcome]] = [
            faults.pairs,
            faults.kills,
            faults.signals,
            lambda: faults.full_disk(200, "checkpoints"),
            lambda: faults.full_disk(0, "a line of metrics"),
            faults.read_only,
            lambda: faults.damaged("last checkpoint truncated", halve, newest),
            lambda: faults.damaged("last checkpoint emptied", lambda path: os.truncate(path, 0), newest),
            lambda: faults.damaged("one bit of the last checkpoint flipped", flip, newest),
            lambda: faults.damaged("both checkpoints damaged", flip, both),
            lambda: faults.damaged(
                "half a last line in metrics.jsonl",
                lambda path: append(path, '{"kind": "epo'),
                lambda folder: [folder / "metrics.jsonl"],
            ),
            lambda: faults.damaged(
                "clock set back by a day (files of tomorrow)",
                lambda path: os.utime(path, (time.time() + 86400,) * 2),
                lambda folder: list(folder.iterdir()),
            ),
            lambda: faults.stale_lock("this host", 1),
            lambda: faults.stale_lock("another host", 1),
            lambda: faults.stale_lock("another host", 300),
            faults.data_deleted,
            lambda: faults.refused("the loss becomes NaN", "no longer finite at step", "recipe.lr=1e30"),
            lambda: faults.refused(
                "out of memory in a step",
                "set compute.micro_batch=",
                *("model=wrn28_10", "model.depth=28", "recipe.batch_size=640"),
                address_space=9 * ONE_GIB // 2,
            ),
        ]
        outcomes = []
        for fault in to_do:
            outcomes.append(fault())
            print(f"{outcomes[-1].fault}: {outcomes[-1].seen}", file=sys.stderr, flush=True)
    lines = [
        "# Faults: what the user saw, and whether the run survived",
        "",
        "`python scripts/faults.py`: a small ResNet on digits, 20 epochs, a checkpoint every 3 steps. Survived: the",
        "same command, given again without the fault, ended with the weights, statistics and curves of an undisturbed",
        "run, bit for bit; for runs that cannot end well, that they left neither weights nor a result.",
        "",
        "| fault | seen | survived |",
        "| --- | --- | --- |",
        *(f"| {one.fault} | {one.seen.replace('|', '/')} | {'yes' if one.survived else 'NO'} |" for one in outcomes),
        "",
        *machine(),
    ]
    conclude(lines, (one.fault for one in outcomes if not one.survived), output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
