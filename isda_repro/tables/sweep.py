"""A table's missing runs, one after the other, each a process of its own; and how far they are."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from isda_repro.config import write_frozen
from isda_repro.errors import EXIT_INTERRUPTED, UserError
from isda_repro.tables.aggregate import read_value
from isda_repro.tables.plan import Compose, Plan, Run, expand
from isda_repro.tables.records import EpochRecord, RecordError, read_metrics
from isda_repro.tables.specification import Table, load_table

TRAIN = (sys.executable, "train.py")
PATIENCE = 300.0  # seconds after Ctrl-C in which a run may end its step and save; a second Ctrl-C ends it at once


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


# ------------------------------------------------------------------------------------------------------------ running


def sweep(options: SweepOptions, compose: Compose, command: Sequence[str] = TRAIN) -> int:
    """Run what is missing; a run that fails is reported and the others still run.

    Args:
        options: the command line.
        compose: ``isda_repro.config.compose``.
        command: what starts one run; the path of its frozen configuration is appended.

    Returns:
        The exit code: 0, 1 if a run failed, 130 after Ctrl-C.
    """
    if options.cluster != "local":
        raise UserError(f"there is no cluster={options.cluster}; cluster= can be local")
    table, plan = planned(options, compose)
    runs = list({run.run_id: run for cell_runs in plan.values() for run in cell_runs}.values())
    failed: dict[str, str] = {}
    started = 0
    for number, run in enumerate(runs, start=1):
        position, folder = f"[{number}/{len(runs)}] {run.run_id}", Path(options.runs_dir) / run.run_id
        if _has_result(folder):
            _say(f"{position}: {_already(folder, table.metric, failed)}")
            continue
        if options.dry_run:
            _say(f"{position}: would run {shlex.join(['python', 'train.py', str(folder / 'config.yaml')])}")
            continue
        _say(f"{position}: starts")
        started += 1
        try:
            _say(f"{position}: {_run(run, folder, table.metric, command, failed)}")
        except KeyboardInterrupt:
            again = sweep_command(options.table, options.runs_dir, options.set, options.data_dir)
            _say(f"\nstopped in {position}; to go on: {again}")
            return EXIT_INTERRUPTED
    done = sum(run.run_id not in failed and _has_result(Path(options.runs_dir) / run.run_id) for run in runs)
    _say(f"table={table.name}: {done} of {len(runs)} runs done" + (f", {started} started now" if started else ""))
    for name, why in failed.items():
        _say(f"failed: {name} ({why})")
    return 1 if failed else 0


def _has_result(folder: Path) -> bool:
    """Its presence is what finished means."""
    return (folder / "result.json").exists()


def _already(folder: Path, metric: str, failed: dict[str, str]) -> str:
    try:
        return f"already done, {_error(folder, metric)}"
    except RecordError as error:
        failed[folder.name] = f"{error}; delete the file and run again"
        return "FAILED, its result cannot be used"


def _run(run: Run, folder: Path, metric: str, command: Sequence[str], failed: dict[str, str]) -> str:
    """Run one frozen configuration to its end and say how it went."""
    _freeze(run, folder / "config.yaml")
    begin = time.monotonic()
    code = _wait(subprocess.Popen([*command, str(folder / "config.yaml")]))
    seconds = f"{time.monotonic() - begin:.1f} s"
    if code != 0:
        failed[run.run_id] = f"exit code {code}"
        return f"FAILED after {seconds} with exit code {code}"
    try:
        return f"done in {seconds}, {_error(folder, metric)}"
    except RecordError as error:
        failed[run.run_id] = f"exit code 0, but no result: {error}"
        return f"FAILED after {seconds}: it ended without a result"


def _freeze(run: Run, path: Path) -> None:
    """Write the configuration, unless this very one is there; one that differs does so in folders or devices only."""
    config = run.config
    if path.exists() and path.read_text(encoding="utf-8") == OmegaConf.to_yaml(config):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frozen(config, path)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code. Ctrl-C reaches the run too: it gets time to end by itself before it is ended."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        for end in (process.terminate, process.kill):
            try:
                process.wait(PATIENCE)
                break
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                end()
        process.wait()
        raise


def _error(folder: Path, metric: str) -> str:
    result, value = read_value(folder / "result.json", metric)
    if result.run_id != folder.name:
        raise RecordError(f"{folder / 'result.json'}: it is the result of {result.run_id}")
    return f"{result.evaluated_on} error {value:.2f}"


def _say(line: str) -> None:
    """At once, so that our lines stand in order with those of the runs."""
    print(line, flush=True)


# ------------------------------------------------------------------------------------------------------------- status


def status(options: SweepOptions, compose: Compose) -> Iterator[str]:
    """One line for the table, then one for each cell."""
    table, plan = planned(options, compose)
    runs_dir = Path(options.runs_dir)
    names = {run.run_id for runs in plan.values() for run in runs}
    done = sum(_has_result(runs_dir / name) for name in names)
    yield f"table={table.name}: {done} of {len(names)} runs done"
    width = max(len(cell.name) for cell in plan)
    for cell, runs in plan.items():
        yield f"  {cell.name:<{width}}  {_cell_status(runs, runs_dir)}"


def _cell_status(runs: tuple[Run, ...], runs_dir: Path) -> str:
    open_runs = [run for run in runs if not _has_result(runs_dir / run.run_id)]
    done = len(runs) - len(open_runs)
    begun = [f"seed {run.seed}: {state}" for run in open_runs if (state := _progress(runs_dir / run.run_id, run))]
    if not begun and not done:
        return "not started"
    return "; ".join([f"done {done} of {len(runs)}", *begun])


def _progress(folder: Path, run: Run) -> str | None:
    """How far an unfinished run came; a line torn by a crash hides none of those before it."""
    path, last = folder / "metrics.jsonl", None
    if not path.exists():
        return None
    try:
        for record in read_metrics(path):
            last = record if isinstance(record, EpochRecord) else last
    except (RecordError, UnicodeDecodeError) as error:
        if last is None:
            return str(error)
    if last is None:
        return "in its first epoch"
    return f"epoch {last.epoch} of {run.settings['recipe']['epochs']}, test error {last.test_error:.2f}"
