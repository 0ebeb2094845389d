"""Loading a trained classifier, its data, and what else a finished run has kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from isda_repro.config import build, is_frozen_generator, read_frozen, target_class
from isda_repro.config.checks import ConfigError, is_number
from isda_repro.data import Source
from isda_repro.losses import Criterion, ISDALoss
from isda_repro.models import Network
from isda_repro.models.weights import load_weights
from isda_repro.runs.records import Result, read_result
from isda_repro.training import builders
from isda_repro.training.checkpoint import load_part
from isda_repro.training.compute import Compute, resolve_compute
from isda_repro.training.resume import CONSTANTS, DATA_KEY, check_classes

DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Args:
        cfg: frozen configuration, with the device and data directory used here.
        weights: path of the file that the network's weights are from.
        compute: device and precision.
        source: its data set, which has the names of the classes.
        network: the trained network, on the device.
        taken: one sentence that says which weights were loaded.
    """

    cfg: DictConfig
    weights: Path
    compute: Compute
    source: Source
    network: Network
    taken: str


@dataclass(frozen=True)
class FinishedRun(Classifier):
    """The classifier of a finished run.

    Args:
        result: the run's result.
    """

    result: Result

    @cached_property
    def criterion(self) -> Criterion:
        """The run's loss with its state at the end of training, such as ISDA's covariances.

        Raises:
            ConfigError: the checkpoint lacks this state, or it is not finite.
        """
        criterion = builders.build_criterion(
            self.cfg, self.network, self.compute, train_counts=self.source.train_counts
        )
        try:
            if (state := load_part(self.weights, "criterion")) is None:
                raise KeyError("criterion")
            criterion.load_state_dict(state)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ConfigError(f"{self.weights} does not have what this loss had gathered: {reason}") from error
        if not all(one.isfinite().all() for one in state.values()):
            raise ConfigError(f"{self.weights} has statistics of features that are not finite numbers")
        return criterion

    @property
    def isda(self) -> ISDALoss:
        """The run's ISDA loss, with the covariances of all classes.

        Raises:
            ConfigError: the run was trained with another loss, which has no covariances.
        """
        if target_class(self.cfg.loss) is not ISDALoss:
            loss = self.cfg.choice.loss
            raise ConfigError(f"{self.weights.parent} has loss={loss}, and this needs the covariances of loss=isda")
        return cast(ISDALoss, self.criterion)


def load_classifier(cfg: DictConfig, weights: Path, *, of_run: bool) -> Classifier:
    """Load the data set and the network of a configuration, and the network's weights from a file.

    Args:
        cfg: frozen configuration; ``model.weights`` is not read.
        weights: a file of weights, of any kind that ``load_weights`` reads.
        of_run: the weights are those of a run, whose classes have to be those of the data.

    Raises:
        UserError: the data or the weights are missing or damaged, or do not fit.
    """
    compute = resolve_compute(cfg.compute)
    compute.apply()
    source: Source = build(cfg.dataset.source)
    if of_run:
        data = load_part(weights, DATA_KEY)
        if isinstance(data, dict):  # older versions recorded none
            check_classes(data, source, weights)
            _normalise_as(data, cfg)
    network = builders.build_network(cfg, source, compute)
    return Classifier(cfg, weights, compute, source, network, load_weights(network, weights, new_head=False))


def _normalise_as(data: Mapping[str, Any], cfg: DictConfig) -> None:
    """Replace ``auto`` by the constants that a run has recorded: its training images may be others by now."""
    for key in CONSTANTS:
        found = data.get(key)
        if cfg.dataset[key] == "auto" and isinstance(found, list) and all(map(is_number, found)):
            cfg.dataset[key] = found


def finished_run_config(folder: Path, device: str = "auto", data_dir: str | None = None) -> tuple[DictConfig, Path]:
    """Return the configuration of a finished run, adapted to this machine, and the path of its weights.

    Args:
        folder: the run directory.
        device: auto, cpu or gpu.
        data_dir: where the data is now; None: where it was in training.

    Raises:
        ConfigError: the folder is not a classifier's run directory, or the run has not finished.
    """
    if device not in DEVICES:
        raise ConfigError(f"device={device} must be one of {', '.join(DEVICES)}")
    if not (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is not a run's folder (it has no config.yaml): give runs/<run_id>")
    if is_frozen_generator(folder / "config.yaml"):
        raise ConfigError(f"{folder} is a run of generators, and this is for one of a classifier")
    if not (folder / "checkpoint.pt").exists():
        raise ConfigError(f"{folder / 'checkpoint.pt'} does not exist: has the run finished?")
    cfg = read_frozen(folder / "config.yaml")
    cfg.compute.device, cfg.compute.cuda_graph = device, "auto"  # true is refused where there is no GPU
    if "kernels" in cfg.loss:
        cfg.loss.kernels = None
    for place in ("data_dir", "root"):
        if data_dir is not None and place in cfg.dataset.source:
            cfg.dataset.source[place] = data_dir
    if cfg.model.get("pretrained"):  # the weights are in the checkpoint
        cfg.model.pretrained = False
    return cfg, folder / "checkpoint.pt"


def load_finished_run(folder: Path, device: str = "auto", data_dir: str | None = None) -> FinishedRun:
    """Load a finished classifier, to be evaluated in fp32.

    Args:
        folder: the run directory.
        device: auto, cpu or gpu.
        data_dir: where the data is now; None: where it was in training.

    Raises:
        UserError: there is no such run or it has not finished, or its weights or data are missing or damaged.
    """
    cfg, weights = finished_run_config(folder, device, data_dir)
    cfg.compute.precision, cfg.compute.tf32 = "fp32", False
    result = read_result(weights.with_name("result.json"))
    return FinishedRun(**vars(load_classifier(cfg, weights, of_run=True)), result=result)
