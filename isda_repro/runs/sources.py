"""Results from wherever they are: ``runs/``, where runs are made, and ``results/``, where they are kept.

A source yields each result with where it is from, and for each one that cannot be used an error that says why, as a
value: one damaged file among ten thousand must stop nobody. Another source (``from_wandb``) is another such iterator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isda_repro.errors import UserError
from isda_repro.runs.records import OtherKindError, RecordError, Result, read_result

RESULT = "result.json"


@dataclass(frozen=True)
class Found:
    """A result and where it is from."""

    origin: str  # for people: a path, or where in W&B
    result: Result
    path: Path | None = None  # the file in which it can be read again; None: it has to be held
    kept_for: str | None = None  # the table under whose name it is kept in results/


Finding = Found | RecordError


def runs_folder(runs_dir: str, standard: str = "runs") -> Path:
    """The folder of runs that a user has named. The standard one may not be there yet: nothing has been run.

    Raises:
        UserError: another is not there: a slip, which would look as if nothing had been run.
    """
    folder = Path(runs_dir)
    if runs_dir != standard and not folder.is_dir():
        raise UserError(f"runs_dir={runs_dir} is no folder")
    return folder


def results_on_disk(runs_dir: Path, results_dir: Path) -> Iterator[Finding]:
    """All of both folders; those of ``runs_dir`` first, which count where a run is in both."""
    yield from results_of_runs(runs_dir)
    yield from kept_results(results_dir)


def results_of_runs(runs_dir: Path) -> Iterator[Finding]:
    """``<run_id>/result.json`` of each finished run; a folder must hold the result of its own run."""
    for folder in _below(runs_dir, 1):
        if isinstance(folder, RecordError):
            yield folder
            continue
        finding = _read(folder / RESULT)
        if isinstance(finding, OtherKindError):  # generators live there too
            continue
        if isinstance(finding, RecordError) and _is_absent(finding, folder / RESULT):
            continue
        if isinstance(finding, Found) and finding.result.run_id != folder.name:
            finding = RecordError(f"{finding.origin}: it is the result of {finding.result.run_id}")
        yield finding


def kept_results(results_dir: Path) -> Iterator[Finding]:
    """``<table>/<cell>/<seed>.json`` of every table; a run may be kept for several."""
    for path in _below(results_dir, 3):
        if isinstance(path, RecordError):
            yield path
        elif path.suffix == ".json":
            yield _read(path, kept_for=path.parent.parent.name)


def results_in(folder: Path) -> Iterator[Finding]:
    """Whatever results a folder holds: those of a checkout's ``runs/`` and ``results/``, or of a heap of files.

    In a heap each file that ends in .json is taken for one, however deep it lies; in a run's folder, in which there is
    a ``config.yaml``, ``result.json`` alone.
    """
    runs_dir, results_dir = folder / "runs", folder / "results"
    if runs_dir.is_dir() or results_dir.is_dir():
        yield from results_on_disk(runs_dir, results_dir)
        return
    for parent, folders, files in os.walk(folder):
        is_run = "config.yaml" in files
        folders[:] = [] if is_run else sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name == RESULT if is_run else name.endswith(".json"):
                yield _read(Path(parent, name))


def _below(folder: Path, levels: int) -> Iterator[Path | RecordError]:
    """Everything that lies so many levels down, in order; of a folder that is closed to us, why."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield RecordError(f"{folder}: {error.strerror}")
        return
    for path in paths:
        if levels == 1:
            yield path
        else:
            yield from _below(path, levels - 1)


def _read(path: Path, kept_for: str | None = None) -> Finding:
    try:
        return Found(str(path), read_result(path), path, kept_for)
    except RecordError as error:
        return error


def _is_absent(error: RecordError, path: Path) -> bool:
    """Whether there is no such file: the run has not finished. A link that leads nowhere is another matter."""
    return isinstance(error.__cause__, FileNotFoundError | NotADirectoryError) and not path.is_symlink()
