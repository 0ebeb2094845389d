"""Versioned schemas of the records that a run leaves: the lines of ``metrics.jsonl``, and ``result.json``.

This is the only module that knows these fields. The trainer writes them; tables and figures read them.

``metrics.jsonl`` is the authority on what happened: one JSON object per line, each with its ``kind``. ``result.json``
is written last and atomically; a run is finished if and only if the file is there. Everything that depends on the clock
is under ``timing``, so that two runs can be compared without it.

Records may come from anybody. ``from_json`` is the one way from JSON to a record: it checks the types and the ranges of
all fields, and what they say of each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field

from isda_repro.console import one_line
from isda_repro.files import atomic_write, open_regular
from isda_repro.runs.strict_json import (
    Count,
    Percent,
    Plain,
    Positive,
    Text,
    parsed,
    read_json,
    reason,
    validated,
)
from isda_repro.runs.strict_json import RecordError as RecordError  # the error of every reader of records

# The schema versions that this code reads; it writes the last. Add one when fields, or their meanings, change.
METRICS_SCHEMAS = (2, 3, 4, 5, 6)  # 3 added top-5 errors, 4 eager_because, 5 class errors and covariances, 6 torch
RESULT_SCHEMAS = (1, 2, 3)  # 2 added top-5 errors, 3 class errors
OUTCOMES = ["result", "generator", "diverged"]  # kinds of the records with which a run ends
MOST_LINE_BYTES = 2**20  # of a line of metrics.jsonl, which has a few hundred, and 60 more for each class with ISDA
LAST_EPOCHS = 10  # Table 2's caption: "the average test error over the last 10 epochs"

METRICS = {
    "test_error_last10": "mean of the last 10 epochs",
    "test_error_final": "last epoch",
    "test_error_best": "best epoch, chosen on the images it is reported on",
    "test_top5_error_final": "last epoch, images whose class is not among the five likeliest",
    "test_class_error_final": "last epoch, mean of the errors of all classes",
    "test_many_shot_error_final": "last epoch, mean of the errors of classes with more than 100 training images",
    "test_medium_shot_error_final": "last epoch, mean of the errors of classes with 20 to 100 training images",
    "test_few_shot_error_final": "last epoch, mean of the errors of classes with fewer than 20 training images",
}
"""Fields of a Result that a table can show, with the description in the table's caption."""

CLASS_ERRORS = ("test_class_error", "test_many_shot_error", "test_medium_shot_error", "test_few_shot_error")
"""Errors of groups of classes, fields of an EpochRecord and curves, in the order of ``evaluate.ClassErrors``."""


class OtherKindError(RecordError):
    """A record file is intact, but belongs to a run of another kind (classifier or generator)."""


@dataclass(frozen=True, kw_only=True)
class AnyRecord:
    """Base class of records: dataclasses that are written as JSON and read back strictly.

    A missing or unknown field is an error, never a silent default. A field that not every run has defaults to None, and
    is left out of the file where it is None.
    """

    kind: ClassVar[str]
    schemas: ClassVar[tuple[int | str, ...]]  # the versions that can be read; the last one is written

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Build the record from the JSON object that ``as_json`` returns.

        Raises:
            OtherKindError: it is a record of another kind.
            RecordError: fields are missing or unknown, or are not as they must be; the message names them.
        """
        if not isinstance(data, dict):
            raise RecordError("not a JSON object")
        if (kind := data.get("kind")) != cls.kind:
            both_end_runs = kind in OUTCOMES and cls.kind in OUTCOMES
            error = OtherKindError if both_end_runs else RecordError
            raise error(f"it is a record of kind {kind!r}, not {cls.kind!r}")
        if data.get("schema") not in cls.schemas:
            raise RecordError(f"schema {data.get('schema')!r}, this code reads {' and '.join(map(str, cls.schemas))}")
        fields = cls.__dataclass_fields__
        known = fields.keys() - {"kind"}
        needed = {name for name in known if fields[name].default is dataclasses.MISSING}
        given = set(data) - {"kind", "schema"}
        if not needed <= given <= known:
            missing, unknown = sorted(needed - given), sorted(given - known)
            raise RecordError(f"not a {cls.__name__}: missing fields {missing}, unknown fields {unknown}")
        record = cls(**validated(cls, {name: data[name] for name in given}))
        for problem in record.contradictions():
            raise RecordError(problem)
        return record

    def contradictions(self) -> Iterator[str]:
        """Yield what the fields say of each other that cannot be, one clause each."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class SegmentRecord(AnyRecord):
    """One uninterrupted stretch of a run: the step at which it began, and what each ``auto`` setting resolved to."""

    kind: ClassVar[str] = "segment"
    schemas: ClassVar = METRICS_SCHEMAS
    step: Count  # optimizer steps taken before the segment began
    device: Text  # e.g. "cpu", "cuda"
    hardware: Text  # model name of the processor or GPU
    precision: Text  # fp32 | bf16
    tf32: bool
    channels_last: bool
    compile: bool
    deterministic: bool
    eager_because: Text | None = None  # on a GPU: why steps were not captured as a CUDA graph; None if they were
    world_size: Positive
    threads: Positive  # CPU threads per process; another number may round differently
    git_revision: Text | None  # commit of the code; None outside a checkout
    torch: Text | None = None  # version of PyTorch
    git_clean: bool | None  # whether the checkout had no changes on top of git_revision


@dataclass(frozen=True, kw_only=True)
class EpochRecord(AnyRecord):
    """One training epoch of a classifier. Losses are means over samples; errors are in percent."""

    kind: ClassVar[str] = "epoch"
    schemas: ClassVar = METRICS_SCHEMAS
    epoch: Positive  # counted from 1
    step: Count  # optimizer steps taken by the end of the epoch
    lr: float
    train_loss: float  # the criterion that is minimised, e.g. ISDA's
    train_error: Percent  # of the plain logits on augmented images, accumulated while the network was learning
    test_loss: float  # plain cross-entropy
    test_error: Percent
    test_top5_error: Percent | None = None  # class not among the five likeliest; only with more than 5 classes
    test_class_error: Percent | None = None  # this and the next: only if classes differ in their training images
    test_many_shot_error: Percent | None = None
    test_medium_shot_error: Percent | None = None
    test_few_shot_error: Percent | None = None
    covariances: dict[Text, float | list[float]] | None = None  # of ISDA: what ISDALoss.summary returns
    timing: dict[Text, float]  # seconds: train, data_wait, evaluation, saving, and criterion (not on a GPU);
    # images_per_s; peak_memory_mib


@dataclass(frozen=True, kw_only=True)
class Result(AnyRecord):
    """Result of a finished classifier run.

    Errors are in percent on ``evaluated_on``; curves have one entry per epoch.
    """

    kind: ClassVar[str] = "result"
    schemas: ClassVar = RESULT_SCHEMAS
    run_id: Text
    request: Plain  # the settings that can change the result: no paths, devices or tracking
    choices: dict[Text, Text]  # configuration group -> the option chosen in it
    evaluated_on: Literal["test", "holdout"]  # "holdout" when dataset.holdout is set
    test_error_last10: Percent  # mean over the last 10 epochs, as Table 2 reports
    test_error_final: Percent
    test_error_best: Percent
    test_top5_error_final: Percent | None = None  # this and the next: as in EpochRecord
    test_class_error_final: Percent | None = None
    test_many_shot_error_final: Percent | None = None
    test_medium_shot_error_final: Percent | None = None
    test_few_shot_error_final: Percent | None = None
    epochs: Positive
    steps: Count
    parameters: Count  # parameters of the network, including its head
    feature_dim: Positive
    train_images: Positive
    test_images: Positive
    curves: dict[Text, list[float]]  # of CURVES; of OPTIONAL_CURVES and COVARIANCE_CURVES those that every epoch has
    timing: dict[Text, float]  # totals over the run, with the keys of EpochRecord.timing
    segments: Annotated[list[Plain], Field(min_length=1)]  # one SegmentRecord each, as JSON
    environment: Plain  # git revision, whether the tree was clean, package versions

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the curves, the errors, the settings or the segments."""
        yield from outcome_problems(self.curves, self.epochs, self.segments)
        yield from settings_problems(self.request, self.choices)
        if absent := [name for name in CURVES if name not in self.curves]:
            yield f"it has no curve {', '.join(absent)}"
            return
        errors = self.curves["test_error"]
        for name, curve in self.curves.items():
            if not math.isfinite(sum(curve)) or (name.endswith("_error") and not 0 <= min(curve) <= max(curve) <= 100):
                yield f"its curve {name} is not finite, or no percentage"
        stated = (self.test_error_last10, self.test_error_final, self.test_error_best)
        if stated != (mean_of_last(errors), errors[-1], min(errors)):
            yield "its test errors are not those of its curve"
        for name in OPTIONAL_CURVES:
            if self.curves.get(name, [None])[-1] != getattr(self, f"{name}_final"):
                yield f"its {name}_final is not that of its curve"


CURVES = ("test_error", "test_loss", "train_error", "train_loss", "lr")
"""The curves of every Result."""

OPTIONAL_CURVES = ("test_top5_error", *CLASS_ERRORS)
"""Curves that not every Result has; the last value of each is the field of its name with ``_final``."""

COVARIANCE_CURVES = {f"covariances/{name}": name for name in ("ratio", "added", "margin", "trace", "effective_rank")}
"""Curves of ISDA's runs, each with its key in ``EpochRecord.covariances``."""


def outcome_problems(
    curves: Mapping[str, Sequence[float | None]], epochs: int, segments: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield what is wrong with the curves or the segments of a run."""
    for name, curve in curves.items():
        if len(curve) != epochs:
            yield f"its curve {name} has {len(curve)} entries for {epochs} epochs"
    yield from segment_problems(segments)


def segment_problems(segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what tables would miss in the segments of a run."""
    if not segments or not all(isinstance(segment.get("precision"), str) for segment in segments):
        yield "it has no segment that would say in what precision it was trained"


def settings_problems(request: Mapping[str, Any], choices: Mapping[str, str]) -> Iterator[str]:
    """Yield what tables and the report would miss in the settings of a classifier."""
    for name in ("model", "dataset", "augmentation", "loss"):
        if name not in choices:
            yield f"its choices lack {name}"
    for name in ("model", "dataset", "loss", "recipe"):
        if not isinstance(request.get(name), dict):
            yield f"its request has no {name}"
            return
    if not isinstance(request.get("synthetic", {}), dict):
        yield "its request has no synthetic"
    for name, otherwise in (("epochs", None), ("passes", 1)):
        if not _is_positive(found := request["recipe"].get(name, otherwise)):
            yield f"its recipe.{name} is {found!r}"
    if type(request.get("seed")) is not int:
        yield f"its seed is {request.get('seed')!r}"


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def mean_of_last(errors: list[float]) -> float:
    """Return the mean of the last ``LAST_EPOCHS`` errors, or of all of them if there are fewer.

    Raises:
        ValueError: ``errors`` is empty.
    """
    if not errors:
        raise ValueError("a run without epochs has no error to report")
    return fmean(errors[-LAST_EPOCHS:])


def as_json(record: AnyRecord) -> dict[str, Any]:
    """Return the record as a JSON object, with its ``kind`` and ``schema``.

    Optional fields that are None are left out.
    """
    optional = {field.name for field in dataclasses.fields(record) if field.default is None}
    body = dataclasses.asdict(record)
    given = {name: value for name, value in body.items() if value is not None or name not in optional}
    return {"kind": record.kind, "schema": record.schemas[-1], **given}


Epoch = TypeVar("Epoch", bound=AnyRecord)


def read_metrics(path: Path) -> Iterator[SegmentRecord | EpochRecord]:
    """Yield the records of a classifier's ``metrics.jsonl`` in order, see ``read_lines``."""
    return read_lines(path, EpochRecord)


def read_lines(path: Path, epochs: type[Epoch], length: int | None = None) -> Iterator[SegmentRecord | Epoch]:
    """Yield the records of a ``metrics.jsonl`` in order.

    Args:
        path: the file.
        epochs: type of the records of epochs.
        length: read only the first ``length`` bytes; None reads the whole file.

    Raises:
        RecordError: a line is damaged; the message names the file and the line.
    """
    kinds: dict[str, type[SegmentRecord] | type[Epoch]] = {"segment": SegmentRecord, "epoch": epochs}
    with open_regular(path) as file:
        left = file.seek(0, os.SEEK_END) if length is None else length
        file.seek(0)
        for number in itertools.count(1):
            line = file.readline(min(left, MOST_LINE_BYTES + 1))
            if not line:
                return
            left -= len(line)
            try:
                if len(line) > MOST_LINE_BYTES:
                    raise RecordError(f"more than {MOST_LINE_BYTES:,} bytes")
                data = parsed(line)
                yield kinds[data["kind"]].from_json(data)
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{one_line(path)}, line {number}: {reason(error)}") from error


def write_result(path: Path, result: AnyRecord) -> None:
    """Write ``result.json`` atomically: the file is complete or absent."""
    body = sorted(as_json(result).items())  # one line per field: small, and readable in a diff
    lines = (f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}" for key, value in body)
    text = "{\n" + ",\n".join(lines) + "\n}"
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def read_result(path: Path) -> Result:
    """Read a classifier's ``result.json``.

    Raises:
        OtherKindError: it is the result of a generator.
        RecordError: the file is missing, damaged or of an unknown schema; the message names it and the reason.
    """
    return read_record(path, Result)


ResultOfAKind = TypeVar("ResultOfAKind", bound=AnyRecord)


def read_record(path: Path, kind: type[ResultOfAKind]) -> ResultOfAKind:
    """Read a file that holds one record; errors are those of ``read_result``."""
    try:
        return kind.from_json(read_json(path))
    except OtherKindError as error:
        raise OtherKindError(f"{one_line(path)}: {error}") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{one_line(path)}: {reason(error)}") from error
