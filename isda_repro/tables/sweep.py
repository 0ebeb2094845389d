"""A table's missing runs, each a process of its own: here, one after the other or several at once, or on a cluster."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from isda_repro.config import write_frozen
from isda_repro.console import say
from isda_repro.errors import UserError
from isda_repro.tables.checked import read_checked
from isda_repro.tables.plan import Compose, Plan, Run, expand
from isda_repro.tables.records import RecordError
from isda_repro.tables.specification import Table, load_table
from isda_repro.tables.tagging import tagged

TRAIN = (sys.executable, "train.py")


@dataclass
class SweepOptions:
    """What ``scripts/sweep.py`` takes."""

    table: str = MISSING
    cluster: str = "local"
    dry_run: bool = False
    runs_dir: str = "runs"
    data_dir: str | None = None
    set: list[str] = field(default_factory=list)
    jobs: int | None = None  # local: runs at once; null: one, or on GPUs runs_per_gpu on each
    runs_per_gpu: int = 1
    partition: str | None = None  # slurm, and all that follows
    time: str = "24:00:00"  # of one job; a run goes on in the next
    nodes: int = 1
    gpus: int = 1  # of each node, and processes; 0: one process without
    cpus: int | None = None  # of each process; null: the cluster's default
    memory: str | None = None  # of each node, as 32G
    max_parallel: int | None = None  # jobs at once
    slurm: list[str] = field(default_factory=list)  # more of sbatch's options, as slurm=[account=x,constraint=h100]


def sweep_command(options: SweepOptions, tables: str | None = None) -> str:
    """The command that goes on with a sweep."""
    standard, words = SweepOptions(), [f"table={tables or options.table}"]
    for name, value in vars(options).items():
        if name in ("table", "dry_run") or value == getattr(standard, name):
            continue
        words.append(f"{name}=[{','.join(value)}]" if isinstance(value, list) else f"{name}={value}")
    return shlex.join(["python", "scripts/sweep.py", *words])


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


@dataclass
class Missing:
    """The runs of a table, each once, and which of them wait for which others."""

    table: Table
    options: SweepOptions
    runs: list[Run]
    needs: dict[str, frozenset[str]]

    def folder(self, run: Run) -> Path:
        """Where it lives."""
        return Path(self.options.runs_dir) / run.run_id

    def says(self, folder: Path) -> str:
        """The result of a finished run.

        Raises:
            RecordError: it cannot be used.
        """
        result = read_checked(folder / "result.json")
        if result.run_id != folder.name:
            raise RecordError(f"{folder / 'result.json'}: it is the result of {result.run_id}")
        value = getattr(result, self.table.metric)
        if value is None:
            raise RecordError(f"{folder / 'result.json'}: it has no {self.table.metric}")
        return f"{result.evaluated_on} error {value:.2f}"


def missing(options: SweepOptions, compose: Compose) -> Missing:
    """All runs of a table that can be run; says how many cannot, and why.

    Raises:
        UserError: the table or an option is wrong.
    """
    table, plan = planned(options, compose)
    plan = tagged(table, plan)
    if any(run.config.force for runs in plan.values() for run in runs):
        raise UserError("force=true is for one run, by train.py: a sweep, given again, would never end")
    runs = {run.run_id: run for cell_runs in plan.values() for run in cell_runs}
    needs: dict[str, set[str]] = {name: set() for name in runs}
    for cell, cell_runs in plan.items():
        needed = {run.run_id for other in plan if other in table.needed_by(cell) for run in plan[other]}
        for run in cell_runs:
            needs[run.run_id] |= needed
    lacking = {name: lack for name, run in runs.items() if (lack := run.lacks) is not None}
    while waiting := {name for name in runs if name not in lacking and needs[name] & lacking.keys()}:
        lacking |= dict.fromkeys(waiting, "needs a run that cannot be run")
    for lack, count in Counter(lacking.values()).items():
        say(f"table={table.name}: {count} runs are left out: each {lack}")
    can = [run for name, run in runs.items() if name not in lacking]
    return Missing(table, options, can, {run.run_id: frozenset(needs[run.run_id]) for run in can})


def has_result(folder: Path) -> bool:
    """Its presence is what finished means."""
    return (folder / "result.json").exists()


def is_over(folder: Path) -> bool:
    """Whether nothing is left to do; with checkpoints beside the result, its process died before its last acts."""
    return has_result(folder) and not any(folder.glob("checkpoint-*.pt"))


def freeze(run: Run, path: Path) -> None:
    """Write the configuration, unless this very one is there; one that differs does so in folders or devices only."""
    config = run.config
    if path.exists() and path.read_bytes() == OmegaConf.to_yaml(config).encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frozen(config, path)
