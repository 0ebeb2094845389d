"""What the training of a generator leaves behind, as versioned schemas: as ``records.py``, which has a classifier's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from isda_repro.runs.records import GENERATOR, AnyRecord, OtherKindError, RecordError, parsed, reason


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
