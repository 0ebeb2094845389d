"""What a kind of run brings to the life that all of them share (``lifecycle.py``): classifiers, and generators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from omegaconf import DictConfig

from isda_repro.data import Source
from isda_repro.runs.records import AnyRecord, SegmentRecord
from isda_repro.tracking import Tracker
from isda_repro.training.compute import Compute
from isda_repro.training.processes import Processes
from isda_repro.training.saving import Saver

Outcome = TypeVar("Outcome")


class Learner(Protocol):
    """What trains: the loop with all that it changes."""

    compute: Compute
    processes: Processes
    step: int
    eager_because: str | None
    """Why its steps are not captured as a CUDA graph; None: they are."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had not stopped, with its ``step``; all processes call it."""

    def load_state_dict(self, state: dict[str, Any], records: Sequence[Any]) -> None:
        """Go on from that; ``records`` are those of the epochs that were over."""


class Work(ABC, Generic[Outcome]):
    """One run of a kind. What must be refused is refused when it is made: nothing has been written then.

    Args:
        cfg: the run's frozen configuration.
        source: its data.
        compute: device and precision.
        processes: that work on it together.
    """

    epoch_record: ClassVar[type[AnyRecord]]
    """Of the lines of ``metrics.jsonl``, those of epochs."""
    needed: ClassVar[frozenset[str]]
    """What the learner's state has."""

    learner: Learner

    def __init__(self, cfg: DictConfig, source: Source, compute: Compute, processes: Processes) -> None:
        self.cfg, self.source, self.processes = cfg, source, processes

    # ------------------------------------------------------------------------------------ of a run that has finished

    @staticmethod
    @abstractmethod
    def read_result(path: Path, /) -> Outcome:
        """Its result; ``RecordError`` says why it cannot be used."""

    @staticmethod
    @abstractmethod
    def result_json(result: Outcome, /) -> dict[str, Any]:
        """As trackers take it."""

    @staticmethod
    @abstractmethod
    def summary(result: Outcome, /) -> str:
        """In one line."""

    @staticmethod
    @abstractmethod
    def build_trackers(cfg: DictConfig, metrics: Path) -> list[Tracker]:
        """Those that are wanted beside ``metrics.jsonl`` and the bar."""

    # ------------------------------------------------------------------------------------------ of one that is to train

    @abstractmethod
    def opening(self) -> str:
        """The lines that it begins with."""

    @abstractmethod
    def bar(self) -> Tracker:
        """What a person watches; ``train`` gets it too, and may advance it."""

    @abstractmethod
    def train(self, trackers: Sequence[Tracker], bar: Any, saver: Saver) -> list[Any]:
        """To the end, from where the learner is; the records of all epochs. Other processes have no trackers."""

    @abstractmethod
    def result(self, segments: list[SegmentRecord], records: list[Any], origin: dict[str, Any]) -> Outcome:
        """What it is summed up in."""

    @abstractmethod
    def write_result(self, path: Path, result: Outcome) -> None:
        """Whole or not at all: from then on it has finished."""

    @abstractmethod
    def final_state(self) -> Mapping[str, Any]:
        """What is kept of it in ``checkpoint.pt``; all processes call it."""

    def enter(self, folder: Path) -> None:
        """Training is about to begin in the run's folder; all processes call it."""

    def collect(self) -> None:
        """What the other processes have to tell the first, now and then; all of them call it."""

    def conclude(self) -> None:
        """The very last word, of the first process."""
