"""Index of results: from any sources to one validated record per run.

A result enters a table only if it is consistent with its run id; ``Result.from_json``, which every source calls, has
checked that it is complete, finite and consistent with itself. The index holds only the numbers, so that tens of
thousands of runs fit in memory; curves are read from the file again when they are needed. Settings that the seeds of a
cell share are stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from isda_repro.config import run_names
from isda_repro.console import one_line
from isda_repro.runs.diverged import DivergedRun
from isda_repro.runs.records import METRICS, RecordError, Result, read_result
from isda_repro.runs.sources import Finding, Found, FoundDiverged


def read_valid_result(path: Path) -> Result:
    """Read and validate one result.

    Raises:
        RecordError: the file is damaged, its record is invalid, or its settings do not hash to its run id.
    """
    result = read_result(path)
    ResultChecker()(result, one_line(path))
    return result


class ResultChecker:
    """Comparison of results with their run ids. It computes what all seeds of a cell have in common only once."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[bytes, Callable[[int], str]]] = {}

    def __call__(self, result: Result | DivergedRun, origin: str) -> bytes:
        """Check that a result's settings give its run id; return its request without the seed, as ``asked`` encodes it.

        Raises:
            RecordError: they do not; the message begins with ``origin``.
        """
        with _named(origin):
            body = asked(result.request, result.choices)
            if body not in self._known:
                self._known[body] = (body, run_names(result.request, result.choices))
            shared, name = self._known[body]
            if name(result.request["seed"]) != result.run_id:
                raise RecordError(f"{origin}: its settings, or this code's numerics, are not those of {result.run_id}")
        return shared


def asked(request: Mapping[str, Any], choices: Mapping[str, str]) -> bytes:
    """Encode what all seeds of a cell share as canonical JSON: the request without its seed, and the chosen options."""
    common = {key: value for key, value in request.items() if key not in ("seed", "numerics_version")}
    return orjson.dumps([common, choices], option=orjson.OPT_SORT_KEYS)


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Turn the errors that malformed content of a foreign file causes into a RecordError that names ``origin``."""
    try:
        yield
    except RecordError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecordError(f"{origin}: not as a result must be ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True)
class Record:
    """Entry of the index: the numbers of one result, and where to read the rest."""

    run_id: str
    seed: int
    asked: bytes  # what ``asked`` returns: one object, shared by all seeds of a cell
    numbers: Mapping[str, float | None]  # METRICS -> value; None where the run has no such number
    evaluated_on: str
    precisions: tuple[str, ...]  # the precisions of its segments, each once
    trained_on: tuple[str, ...]  # their hardware and precisions, in order, each once
    origin: str  # shown to the user
    path: str | None  # the file; None if the source has none
    held: Result | None  # the whole result, if its source has no file

    def read(self) -> Result:
        """Return the whole result with its curves, reading its file again if it has one.

        Raises:
            RecordError: the file has changed or disappeared since it was indexed.
        """
        if self.held is not None:
            return self.held
        result = read_result(Path(str(self.path)))
        if result.run_id != self.run_id:
            raise RecordError(f"{self.origin}: it is the result of {result.run_id}")
        return result


Ended = Record | FoundDiverged
"""The outcome of a run: the numbers of its result, or the record that it diverged."""


@dataclass
class ResultIndex:
    """All valid runs of some sources, each once."""

    records: dict[str, Record] = field(default_factory=dict)  # by run id
    diverged: dict[str, FoundDiverged] = field(default_factory=dict)  # by run id: those without a result
    kept: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # table -> (run id, file) stored for it
    problems: list[str] = field(default_factory=list)  # one sentence for each result that was passed over

    @cached_property
    def ended(self) -> dict[str, Ended]:
        """The outcome of each run, by run id."""
        return {**self.records, **self.diverged}

    @cached_property
    def by_request(self) -> dict[bytes, list[Ended]]:
        """All runs grouped by ``asked``: those of a group differ only in their seed."""
        together: dict[bytes, list[Ended]] = {}
        for one in self.ended.values():
            body = one.asked if isinstance(one, Record) else asked(one.run.request, one.run.choices)
            together.setdefault(body, []).append(one)
        return together


def index_results(findings: Iterable[Finding]) -> ResultIndex:
    """Validate every result and index its numbers.

    The first result of a run counts, and any result counts before a record that the run diverged, as on other hardware.
    A later result with other numbers is reported in ``problems``, as are invalid ones.
    """
    index, check = ResultIndex(), ResultChecker()
    for finding in findings:
        try:
            if isinstance(finding, RecordError):
                raise finding
            shared = check(finding.run if isinstance(finding, FoundDiverged) else finding.result, finding.origin)
        except RecordError as error:
            index.problems.append(f"passed over: {error}")
            continue
        if finding.kept_for is not None:
            index.kept.setdefault(finding.kept_for, []).append((finding.run_id, finding.origin))
        if isinstance(finding, FoundDiverged):
            index.diverged.setdefault(finding.run_id, finding)
            continue
        record = _record(finding, shared)
        first = index.records.setdefault(record.run_id, record)
        if first.numbers != record.numbers:
            said = f"{record.origin}: has other numbers than {first.origin}, which counts, for the same run"
            index.problems.append(f"passed over: {said}")
    for run_id in index.diverged.keys() & index.records.keys():
        del index.diverged[run_id]
    return index


def _trained_on(segment: Mapping[str, Any]) -> str:
    return one_line(f"{segment.get('hardware', 'unknown hardware')} in {segment['precision']}")


def _record(finding: Found, shared: bytes) -> Record:
    result = finding.result
    return Record(
        asked=shared,
        run_id=result.run_id,
        seed=result.request["seed"],
        numbers={name: getattr(result, name) for name in METRICS},
        evaluated_on=result.evaluated_on,
        precisions=tuple(sorted({segment["precision"] for segment in result.segments})),
        trained_on=tuple(dict.fromkeys(map(_trained_on, result.segments))),
        origin=finding.origin,
        path=None if finding.path is None else str(finding.path),
        held=result if finding.path is None else None,
    )
