"""Results of any source -> one record for each run: its numbers, how it was asked for, and where it can be read again.

Only that is kept, so that tens of thousands of runs fit; whoever wants a curve reads the file again. What all seeds of
a cell have in common is kept once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from isda_repro.runs.records import METRICS, RecordError, Result, read_result
from isda_repro.runs.sources import Finding, Found
from isda_repro.runs.validation import ResultChecker


@dataclass(frozen=True, slots=True)
class Record:
    """What tables keep of a result."""

    run_id: str
    seed: int
    asked: bytes  # as in checked.asked; shared by all seeds
    numbers: Mapping[str, float | None]  # of METRICS; None where the run has no such number
    evaluated_on: str
    precisions: tuple[str, ...]  # of its segments
    origin: str  # for people
    path: str | None
    held: Result | None  # of a source that has no file

    def read(self) -> Result:
        """The whole result, with its curves.

        Raises:
            RecordError: its file has changed or gone since.
        """
        if self.held is not None:
            return self.held
        result = read_result(Path(str(self.path)))
        if result.run_id != self.run_id:
            raise RecordError(f"{self.path}: it is the result of {result.run_id}")
        return result


@dataclass
class ResultIndex:
    """All runs of some sources, once each."""

    records: dict[str, Record] = field(default_factory=dict)  # by run id
    kept: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # table -> run ids and files kept for it
    problems: list[str] = field(default_factory=list)  # what was passed over, one sentence each

    @cached_property
    def by_request(self) -> dict[bytes, list[Record]]:
        """The runs that differ in their seed alone, together."""
        together: dict[bytes, list[Record]] = {}
        for record in self.records.values():
            together.setdefault(record.asked, []).append(record)
        return together


def index_results(findings: Iterable[Finding]) -> ResultIndex:
    """Check each and keep its numbers. Of two results of one run, the first counts; if they differ, that is said."""
    index, check = ResultIndex(), ResultChecker()
    for finding in findings:
        try:
            record = _record(finding, check)
        except RecordError as error:
            index.problems.append(f"passed over: {error}")
            continue
        if isinstance(finding, Found) and finding.kept_for is not None:
            index.kept.setdefault(finding.kept_for, []).append((record.run_id, record.origin))
        first = index.records.setdefault(record.run_id, record)
        if first.numbers != record.numbers:
            said = f"{record.origin}: has other numbers than {first.origin}, which counts, for the same run"
            index.problems.append(f"passed over: {said}")
    return index


def _record(finding: Finding, check: ResultChecker) -> Record:
    if isinstance(finding, RecordError):
        raise finding
    result = finding.result
    return Record(
        asked=check(result, finding.origin),
        run_id=result.run_id,
        seed=result.request["seed"],
        numbers={name: getattr(result, name) for name in METRICS},
        evaluated_on=result.evaluated_on,
        precisions=tuple(sorted({segment["precision"] for segment in result.segments})),
        origin=finding.origin,
        path=None if finding.path is None else str(finding.path),
        held=result if finding.path is None else None,
    )
