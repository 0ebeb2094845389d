"""Loading the inputs of an inversion: trained networks from their run directories, and chosen real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from isda_repro.config import build, read_frozen_generator
from isda_repro.config.checks import ConfigError
from isda_repro.data import Source, Split
from isda_repro.errors import UserError
from isda_repro.evaluation import FinishedRun, load_finished_run
from isda_repro.gan import load_generator
from isda_repro.inversion.objectives import FeatureMap, Reversal
from isda_repro.training import builders

PARTS = ("train", "test")


def split_of(source: Source, name: str) -> Split:
    """Return the training images (``train``) or the evaluated images (``test``) of a source.

    Raises:
        UserError: there is no such part, or its images are not in memory.
    """
    if name not in PARTS:
        raise UserError(f"part={name} must be one of {', '.join(PARTS)}")
    split = source.train if name == "train" else source.test
    if not isinstance(split, Split):
        raise UserError(f"this is for images in memory, and those of dataset={source.name} stay in their files")
    return split


def name_of(source: Source, part: str) -> str:
    """Return the name of a part for the reader: with a holdout, ``test`` means held-out training images."""
    return part if part == "train" else source.evaluated_on


def choose_images(split: Split, wanted: Sequence[int] | None, count: int, classes: Sequence[int]) -> Tensor:
    """Return the indices of the chosen images, int64 [N].

    They are ``wanted``, or else the first images of each class in turn, ``count`` in all.

    Raises:
        UserError: there is no such image, it belongs to another class, or there are too few images.
    """
    if wanted is None:
        if count < 1:
            raise UserError(f"count={count} must be a whole number from 1 on")
        of_each = [(split.targets == one).nonzero()[:, 0].tolist() for one in classes]
        longest = max(len(indices) for indices in of_each)
        in_turn = [indices[place] for place in range(longest) for indices in of_each if place < len(indices)]
        if len(in_turn) < count:
            raise UserError(f"count={count}, but there are {len(in_turn)} images of these classes")
        return torch.tensor(sorted(in_turn[:count]))
    if not wanted:
        raise UserError("images=[] names no image")
    for index in wanted:
        if not 0 <= index < len(split):
            raise UserError(f"images= has {index}, and there are images 0 to {len(split) - 1}")
        if int(split.targets[index]) not in classes:
            label = int(split.targets[index])
            raise UserError(f"images= has {index}, of class {label}: this is for images of classes {list(classes)}")
    return torch.tensor(list(wanted))


def feature_map(classifier: FinishedRun) -> FeatureMap:
    """Return the feature map f of a finished classifier."""
    mean, std = builders.normalisation_constants(classifier.cfg, classifier.source)
    return FeatureMap(classifier.network, mean, std, classifier.compute.memory_format)


def load_reversal(
    generator: Path, classifier: Path, device: str = "auto", data_dir: str | None = None
) -> tuple[Reversal, FinishedRun]:
    """Load G and f with fixed weights, and return them with the classifier's run.

    Args:
        generator, classifier: directories of finished runs on the same data set. An inversion also needs the
            covariances of a classifier with loss=isda, which is not checked here.
        device: auto, cpu or gpu.
        data_dir: where the data is now; None: where it was in training.

    Raises:
        UserError: a run is missing, has not finished or is damaged, or the two do not fit each other.
    """
    cfg = read_frozen_generator(generator / "config.yaml")
    finished = load_finished_run(classifier, device, data_dir)
    names = [one.choice.dataset for one in (cfg, finished.cfg)]
    if names[0] != names[1]:
        raise ConfigError(f"the generator is of dataset={names[0]}, the classifier of dataset={names[1]}")
    images = load_generator(build(cfg.gan.game), generator / "checkpoint.pt", finished.compute.device)
    builders.check_made_like(images, finished.source, generator)
    for network in images.generators:
        network.requires_grad_(False)
    return Reversal(images, feature_map(finished)), finished
