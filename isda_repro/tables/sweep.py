"""A table's missing runs, one after the other, each a process of its own."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from isda_repro.config import write_frozen
from isda_repro.console import say
from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED, UserError
from isda_repro.stopping import exit_code, heeding
from isda_repro.tables.aggregate import read_value
from isda_repro.tables.plan import Compose, Plan, Run, expand
from isda_repro.tables.records import RecordError
from isda_repro.tables.specification import Table, load_table

TRAIN = (sys.executable, "train.py")
STOPPED = (EXIT_STOPPED, EXIT_INTERRUPTED)  # a run's exit codes that mean: saved, the same command goes on


@dataclass
class SweepOptions:
    """What ``scripts/sweep.py`` takes."""

    table: str = MISSING
    cluster: str = "local"
    dry_run: bool = False
    runs_dir: str = "runs"
    data_dir: str | None = None
    set: list[str] = field(default_factory=list)


def sweep_command(table: str, runs_dir: str = "runs", extra: Sequence[str] = (), data_dir: str | None = None) -> str:
    """The command that fills a table."""
    options = [f"table={table}"]
    options += [f"runs_dir={runs_dir}"] if runs_dir != "runs" else []
    options += [f"data_dir={data_dir}"] if data_dir is not None else []
    options += [f"set=[{','.join(extra)}]"] if extra else []
    return shlex.join(["python", "scripts/sweep.py", *options])


def planned(options: SweepOptions, compose: Compose) -> tuple[Table, Plan]:
    """The table and its runs; the two folders, which name no run, go into every frozen configuration."""
    table = load_table(options.table)
    folders = [f"runs_dir={_quoted(options.runs_dir)}"]
    if options.data_dir is not None:
        folders.append(f"data_dir={_quoted(options.data_dir)}")
    return table, expand(table, compose, [*options.set, *folders])


def _quoted(text: str) -> str:
    """A value that Hydra's grammar must not read anything into."""
    return "'" + text.replace("'", "\\'") + "'"


def sweep(options: SweepOptions, compose: Compose, command: Sequence[str] = TRAIN) -> int:
    """Run what is missing; a run that fails is reported and the others still run.

    Signals that ask to stop are passed on to the run in progress, and end the sweep with it.

    Args:
        options: the command line.
        compose: ``isda_repro.config.compose``.
        command: what starts one run; the path of its frozen configuration is appended.

    Returns:
        The exit code: 0, 1 if a run failed, 75 or (after Ctrl-C) 130 if the sweep or its run was asked to stop.
    """
    if options.cluster != "local":
        raise UserError(f"there is no cluster={options.cluster}; cluster= can be local")
    table, plan = planned(options, compose)
    if any(run.config.force for runs in plan.values() for run in runs):
        raise UserError("force=true is for one run, by train.py: a sweep, given again, would never end")
    return _Sweep(options, table, plan, command).run()


class _Sweep:
    """One pass over the runs of a table."""

    def __init__(self, options: SweepOptions, table: Table, plan: Plan, command: Sequence[str]) -> None:
        self._options, self._table, self._command = options, table, command
        self._runs = list({run.run_id: run for cell_runs in plan.values() for run in cell_runs}.values())
        self._current = _Current()
        self._started = 0
        self._failed: dict[str, str] = {}

    def run(self) -> int:
        """All of them; the exit code."""
        with heeding(self._current.take):
            for number, run in enumerate(self._runs, start=1):
                position, folder = f"[{number}/{len(self._runs)}] {run.run_id}", self._folder(run)
                if self._current.asked is not None:  # between two runs
                    return self._stopped(exit_code(self._current.asked))
                if _is_over(folder):
                    say(f"{position}: {self._already(folder)}")
                elif self._options.dry_run:
                    say(f"{position}: would run {shlex.join(['python', 'train.py', str(folder / 'config.yaml')])}")
                elif (stopped := self._one(run, folder, position)) is not None:
                    return self._stopped(stopped)
        return self._end()

    def _stopped(self, code: int) -> int:
        options = self._options
        say(f"to go on: {sweep_command(options.table, options.runs_dir, options.set, options.data_dir)}")
        return code

    def _folder(self, run: Run) -> Path:
        return Path(self._options.runs_dir) / run.run_id

    def _already(self, folder: Path) -> str:
        try:
            return f"already done, {_error(folder, self._table.metric)}"
        except RecordError as error:
            self._failed[folder.name] = f"{error}; delete the file and run again"
            return "FAILED, its result cannot be used"

    def _one(self, run: Run, folder: Path, position: str) -> int | None:
        """Run one to its end and say how it went; the sweep's exit code if it must end here."""
        say(f"{position}: starts")
        self._started += 1
        begin = time.monotonic()
        try:
            _freeze(run, folder / "config.yaml")
            code = self._current.run([*self._command, str(folder / "config.yaml")])
        except OSError as error:
            self._failed[folder.name] = f"{error.strerror}: {error.filename}"
            say(f"{position}: FAILED to start")
            return None
        say(f"{position}: {self._how_it_went(folder, code)} after {time.monotonic() - begin:.1f} s")
        if self._current.asked is not None:
            return exit_code(self._current.asked)
        return code if code in STOPPED else None

    def _how_it_went(self, folder: Path, code: int) -> str:
        if code in STOPPED or (code != 0 and self._current.asked is not None):
            return f"stopped with exit code {code}"
        if code != 0:
            self._failed[folder.name] = f"exit code {code}"
            return f"FAILED with exit code {code}"
        try:
            return f"done, {_error(folder, self._table.metric)},"
        except RecordError as error:
            self._failed[folder.name] = f"exit code 0, but no result: {error}"
            return "FAILED without a result"

    def _end(self) -> int:
        done = sum(run.run_id not in self._failed and has_result(self._folder(run)) for run in self._runs)
        now = f", {self._started} started now" if self._started else ""
        say(f"table={self._table.name}: {done} of {len(self._runs)} runs done{now}")
        for name, why in self._failed.items():
            say(f"failed: {name} ({why})")
        return 1 if self._failed else 0


class _Current:
    """The run that is in progress, if any, and the signal that has asked to stop, if one has."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._times = 0

    def take(self, asked: signal.Signals) -> None:
        """Pass a signal on: the run saves at the first, leaves at once at the second, and is ended at the third."""
        self.asked, self._times = self.asked or asked, self._times + 1
        if self._process is not None:
            self._process.send_signal(asked if self._times < 3 else signal.SIGKILL)

    def run(self, command: Sequence[str]) -> int:
        """Its exit code."""
        self._process = subprocess.Popen(command)
        if self.asked is not None:  # it came while the process was being made
            self._process.send_signal(self.asked)
        try:
            return self._process.wait()
        finally:
            self._process = None


def has_result(folder: Path) -> bool:
    """Its presence is what finished means."""
    return (folder / "result.json").exists()


def _is_over(folder: Path) -> bool:
    """Whether nothing is left to do; with checkpoints beside the result, its process died before its last acts."""
    return has_result(folder) and not any(folder.glob("checkpoint-*.pt"))


def _freeze(run: Run, path: Path) -> None:
    """Write the configuration, unless this very one is there; one that differs does so in folders or devices only."""
    config = run.config
    if path.exists() and path.read_bytes() == OmegaConf.to_yaml(config).encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frozen(config, path)


def _error(folder: Path, metric: str) -> str:
    result, value = read_value(folder / "result.json", metric)
    if result.run_id != folder.name:
        raise RecordError(f"{folder / 'result.json'}: it is the result of {result.run_id}")
    return f"{result.evaluated_on} error {value:.2f}"
