"""What a run leaves behind, as versioned schemas: the lines of ``metrics.jsonl`` and ``result.json``.

This is the one place that knows these fields. The trainer writes them, tables and figures read them.

``metrics.jsonl`` is the authority on what happened: one JSON object a line, each with its ``kind``.
``result.json`` is written last and atomically; its presence is what "finished" means.
Everything that depends on the clock sits under ``timing``, so that two runs can be compared without it.
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

# The schemas that can be read, of which the last is written: add one when fields, or their meanings, change.
METRICS_SCHEMAS = (2, 3, 4)  # of EpochRecord and SegmentRecord; 3: the top-5 error; 4: eager_because
RESULT_SCHEMAS = (1, 2)  # of Result; 2: the top-5 error
GENERATOR = "generator"  # what the result of another kind of run calls itself, see generator_records.py
LAST_EPOCHS = 10  # Table 2's caption: "the average test error over the last 10 epochs"

METRICS = {
    "test_error_last10": "mean of the last 10 epochs",
    "test_error_final": "last epoch",
    "test_error_best": "best epoch, chosen on the images it is reported on",
    "test_top5_error_final": "last epoch, images whose class is not among the five likeliest",
}
"""The fields of a Result that a table can show, and how its caption calls them."""


class RecordError(UserError):
    """A record file is damaged or foreign; the message names it and says why."""


class OtherKindError(RecordError):
    """A whole record of a run of another kind."""


@dataclass(frozen=True, kw_only=True)
class AnyRecord:
    """JSON in, JSON out, strict about fields: a missing or unknown one is an error, never a silent default.

    A field that not every run has is None there, and not written.
    """

    kind: ClassVar[str]
    schemas: ClassVar[tuple[int | str, ...]]  # those that can be read, of which the last is written

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what ``as_json`` gave; RecordError says which fields are missing or unknown."""
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
    """One uninterrupted stretch of a run: where it began and what each ``auto`` became there."""

    kind: ClassVar[str] = "segment"
    schemas: ClassVar = METRICS_SCHEMAS
    step: int  # optimizer steps already taken when the segment began
    device: str  # e.g. "cpu", "cuda"
    hardware: str  # the processor's own name
    precision: str  # fp32 | bf16
    tf32: bool
    channels_last: bool
    compile: bool
    deterministic: bool
    eager_because: str | None = None  # on a GPU: why steps were not captured as a CUDA graph; None: they were
    world_size: int
    threads: int  # of one process; on a CPU another number may round differently
    git_revision: str | None  # of the code; None outside a checkout
    git_clean: bool | None  # whether the checkout was that revision


@dataclass(frozen=True, kw_only=True)
class EpochRecord(AnyRecord):
    """One epoch. Losses are means over samples; errors are percentages."""

    kind: ClassVar[str] = "epoch"
    schemas: ClassVar = METRICS_SCHEMAS
    epoch: int  # counted from 1
    step: int  # optimizer steps taken at its end
    lr: float
    train_loss: float  # of the criterion, ISDA's included
    train_error: float  # of the plain logits, on augmented images, while the network was learning
    test_loss: float  # plain cross-entropy
    test_error: float
    test_top5_error: float | None = None  # images whose class is not among the five likeliest; of more than 5 classes
    timing: dict[str, float]  # seconds: train, data_wait, evaluation, saving, and criterion (not on a GPU);
    # images_per_s; peak_memory_mib


@dataclass(frozen=True, kw_only=True)
class Result(AnyRecord):
    """A finished run. Errors are percentages on ``evaluated_on``; lists have one entry an epoch."""

    kind: ClassVar[str] = "result"
    schemas: ClassVar = RESULT_SCHEMAS
    run_id: str
    request: dict[str, Any]  # what was asked, without what cannot change the result (paths, devices, tracking)
    choices: dict[str, str]  # the name chosen in each configuration group
    evaluated_on: str  # "test", or "holdout" when dataset.holdout is set
    test_error_last10: float  # mean over the last 10 epochs: Table 2's figure
    test_error_final: float
    test_error_best: float
    test_top5_error_final: float | None = None  # as in EpochRecord
    epochs: int
    steps: int
    parameters: int  # of the network, its head included
    feature_dim: int
    train_images: int
    test_images: int
    curves: dict[
        str, list[float]
    ]  # test_error, test_loss, train_error, train_loss, lr; test_top5_error if there is one
    timing: dict[str, float]  # the run's totals, as in EpochRecord
    segments: list[dict[str, Any]]  # each as in SegmentRecord
    environment: dict[str, Any]  # git revision, whether the tree was clean, versions


def mean_of_last(errors: list[float], count: int = LAST_EPOCHS) -> float:
    """The mean of the last ``count`` entries; of all of them if a run has fewer epochs."""
    if not errors:
        raise ValueError("a run without epochs has no error to report")
    return fmean(errors[-count:])


def as_json(record: AnyRecord) -> dict[str, Any]:
    """The record as a JSON object, with its ``kind`` and ``schema``."""
    optional = {field.name for field in dataclasses.fields(record) if field.default is None}
    body = dataclasses.asdict(record)
    given = {name: value for name, value in body.items() if value is not None or name not in optional}
    return {"kind": record.kind, "schema": record.schemas[-1], **given}


Epoch = TypeVar("Epoch", bound=AnyRecord)


def read_metrics(path: Path, length: int | None = None) -> Iterator[SegmentRecord | EpochRecord]:
    """The records of a classifier's ``metrics.jsonl``, or of its first ``length`` bytes, in order.

    RecordError names the file and the line that is damaged.
    """
    return read_lines(path, EpochRecord, length)


def read_lines(path: Path, epochs: type[Epoch], length: int | None = None) -> Iterator[SegmentRecord | Epoch]:
    """Likewise, of a run whose epochs are described by ``epochs``."""
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
    """Write ``result.json`` so that it is either whole or absent."""
    body = sorted(as_json(result).items())  # a line a field: small, and readable in a diff
    lines = (f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}" for key, value in body)
    text = "{\n" + ",\n".join(lines) + "\n}"
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def read_result(path: Path) -> Result:
    """A ``result.json``. RecordError names the file and says why it cannot be used."""
    try:
        return result_of(parsed(path.read_bytes()))
    except OtherKindError as error:
        raise OtherKindError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {reason(error)}") from error


def result_of(data: Any) -> Result:
    """A result from the JSON object that ``as_json`` makes of one. RecordError says why it cannot be used."""
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
    """JSON; what is none, and NaN, which orjson does not read, is left to Python's own, which says more of it."""
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
    """What went wrong with a file, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"no {error}" if isinstance(error, KeyError) else str(error)


@dataclass(frozen=True, kw_only=True)
class GeneratorEpoch(AnyRecord):
    """One epoch: each real image was seen once by a discriminator. Losses and scores are means over its images."""

    kind: ClassVar[str] = "epoch"
    schemas: ClassVar = ("generator-1",)
    epoch: int  # counted from 1
    step: int  # that discriminators have taken, at its end
    generator_steps: int  # that generators have taken
    discriminator_loss: float
    generator_loss: float | None = None  # of an epoch in which a generator took a step
    real_score: float  # what the discriminator says of real images: a mean probability, or the critic's value
    fake_score: float  # and of generated ones
    real_class_loss: float | None = None  # ACGAN's discriminator, naming the class of real images
    fake_class_loss: float | None = None  # and of generated ones
    code_loss: float | None = None  # infoGAN's squared error of the codes
    timing: dict[str, float]  # seconds: train, data_wait, evaluation, saving; images_per_s; peak_memory_mib


@dataclass(frozen=True, kw_only=True)
class GeneratorResult(AnyRecord):
    """Generators that are trained. Lists have one entry an epoch."""

    kind: ClassVar[str] = GENERATOR
    schemas: ClassVar = ("generator-1",)
    run_id: str
    request: dict[str, Any]  # as in records.Result, and so on
    choices: dict[str, str]
    epochs: int
    steps: int
    generator_steps: int
    generators: int  # how many: WGAN's one for each class, or one
    parameters: int  # of all of them together, without the discriminators
    train_images: int
    curves: dict[str, list[float | None]]  # discriminator_loss, generator_loss, real_score and so on
    timing: dict[str, float]
    segments: list[dict[str, Any]]
    environment: dict[str, Any]


def read_generator_result(path: Path) -> GeneratorResult:
    """A generator's ``result.json``. RecordError names the file and says why it cannot be used."""
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
