"""Iterators over results on disk: ``runs/``, where runs are trained, and ``results/``, where results are committed.

A source yields each result with its origin. For a result that cannot be used it yields, as a value, an error that says
why: one damaged file among ten thousand must not stop the rest. Only regular files of a bounded size are opened.
``from_wandb`` has iterators of the same kind for W&B.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isda_repro.console import one_line
from isda_repro.errors import UserError
from isda_repro.runs.diverged import DivergedRun, read_outcome
from isda_repro.runs.records import OtherKindError, RecordError, Result
from isda_repro.runs.run_directory import DIVERGED, RESULT, is_set_aside


@dataclass(frozen=True)
class Found:
    """A result and its origin."""

    origin: str  # shown to the user: a path, or the run in W&B
    result: Result
    path: Path | None = None  # file from which it can be read again; None: it must be held in memory
    kept_for: str | None = None  # the table under whose name it is stored in results/

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.result.run_id


@dataclass(frozen=True)
class FoundDiverged:
    """A run that diverged; fields are as in ``Found``."""

    origin: str
    run: DivergedRun
    kept_for: str | None = None

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.run.run_id

    @property
    def seed(self) -> int:
        """Seed of the run."""
        seed: int = self.run.request["seed"]
        return seed

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of its segments, each once."""
        return tuple(sorted({segment["precision"] for segment in self.run.segments}))

    @property
    def said(self) -> str:
        """Short text of the outcome, for example "diverged in epoch 29"."""
        return f"diverged in epoch {self.run.epoch}"

    def read(self) -> DivergedRun:
        """Return the whole record."""
        return self.run


Finding = Found | FoundDiverged | RecordError


def runs_folder(runs_dir: str) -> Path:
    """Return the folder of runs that the user has named.

    The default, ``runs``, may be absent, which means that nothing has been run yet.

    Raises:
        UserError: another folder was named and does not exist. This is probably a typing error, and would otherwise
            look as if nothing had been run.
    """
    return _named_folder("runs_dir", runs_dir, standard="runs")


def results_folder(results_dir: str) -> Path:
    """Return the folder of kept results that the user has named, as ``runs_folder`` does for ``results``."""
    return _named_folder("results_dir", results_dir, standard="results")


def _named_folder(option: str, given: str, standard: str) -> Path:
    folder = Path(given)
    if given != standard and not folder.is_dir():
        raise UserError(f"{option}={given} is no folder")
    return folder


def results_on_disk(runs_dir: Path, results_dir: Path) -> Iterator[Finding]:
    """Yield how the runs of both folders ended, those of ``runs_dir`` first: a result there counts before another."""
    yield from results_of_runs(runs_dir)
    yield from kept_results(results_dir)


def results_of_runs(runs_dir: Path) -> Iterator[Finding]:
    """Yield the result of each finished run, from ``<run_id>/result.json``, and each run that diverged.

    Unfinished runs, generators and runs that ``force=true`` has set aside are skipped. A file whose run id is not the
    name of its folder gives a RecordError.
    """
    for folder in _below(runs_dir, 1):
        if isinstance(folder, RecordError):
            yield folder
            continue
        finding = None if is_set_aside(folder) else _of_run(folder)
        if finding is None or isinstance(finding, OtherKindError):  # generators are stored in the same folder
            continue
        if not isinstance(finding, RecordError) and finding.run_id != folder.name:
            finding = RecordError(f"{finding.origin}: it is of {finding.run_id}")
        yield finding


def _of_run(folder: Path) -> Finding | None:
    """Return how the run in a folder ended; None if it has not."""
    for path in (folder / RESULT, folder / DIVERGED):
        finding = _read(path)
        if not (isinstance(finding, RecordError) and _is_absent(finding, path)):
            return finding
    return None


def kept_results(results_dir: Path) -> Iterator[Finding]:
    """Yield what is stored in ``<table>/<cell>/<seed>.json`` of every table. A run may be stored for several tables."""
    for path in _below(results_dir, 3):
        if isinstance(path, RecordError):
            yield path
        elif path.suffix == ".json":
            yield _read(path, kept_for=path.parent.parent.name)


def results_in(folder: Path) -> Iterator[Finding]:
    """Yield all results that a folder contains.

    A folder with ``runs/`` or ``results/`` is read as a checkout. Otherwise it is searched recursively: every .json
    file is taken for a result, except in the folder of a run (recognised by its ``config.yaml``), where only
    ``result.json`` is, or ``diverged.json``. Hidden folders are skipped.
    """
    runs_dir, results_dir = folder / "runs", folder / "results"
    if runs_dir.is_dir() or results_dir.is_dir():
        yield from results_on_disk(runs_dir, results_dir)
        return
    for parent, folders, files in os.walk(folder):
        is_run = "config.yaml" in files
        folders[:] = [] if is_run else sorted(name for name in folders if not name.startswith("."))
        if is_run:
            ended = _of_run(Path(parent))
            yield from () if ended is None else (ended,)
        else:
            yield from (_read(Path(parent, name)) for name in sorted(files) if name.endswith(".json"))


def _below(folder: Path, levels: int) -> Iterator[Path | RecordError]:
    """Yield all paths exactly ``levels`` levels below a folder, in order.

    For a folder that cannot be read, yield a RecordError.
    """
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield RecordError(f"{one_line(folder)}: {error.strerror}")
        return
    for path in paths:
        if levels == 1:
            yield path
        else:
            yield from _below(path, levels - 1)


def _read(path: Path, kept_for: str | None = None) -> Finding:
    try:
        outcome = read_outcome(path)
    except RecordError as error:
        return error
    if isinstance(outcome, DivergedRun):
        return FoundDiverged(one_line(path), outcome, kept_for)
    return Found(one_line(path), outcome, path, kept_for)


def _is_absent(error: RecordError, path: Path) -> bool:
    """Return whether an error means that there is no such file, that is, the run has not finished.

    A symbolic link that leads nowhere does not count as absent: it is reported.
    """
    return isinstance(error.__cause__, FileNotFoundError | NotADirectoryError) and not path.is_symlink()
