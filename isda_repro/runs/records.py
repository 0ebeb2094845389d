"""Versioned schemas of the records that a run leaves: the lines of ``metrics.jsonl``, and ``result.json``.

This is the only module that knows these fields. The trainer writes them; tables and figures read them.

``metrics.jsonl`` is the authority on what happened: one JSON object per line, each with its ``kind``. ``result.json``
is written last and atomically; a run is finished if and only if the file is there. Everything that depends on the clock
is under ``timing``, so that two runs can be compared without it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Self, TypeVar

import orjson

from isda_repro.errors import UserError
from isda_repro.files import atomic_write

# The schema versions that this code reads; it writes the last. Add one when fields, or their meanings, change.
METRICS_SCHEMAS = (2, 3, 4)  # EpochRecord and SegmentRecord; 3 added the top-5 error, 4 eager_because
RESULT_SCHEMAS = (1, 2)  # Result; 2 added the top-5 error
GENERATOR = "generator"  # the kind of a GeneratorResult, which read_result refuses
LAST_EPOCHS = 10  # Table 2's caption: "the average test error over the last 10 epochs"

METRICS = {
    "test_error_last10": "mean of the last 10 epochs",
    "test_error_final": "last epoch",
    "test_error_best": "best epoch, chosen on the images it is reported on",
    "test_top5_error_final": "last epoch, images whose class is not among the five likeliest",
}
"""Fields of a Result that a table can show, with the description in the table's caption."""


class RecordError(UserError):
    """A record file is damaged, or is not of this project; the message names the file and the reason."""


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
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the record from the JSON object that ``as_json`` returns.

        Raises:
            RecordError: fields are missing or unknown; the message lists them.
        """
        fields = cls.__dataclass_fields__
        known = fields.keys() - {"kind"}
        needed = {name for name in known if fields[name].default is dataclasses.MISSING}
        given = set(data) - {"kind", "schema"}
        if not needed <= given <= known:
            missing, unknown = sorted(needed - given), sorted(given - known)
            raise RecordError(f"not a {cls.__name__}: missing fields {missing}, unknown fields {unknown}")
        return cls(**{name: data[name] for name in given})


@dataclass(frozen=True, kw_only=True)
class SegmentRecord(AnyRecord):
    """One uninterrupted stretch of a run: the step at which it began, and what each ``auto`` setting resolved to."""

    kind: ClassVar[str] = "segment"
    schemas: ClassVar = METRICS_SCHEMAS
    step: int  # optimizer steps taken before the segment began
    device: str  # e.g. "cpu", "cuda"
    hardware: str  # model name of the processor or GPU
    precision: str  # fp32 | bf16
    tf32: bool
    channels_last: bool
    compile: bool
    deterministic: bool
    eager_because: str | None = None  # on a GPU: why steps were not captured as a CUDA graph; None if they were
    world_size: int
    threads: int  # CPU threads per process; another number may round differently
    git_revision: str | None  # commit of the code; None outside a checkout
    git_clean: bool | None  # whether the checkout had no changes on top of git_revision


@dataclass(frozen=True, kw_only=True)
class EpochRecord(AnyRecord):
    """One training epoch of a classifier. Losses are means over samples; errors are in percent."""

    kind: ClassVar[str] = "epoch"
    schemas: ClassVar = METRICS_SCHEMAS
    epoch: int  # counted from 1
    step: int  # optimizer steps taken by the end of the epoch
    lr: float
    train_loss: float  # the criterion that is minimised, e.g. ISDA's
    train_error: float  # of the plain logits on augmented images, accumulated while the network was learning
    test_loss: float  # plain cross-entropy
    test_error: float
    test_top5_error: float | None = None  # class not among the five likeliest; only with more than 5 classes
    timing: dict[str, float]  # seconds: train, data_wait, evaluation, saving, and criterion (not on a GPU);
    # images_per_s; peak_memory_mib


@dataclass(frozen=True, kw_only=True)
class Result(AnyRecord):
    """Result of a finished classifier run.

    Errors are in percent on ``evaluated_on``; curves have one entry per epoch.
    """

    kind: ClassVar[str] = "result"
    schemas: ClassVar = RESULT_SCHEMAS
    run_id: str
    request: dict[str, Any]  # the settings that can change the result: no paths, devices or tracking
    choices: dict[str, str]  # configuration group -> the option chosen in it
    evaluated_on: str  # "test", or "holdout" when dataset.holdout is set
    test_error_last10: float  # mean over the last 10 epochs, as Table 2 reports
    test_error_final: float
    test_error_best: float
    test_top5_error_final: float | None = None  # as in EpochRecord
    epochs: int
    steps: int
    parameters: int  # parameters of the network, including its head
    feature_dim: int
    train_images: int
    test_images: int
    curves: dict[
        str, list[float]
    ]  # test_error, test_loss, train_error, train_loss, lr; test_top5_error if there is one
    timing: dict[str, float]  # totals over the run, with the keys of EpochRecord.timing
    segments: list[dict[str, Any]]  # one SegmentRecord each, as JSON
    environment: dict[str, Any]  # git revision, whether the tree was clean, package versions


def mean_of_last(errors: list[float], count: int = LAST_EPOCHS) -> float:
    """Return the mean of the last ``count`` errors, or of all of them if there are fewer.

    Raises:
        ValueError: ``errors`` is empty.
    """
    if not errors:
        raise ValueError("a run without epochs has no error to report")
    return fmean(errors[-count:])


def as_json(record: AnyRecord) -> dict[str, Any]:
    """Return the record as a JSON object, with its ``kind`` and ``schema``.

    Optional fields that are None are left out.
    """
    optional = {field.name for field in dataclasses.fields(record) if field.default is None}
    body = dataclasses.asdict(record)
    given = {name: value for name, value in body.items() if value is not None or name not in optional}
    return {"kind": record.kind, "schema": record.schemas[-1], **given}


Epoch = TypeVar("Epoch", bound=AnyRecord)


def read_metrics(path: Path, length: int | None = None) -> Iterator[SegmentRecord | EpochRecord]:
    """Yield the records of a classifier's ``metrics.jsonl`` in order.

    Args:
        path: the file.
        length: read only the first ``length`` bytes; None reads the whole file.

    Raises:
        RecordError: a line is damaged; the message names the file and the line.
    """
    return read_lines(path, EpochRecord, length)


def read_lines(path: Path, epochs: type[Epoch], length: int | None = None) -> Iterator[SegmentRecord | Epoch]:
    """Yield the records of a ``metrics.jsonl`` whose epochs have the type ``epochs``.

    Arguments and errors are those of ``read_metrics``, which reads the epochs of classifiers.
    """
    kinds: dict[str, type[SegmentRecord] | type[Epoch]] = {"segment": SegmentRecord, "epoch": epochs}
    text = path.read_bytes()[:length].decode(errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            data = json.loads(line)
            _check_object(data)
            kind = kinds[data["kind"]]
            _check_schema(data, kind.schemas)
            yield kind.from_json(data)
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}, line {number}: {reason(error)}") from error


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
    try:
        return result_of(parsed(path.read_bytes()))
    except OtherKindError as error:
        raise OtherKindError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {reason(error)}") from error


def result_of(data: Any) -> Result:
    """Build a Result from the JSON object that ``as_json`` returns.

    Raises:
        OtherKindError: it is the result of a generator.
        RecordError: fields, schema or test errors are not as they must be.
    """
    try:
        _check_object(data)
        if data.get("kind") == GENERATOR:
            raise OtherKindError("it is of a generator, not of a classifier")
        _check_schema(data, RESULT_SCHEMAS)
        result = Result.from_json(data)
        if not math.isfinite(sum(result.curves["test_error"])):
            raise RecordError("a test error is not finite")
    except (LookupError, TypeError) as error:
        raise RecordError(reason(error)) from error
    return result


def parsed(content: bytes) -> Any:
    """Parse JSON with orjson, and with Python's ``json`` what orjson rejects.

    ``json`` accepts NaN, which orjson does not, and its errors for invalid text say more.

    Raises:
        RecordError: the content is empty.
        ValueError: it is not JSON, or not UTF-8.
    """
    if not content.strip():
        raise RecordError("empty")
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content.decode("utf-8"))


def _check_object(data: Any) -> None:
    if not isinstance(data, dict):
        raise RecordError("not a JSON object")


def _check_schema(data: Mapping[str, Any], readable: tuple[int | str, ...]) -> None:
    if data.get("schema") not in readable:
        raise RecordError(f"schema {data.get('schema')!r}, this code reads {' and '.join(map(str, readable))}")


def reason(error: Exception) -> str:
    """Describe in a few words why a file could not be read."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"no {error}" if isinstance(error, KeyError) else str(error)


@dataclass(frozen=True, kw_only=True)
class GeneratorEpoch(AnyRecord):
    """One epoch of training a generator: each real image was shown once to a discriminator.

    Losses and scores are means over the images of the epoch.
    """

    kind: ClassVar[str] = "epoch"
    schemas: ClassVar = ("generator-1",)
    epoch: int  # counted from 1
    step: int  # discriminator steps taken by the end of the epoch
    generator_steps: int  # generator steps taken by the end of the epoch
    discriminator_loss: float
    generator_loss: float | None = None  # None if no generator took a step in this epoch
    real_score: float  # discriminator output for real images: mean probability, or the critic's value
    fake_score: float  # discriminator output for generated images
    real_class_loss: float | None = None  # ACGAN: classification loss of the discriminator on real images
    fake_class_loss: float | None = None  # ACGAN: classification loss of the discriminator on generated images
    code_loss: float | None = None  # infoGAN: squared error of the predicted codes
    timing: dict[str, float]  # seconds: train, data_wait, evaluation, saving; images_per_s; peak_memory_mib


@dataclass(frozen=True, kw_only=True)
class GeneratorResult(AnyRecord):
    """Result of a run that has trained one or more generators. Curves have one entry per epoch."""

    kind: ClassVar[str] = GENERATOR
    schemas: ClassVar = ("generator-1",)
    run_id: str
    request: dict[str, Any]  # request, choices, timing, segments and environment are as in Result
    choices: dict[str, str]
    epochs: int
    steps: int
    generator_steps: int
    generators: int  # number of generators: one per class for WGAN, otherwise one
    parameters: int  # parameters of all generators together, without the discriminators
    train_images: int
    curves: dict[str, list[float | None]]  # the losses and scores of GeneratorEpoch
    timing: dict[str, float]
    segments: list[dict[str, Any]]
    environment: dict[str, Any]


def read_generator_result(path: Path) -> GeneratorResult:
    """Read a generator's ``result.json``.

    Raises:
        OtherKindError: it is not the result of a generator.
        RecordError: the file is missing, damaged or of an unknown schema; the message names it and the reason.
    """
    try:
        data = parsed(path.read_bytes())
        if not isinstance(data, dict):
            raise RecordError("not a JSON object")
        if data.get("kind") != GeneratorResult.kind:
            raise OtherKindError(f"it is of a {data.get('kind')}, not of a generator")
        if data.get("schema") not in GeneratorResult.schemas:
            raise RecordError(f"schema {data.get('schema')!r}, this code reads {GeneratorResult.schemas[-1]}")
        return GeneratorResult.from_json(data)
    except OtherKindError as error:
        raise OtherKindError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {reason(error)}") from error
