"""Record of a run that diverged: ``diverged.json`` in its folder, or kept in ``results/`` in place of a result.

Such a run has no result, but it has been run: tables count it as neither finished nor missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from isda_repro.files import rename_aside
from isda_repro.runs.records import (
    AnyRecord,
    OtherKindError,
    RecordError,
    Result,
    read_record,
    read_result,
    segment_problems,
    settings_problems,
)
from isda_repro.runs.strict_json import Count, Plain, Positive, Text


@dataclass(frozen=True, kw_only=True)
class DivergedRun(AnyRecord):
    """A classifier run whose loss or weights ceased to be finite numbers."""

    kind: ClassVar[str] = "diverged"
    schemas: ClassVar = (1,)
    run_id: Text
    request: Plain  # request, choices, segments and environment are as in Result
    choices: dict[Text, Text]
    epoch: Positive  # the epoch in which it diverged, counted from 1
    step: Count  # the step, counted from 0, of which it was found
    reason: Text  # for example "the loss is no longer finite"
    segments: Annotated[list[Plain], Field(min_length=1)]
    environment: Plain

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the settings or the segments."""
        yield from settings_problems(self.request, self.choices)
        yield from segment_problems(self.segments)


def read_outcome(path: Path) -> Result | DivergedRun:
    """Read how a classifier's run ended: its result, or the record that it diverged.

    Raises:
        OtherKindError: it is the result of a generator.
        RecordError: the file is missing, damaged or of an unknown schema; the message names it and the reason.
    """
    try:
        return read_result(path)
    except OtherKindError as of_generator:
        try:
            return read_record(path, DivergedRun)
        except OtherKindError:
            raise of_generator from None


def clear_divergence(path: Path) -> None:
    """Delete the record that a run diverged, because it goes on; rename anything else of this name."""
    if not os.path.lexists(path):
        return
    try:
        read_record(path, DivergedRun)
    except RecordError:
        rename_aside(path, "foreign")
    else:
        path.unlink()
