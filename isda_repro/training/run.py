"""One classifier from its frozen configuration: the parts that are trained, and what is said and kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from isda_repro.config import build, weights_digest
from isda_repro.console import say
from isda_repro.data import Source
from isda_repro.errors import UserError
from isda_repro.models.weights import load_weights
from isda_repro.runs.records import EpochRecord, Result, SegmentRecord, as_json, read_result, write_result
from isda_repro.tracking import Progress, Tracker
from isda_repro.training import parts
from isda_repro.training.account import opening, result_record, summary
from isda_repro.training.compute import Compute
from isda_repro.training.lifecycle import live
from isda_repro.training.processes import Processes
from isda_repro.training.replicas import with_common_batch_norm
from isda_repro.training.saving import Saver
from isda_repro.training.trainer import Trainer
from isda_repro.training.unreadable import UnreadableImages
from isda_repro.training.work import Work


def run(cfg: DictConfig) -> Result:
    """Train the classifier that ``cfg`` asks for (frozen, see ``isda_repro.config.freeze``): ``lifecycle.live``.

    Raises:
        UserError: a setting, the data or the device is wrong, another process writes this run, or the loss diverged.
        StoppedError: a signal asked to stop; the state is saved.
    """
    return live(cfg, Classification)


class Classification(Work[Result]):
    """A classifier that is trained; see ``Work``."""

    epoch_record = EpochRecord
    needed = frozenset({"step", "epoch", "network", "criterion", "optimizer", "ranks", "timing"})
    read_result = staticmethod(read_result)
    result_json = staticmethod(as_json)
    summary = staticmethod(summary)
    build_trackers = staticmethod(parts.build_trackers)

    def __init__(self, cfg: DictConfig, source: Source, compute: Compute, processes: Processes) -> None:
        super().__init__(cfg, source, compute, processes)
        self.learner: Trainer = build_trainer(cfg, source, compute, processes)

    def enter(self, folder: Path) -> None:
        """Images that cannot be read are listed in the folder."""
        trainer = self.learner
        self._unreadable = UnreadableImages(folder, self.processes, trainer.train_batches, trainer.test_batches)

    def collect(self) -> None:
        """Those that the other processes have met."""
        self._unreadable.collect()

    def conclude(self) -> None:
        """How many there were."""
        self._unreadable.conclude()

    def opening(self) -> str:
        """Network, data and device."""
        return opening(self.cfg, self.learner, self.source)

    def bar(self) -> Progress:
        """Loss, error, images/s and the time left."""
        trainer = self.learner
        return Progress(trainer.epochs, trainer.train_batches.num_samples, images_done=trainer.images_done)

    def train(self, trackers: Sequence[Tracker], bar: Progress | None, saver: Saver) -> list[EpochRecord]:
        """The loop."""
        return self.learner.train(trackers, bar, saver)

    def result(self, segments: list[SegmentRecord], records: list[EpochRecord], origin: dict[str, Any]) -> Result:
        """What tables read."""
        return result_record(self.cfg, self.learner, self.source, segments, records, origin)

    def write_result(self, path: Path, result: Result) -> None:
        """``result.json``."""
        write_result(path, result)

    def final_state(self) -> dict[str, Any]:
        """What is kept of a finished run to evaluate it again."""
        return {
            "run_id": self.cfg.run_id,
            "epoch": self.cfg.recipe.epochs,
            "network": self.learner.network.state_dict(),
            "criterion": self.learner.criterion.whole_state_dict(),
        }


def build_trainer(cfg: DictConfig, source: Source, compute: Compute, processes: Processes) -> Trainer:
    """Build what a frozen configuration trains, with its weights, on its device.

    Raises:
        UserError: its parts do not fit the data, each other, or the device.
    """
    network = parts.build_network(cfg, source, compute)
    if cfg.model.get("weights") is not None:  # a file that was frozen before there was such a setting has none
        weights_digest(cfg.model)
        loaded = load_weights(network, Path(cfg.model.weights), new_head=True)
        if processes.is_first:
            say(loaded)
    if compute.sync_bn and processes.are_several:
        network = with_common_batch_norm(network, processes, compute)
    criterion = parts.build_criterion(cfg, network, compute, processes)
    train_batches, test_batches = parts.build_loaders(cfg, source, compute, processes)
    compiled, called = parts.call_network(network, compute, processes)
    trainer = Trainer(
        network=network,
        compiled=compiled,
        called=called,
        criterion=criterion,
        optimizer=parts.build_optimizer(cfg, network, criterion),
        schedule=build(cfg.recipe.schedule),
        epochs=cfg.recipe.epochs,
        progress=cfg.faithful.progress,
        train_batches=train_batches,
        test_batches=test_batches,
        compute=compute,
        seed=cfg.seed,
        processes=processes,
    )
    if cfg.compute.get("cuda_graph") is True and trainer.eager_because is not None:
        raise UserError(f"compute.cuda_graph=true, but {trainer.eager_because}: leave it at auto")
    return trainer
