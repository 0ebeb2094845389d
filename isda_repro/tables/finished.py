"""Which runs are over: those with a result in their own folder, and those whose result is kept in ``results/``."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from isda_repro.errors import UserError
from isda_repro.runs.result_index import Record, ResultIndex, index_results
from isda_repro.runs.sources import RESULT, kept_results


def has_result(folder: Path) -> bool:
    """Its presence is what finished means."""
    return (folder / RESULT).exists()


def is_over(folder: Path) -> bool:
    """Whether nothing is left to do; with checkpoints beside the result, its process died before its last acts."""
    return has_result(folder) and not any(folder.glob("checkpoint-*.pt"))


def kept(results_dir: str | None, standard: str = "results") -> ResultIndex:
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
