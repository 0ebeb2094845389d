"""A sweep: which runs of a table are missing, and the frozen files that train them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from isda_repro.config import write_frozen
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
from isda_repro.runs.records import GeneratorResult, RecordError, read_generator_result
from isda_repro.runs.result_index import Record, ResultIndex, index_results, read_valid_result
from isda_repro.runs.sources import RESULT, kept_results


def has_result(folder: Path) -> bool:
    """Its presence is what finished means."""
    return (folder / RESULT).exists()


def is_over(folder: Path) -> bool:
    """Whether nothing is left to do; with checkpoints beside the result, its process died before its last acts."""
    return has_result(folder) and not any(folder.glob("checkpoint-*.pt"))


def load_kept_results(results_dir: str | None, standard: str = "results") -> ResultIndex:
    """The runs that are kept in ``results_dir``, of every table; none if it is null.

    Raises:
        UserError: it is not the standard folder, and not there: a slip, which would have all of them made again.
    """
    if results_dir not in (None, standard) and not Path(str(results_dir)).is_dir():
        raise UserError(f"results_dir={results_dir} is no folder; results_dir=null counts no kept result")
    return index_results(() if results_dir is None else kept_results(Path(results_dir)))


def to_make(
    chosen: Iterable[str], instead: Container[str], folders: Mapping[str, Path], needs: Mapping[str, Iterable[str]]
) -> set[str]:
    """Return the chosen runs that have no result, and none that is kept ``instead``, and those that these need."""
    found: set[str] = set()
    left = set(chosen)
    while left:
        left = {name for name in left - found if name in folders and name not in instead}
        left = {name for name in left if not has_result(folders[name])}
        found |= left
        left = {other for name in left for other in needs[name]}
    return found


def kept_instead(
    kept_runs: Mapping[str, Record],
    chosen: Iterable[str],
    folders: Mapping[str, Path],
    needs: Mapping[str, Iterable[str]],
) -> dict[str, Record]:
    """The runs that need not be made, since their results are kept.

    A kept result has the numbers of a run and none of its weights. So a run that is needed by one which is still to be
    made counts as finished only in its own folder.

    Args:
        kept_runs: what is kept, by run.
        chosen: the runs that are wanted for themselves.
        folders: of all runs, by name.
        needs: which others each of them needs.
    """
    instead = {name: record for name, record in kept_runs.items() if name in folders and not has_result(folders[name])}
    while True:
        made = to_make(chosen, instead, folders, needs)
        needed = {other for name in made for other in needs[name]}
        if not needed & instead.keys():
            return instead
        instead = {name: record for name, record in instead.items() if name not in needed}


TRAIN = (sys.executable, "train.py")


@dataclass
class SweepOptions:
    """What ``scripts/sweep.py`` takes."""

    table: str = MISSING
    cluster: str = "local"
    dry_run: bool = False
    runs_dir: str = "runs"
    results_dir: str | None = "results"  # where results are kept, whose runs count as done; null: none do
    data_dir: str | None = None
    set: list[str] = field(default_factory=list)
    only: list[str] = field(
        default_factory=list, metadata={"example": "[ResNet-32,CIFAR-100]"}
    )  # labels; none: all cells
    seeds: list[int] = field(default_factory=list)  # of those that the table lists; none: all
    jobs: int | None = None  # local: runs at once; null: one, or on GPUs runs_per_gpu on each
    runs_per_gpu: int | None = None
    minutes: float | None = None  # local: until the runs save, and the sweep stops; null: until all is done
    partition: str | None = None  # slurm, and all that follows
    time: str = "24:00:00"  # of one job; a run goes on in the next
    nodes: int = 1
    gpus: int = 1  # of each node, and processes; 0: one process without
    cpus: int | None = None  # of each process; null: the cluster's default
    memory: str | None = None  # of each node, as 32G
    max_parallel: int | None = None  # jobs at once
    slurm: list[str] = field(default_factory=list)  # more of sbatch's options, as slurm=[account=x,constraint=h100]


NAME_RUNS = ("runs_dir", "results_dir", "set", "only", "seeds")
"""The options besides ``table=`` that say which runs are meant, and where they are."""


def sweep_command(options: SweepOptions, tables: str | None = None, action: str | None = None) -> str:
    """Return the command that goes on with a sweep, or that has an ``action``, as status, with its runs."""
    standard, words = SweepOptions(), [*([action] if action else []), f"table={tables or options.table}"]
    for name, value in vars(options).items():
        is_meant = name in NAME_RUNS if action else name not in ("table", "dry_run")
        if is_meant and value != getattr(standard, name):
            words.append(f"{name}={typed(value)}")
    return shlex.join(["python", "scripts/sweep.py", *words])


def planned(options: SweepOptions, compose: Compose) -> tuple[Table, Plan]:
    """The table and its runs; the two folders, which name no run, go into every frozen configuration."""
    table = load_table(options.table)
    return table, plan_runs(table, compose, [*options.set, *_folders(options)])


def _folders(options: SweepOptions) -> list[str]:
    folders = [f"runs_dir={_quoted(options.runs_dir)}"]
    return folders if options.data_dir is None else [*folders, f"data_dir={_quoted(options.data_dir)}"]


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
    kept: dict[str, Record]  # by name, those that need not be made, since results_dir has their results

    def folder(self, run: Run) -> Path:
        """Where it lives."""
        return Path(self.options.runs_dir) / run.run_id

    def is_done(self, run: Run) -> bool:
        """Whether its result is there or kept."""
        return run.run_id in self.kept or has_result(self.folder(run))

    def is_over(self, run: Run) -> bool:
        """Whether nothing is left to do for it."""
        return run.run_id in self.kept or is_over(self.folder(run))

    def unmet(self, run: Run) -> list[str]:
        """The runs that it needs and that are not done; none if it has its own result."""
        if self.is_done(run):
            return []
        runs_dir = Path(self.options.runs_dir)
        return [name for name in self.needs[run.run_id] if name not in self.kept and not has_result(runs_dir / name)]

    def says(self, run: Run) -> str:
        """The result of a finished run.

        Raises:
            RecordError: it cannot be used.
        """
        if (record := self.kept.get(run.run_id)) is not None:
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
    """A table's runs, all or those that ``only=`` and ``seeds=`` choose, and the runs that these need.

    Those are the generators that they train on, and the runs of cells that ``needs:`` names, with all their seeds.

    Args:
        options: the command line.
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
        """Return the cells that the chosen ones need, directly or by others."""
        found: set[Cell] = set()
        left = set(self.plan)
        while left:
            left = {other for cell in left for other in self.table.needed_by(cell)} - found
            found |= left
        return found

    def _needs(self, concerned: Plan) -> dict[str, frozenset[str]]:
        """For each run the names of those that must be finished before it is begun."""
        needs: dict[str, frozenset[str]] = dict.fromkeys(self.needed, frozenset())
        for cell, runs in concerned.items():
            needed = frozenset(run.run_id for other in self.table.needed_by(cell) for run in self.whole[other])
            if (generator := generator_needed(runs[0].settings)) is not None:
                needed |= {generator}
            for run in runs:
                needs[run.run_id] = needs.get(run.run_id, frozenset()) | needed
        return needs

    def kept(self, in_results: Mapping[str, Record]) -> dict[str, Record]:
        """Those that need not be made, of the results that are kept."""
        return kept_instead(in_results, self.names, self.folders, self.needs)

    def wanted(self, instead: Container[str]) -> set[str]:
        """What the runs need that are to be made."""
        made = to_make(self.names, instead, self.folders, self.needs)
        return {other for name in made for other in self.needs[name]}


def missing(options: SweepOptions, compose: Compose) -> Missing:
    """All runs of a table, those of its generators first where a run that is to be made needs them.

    Raises:
        UserError: the table or an option is wrong.
    """
    survey = Survey(options, compose)
    plan = tag_runs(survey.table, survey.whole)
    if any(run.config.force for runs in plan.values() for run in runs):
        raise UserError("force=true is for one run, by train.py: a sweep, given again, would never end")
    instead = survey.kept(load_kept_results(options.results_dir).records)
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
    """Write the configuration, unless this very one is there; one that differs does so in folders or devices only."""
    config = run.config
    if path.exists() and path.read_bytes() == OmegaConf.to_yaml(config).encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frozen(config, path)
