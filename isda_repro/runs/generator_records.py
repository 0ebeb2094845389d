"""Records of a run that trains generators: the epochs of its ``metrics.jsonl``, and its ``result.json``.

They are read and validated as those of classifiers, see ``records``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from isda_repro.runs.records import AnyRecord, outcome_problems, read_record
from isda_repro.runs.strict_json import Count, Plain, Positive, Text


@dataclass(frozen=True, kw_only=True)
class GeneratorEpoch(AnyRecord):
    """One epoch of training a generator: each real image was shown once to a discriminator.

    Losses and scores are means over the images of the epoch.
    """

    kind: ClassVar[str] = "epoch"
    schemas: ClassVar = ("generator-1",)
    epoch: Positive  # counted from 1
    step: Count  # discriminator steps taken by the end of the epoch
    generator_steps: Count  # generator steps taken by the end of the epoch
    discriminator_loss: float
    generator_loss: float | None = None  # None if no generator took a step in this epoch
    real_score: float  # discriminator output for real images: mean probability, or the critic's value
    fake_score: float  # discriminator output for generated images
    real_class_loss: float | None = None  # ACGAN: classification loss of the discriminator on real images
    fake_class_loss: float | None = None  # ACGAN: classification loss of the discriminator on generated images
    code_loss: float | None = None  # infoGAN: squared error of the predicted codes
    timing: dict[Text, float]  # seconds: train, data_wait, evaluation, saving; images_per_s; peak_memory_mib


@dataclass(frozen=True, kw_only=True)
class GeneratorResult(AnyRecord):
    """Result of a run that has trained one or more generators. Curves have one entry per epoch."""

    kind: ClassVar[str] = "generator"
    schemas: ClassVar = ("generator-1",)
    run_id: Text
    request: Plain  # request, choices, timing, segments and environment are as in Result
    choices: dict[Text, Text]
    epochs: Positive
    steps: Count
    generator_steps: Count
    generators: Positive  # number of generators: one per class for WGAN, otherwise one
    parameters: Count  # parameters of all generators together, without the discriminators
    train_images: Positive
    curves: dict[Text, list[float | None]]  # the losses and scores of GeneratorEpoch
    timing: dict[Text, float]
    segments: Annotated[list[Plain], Field(min_length=1)]
    environment: Plain

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the curves or the segments."""
        yield from outcome_problems(self.curves, self.epochs, self.segments)


def read_generator_result(path: Path) -> GeneratorResult:
    """Read a generator's ``result.json``.

    Raises:
        OtherKindError: it is not the result of a generator.
        RecordError: the file is missing, damaged or of an unknown schema; the message names it and the reason.
    """
    return read_record(path, GeneratorResult)
