"""Runs that a sweep has to make: a table's missing runs, what they need, and their frozen configuration files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from isda_repro.config import quoted, write_frozen
from isda_repro.config.options import typed
from isda_repro.console import say
from isda_repro.errors import UserError
from isda_repro.experiments.plan import (
    Compose,
    Plan,
    Run,
    generator_needed,
    generators_of,
    plan_runs,
    select_runs,
    tag_runs,
)
from isda_repro.experiments.specification import load_table
from isda_repro.experiments.table import Cell, Table
from isda_repro.files import open_regular
from isda_repro.runs.generator_records import GeneratorResult, read_generator_result
from isda_repro.runs.records import RecordError
from isda_repro.runs.result_index import Ended, index_results, read_valid_result
from isda_repro.runs.run_directory import RESULT, checkpoints_in
from isda_repro.runs.sources import FoundDiverged, kept_results, results_folder


def has_result(folder: Path) -> bool:
    """Return whether the run in ``folder`` is finished, that is, has a ``result.json``."""
    return (folder / RESULT).exists()


def is_over(folder: Path) -> bool:
    """Return whether nothing is left to do for a run.

    If checkpoints are left beside the result, its process died before it had cleaned up, and the run is started again.
    """
    return has_result(folder) and not checkpoints_in(folder)


def load_kept_results(results_dir: str | None) -> dict[str, Ended]:
    """Return how runs ended that are stored in ``results_dir`` for any table, by run; none if ``results_dir`` is None.

    A file that cannot be used is named in a warning: its run is made again.

    Raises:
        UserError: a folder other than the standard one was named and does not exist. This is probably a typing error,
            and would make all of these runs again.
    """
    if results_dir is None:
        return {}
    index = index_results(kept_results(results_folder(results_dir)))
    for problem in index.problems:
        say(problem, sys.stderr)
    return index.ended


TRAIN = (sys.executable, "train.py")


@dataclass
class SweepOptions:
    """Options of ``scripts/sweep.py``."""

    table: str = MISSING
    cluster: str = "local"
    dry_run: bool = False
    runs_dir: str = "runs"
    results_dir: str | None = "results"  # folder of stored results, whose runs count as done; null: none
    data_dir: str | None = None
    set: list[str] = field(default_factory=list)
    only: list[str] = field(
        default_factory=list, metadata={"example": "[ResNet-32,CIFAR-100]"}
    )  # labels; empty: all cells
    seeds: list[int] = field(default_factory=list)  # some of the seeds that the table lists; empty: all
    jobs: int | None = None  # local: number of runs at once; null: one, or with runs_per_gpu= as many as fit
    runs_per_gpu: int | None = None  # local: number of runs at once on each GPU
    minutes: float | None = None  # local: time limit of the sweep, including saving; null: none
    partition: str | None = None  # this option and all below are for cluster=slurm
    time: str = "24:00:00"  # time limit of one job; a longer run continues when the job is requeued
    nodes: int = 1
    gpus: int = 1  # GPUs per node, with one process each; 0: one process per node without a GPU
    cpus: int | None = None  # CPU cores per process; null: the cluster's default
    memory: str | None = None  # memory per node, for example 32G
    max_parallel: int | None = None  # number of jobs at once, of each array
    slurm: list[str] = field(default_factory=list)  # further options of sbatch: slurm=[account=x,constraint=h100]


NAME_RUNS = ("runs_dir", "results_dir", "set", "only", "seeds")
"""Options that, besides ``table=``, determine which runs are meant and where they are."""


def sweep_command(options: SweepOptions, tables: str | None = None, action: str | None = None) -> str:
    """Return the command line that continues a sweep, or that applies ``action`` (status or cancel) to its runs.

    Args:
        options: the options of the sweep; only those that differ from the defaults are written.
        tables: name for ``table=``; None means the table of ``options``.
        action: the action; with one, only the options in ``NAME_RUNS`` are written.
    """
    standard, words = SweepOptions(), [*([action] if action else []), f"table={tables or options.table}"]
    for name, value in vars(options).items():
        is_meant = name in NAME_RUNS if action else name not in ("table", "dry_run")
        if is_meant and value != getattr(standard, name):
            words.append(f"{name}={typed(value)}")
    return shlex.join(["python", "scripts/sweep.py", *words])


def planned(options: SweepOptions, compose: Compose) -> tuple[Table, Plan]:
    """Load the table and plan its runs, with the folders of runs and data set in every frozen configuration."""
    table = load_table(options.table)
    return table, plan_runs(table, compose, [*options.set, *_folders(options)])


def _folders(options: SweepOptions) -> list[str]:
    folders = [f"runs_dir={quoted(options.runs_dir)}"]
    return folders if options.data_dir is None else [*folders, f"data_dir={quoted(options.data_dir)}"]


@dataclass
class Missing:
    """The runs that a sweep goes through, each once and in order, and which of them wait for which others."""

    table: Table
    options: SweepOptions
    runs: list[Run]
    needs: dict[str, frozenset[str]]
    kept: dict[str, Ended]  # by name, runs that need not be made because results_dir has how they ended

    def folder(self, run: Run) -> Path:
        """Return the run's folder in ``runs_dir``."""
        return Path(self.options.runs_dir) / run.run_id

    def is_done(self, run: Run) -> bool:
        """Return whether the run has a result, in its folder or stored."""
        return run.run_id in self.kept or has_result(self.folder(run))

    def is_over(self, run: Run) -> bool:
        """Return whether nothing is left to do for the run."""
        return run.run_id in self.kept or is_over(self.folder(run))

    def unmet(self, run: Run) -> list[str]:
        """Return the names of the unfinished runs that a run waits for; none if it has a result itself."""
        if self.is_done(run):
            return []
        runs_dir = Path(self.options.runs_dir)
        return [name for name in self.needs[run.run_id] if name not in self.kept and not has_result(runs_dir / name)]

    def says(self, run: Run) -> str:
        """Return the result of a finished run in a few words.

        Raises:
            RecordError: the result cannot be used.
        """
        record = self.kept.get(run.run_id)
        if isinstance(record, FoundDiverged):
            return record.said
        if record is not None:
            return self._said(record.origin, record.evaluated_on, record.numbers[self.table.metric])
        path = self.folder(run) / RESULT
        result = read_generator_result(path) if run.is_generator else read_valid_result(path)
        if result.run_id != run.run_id:
            raise RecordError(f"{path}: it is the result of {result.run_id}")
        if isinstance(result, GeneratorResult):
            return f"{result.epochs} epochs"
        return self._said(str(path), result.evaluated_on, getattr(result, self.table.metric))

    def _said(self, origin: str, evaluated_on: str, value: float | None) -> str:
        if value is None:
            raise RecordError(f"{origin}: it has no {self.table.metric}")
        return f"{evaluated_on} error {value:.2f}"


class Survey:
    """All runs of a table that ``only=`` and ``seeds=`` select, and the runs that they need.

    A run needs the generator on whose images it trains, and the runs of the cells that ``needs:`` names, with all of
    their seeds.

    Args:
        options: the options of the sweep.
        compose: overrides -> frozen configuration.
    """

    def __init__(self, options: SweepOptions, compose: Compose) -> None:
        self.table, self.whole = planned(options, compose)
        self.plan = select_runs(self.table, self.whole, options.only, options.seeds)
        cells = self._needed_cells()
        concerned = {cell: runs for cell, runs in self.whole.items() if cell in cells or cell in self.plan}
        self.needed = generators_of(concerned, compose, _folders(options))
        self.needs = self._needs(concerned)
        self.names = {run.run_id for runs in self.plan.values() for run in runs}
        for run in (run for cell in cells for run in self.whole[cell] if run.run_id not in self.names):
            self.needed[run.run_id] = run
        self.folders = {name: Path(options.runs_dir) / name for name in (*self.needed, *self.names)}

    def _needed_cells(self) -> set[Cell]:
        """Return the cells that the selected ones need, directly or indirectly."""
        found: set[Cell] = set()
        left = set(self.plan)
        while left:
            left = {other for cell in left for other in self.table.needed_by(cell)} - found
            found |= left
        return found

    def _needs(self, concerned: Plan) -> dict[str, frozenset[str]]:
        """Return, for each run, the names of the runs that must be finished before it starts."""
        needs: dict[str, frozenset[str]] = dict.fromkeys(self.needed, frozenset())
        for cell, runs in concerned.items():
            needed = frozenset(run.run_id for other in self.table.needed_by(cell) for run in self.whole[other])
            if (generator := generator_needed(runs[0].settings)) is not None:
                needed |= {generator}
            for run in runs:
                needs[run.run_id] = needs.get(run.run_id, frozenset()) | needed
        return needs

    def kept(self, in_results: Mapping[str, Ended]) -> dict[str, Ended]:
        """Return the stored results that make runs of this survey unnecessary, by run.

        A stored result has the numbers of a run but not its weights. So if a run that is still to be made needs another
        run, that other run counts as finished only if its own folder has the result.
        """
        folders = self.folders
        instead = {name: one for name, one in in_results.items() if name in folders and not has_result(folders[name])}
        while needed := self.wanted(instead) & instead.keys():
            instead = {name: record for name, record in instead.items() if name not in needed}
        return instead

    def wanted(self, instead: Container[str]) -> set[str]:
        """Return the names of the runs that the runs to be made need.

        To be made are the selected runs without a result, and whatever these need in turn, but not the runs in
        ``instead``, which a stored result replaces.
        """
        made, left, wanted = set[str](), self.names, set[str]()
        while left:
            left = {name for name in left - made if name in self.folders and name not in instead}
            left = {name for name in left if not has_result(self.folders[name])}
            made |= left
            left = {other for name in left for other in self.needs[name]}
            wanted |= left
        return wanted


def missing(options: SweepOptions, compose: Compose) -> Missing:
    """Return all selected runs of a table, preceded by the generators and runs that those to be made need.

    Raises:
        UserError: the table or an option is invalid, or a needed generator is neither trained nor part of this sweep.
    """
    survey = Survey(options, compose)
    plan = tag_runs(survey.table, survey.whole)
    if any(run.settings["force"] for runs in plan.values() for run in runs):
        raise UserError("force=true is for one run, by train.py: a sweep, given again, would never end")
    instead = survey.kept(load_kept_results(options.results_dir))
    if instead:
        kept_in = f"the results of {len(instead)} runs are kept in {options.results_dir}"
        say(f"table={survey.table.name}: {kept_in}; results_dir=null makes these again")
    wanted = survey.wanted(instead)
    unknown = wanted - survey.folders.keys()
    if absent := sorted(name for name in unknown if not has_result(Path(options.runs_dir) / name)):
        raise UserError(
            f"synthetic.generator={absent[0]} is not in {options.runs_dir}, and this sweep does not train it: "
            "train it, or leave the option out"
        )
    runs = {run.run_id: run for cell_runs in plan.values() for run in cell_runs}
    first = [runs.get(name, run) for name, run in survey.needed.items() if name in wanted]
    chosen = [run for name, run in runs.items() if name in survey.names]
    return Missing(survey.table, options, [*first, *chosen], survey.needs, instead)


def write_frozen_runs(run: Run, path: Path) -> None:
    """Write a run's frozen configuration, unless the file has exactly this content.

    A file that differs is replaced: since the run id is the same, it differs in folders, devices or tracking only.
    """
    config = run.config
    with suppress(FileNotFoundError), open_regular(path) as file:
        content = OmegaConf.to_yaml(config).encode()
        if file.read(len(content) + 1) == content:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frozen(config, path)
