"""Predictions of a classifier, for the images that its run is evaluated on or for any others."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from isda_repro.console import ignore_broken_pipe
from isda_repro.data import AnySplit, FileSplit, Loader, images_below
from isda_repro.errors import UserError
from isda_repro.evaluation.classifier import Classifier
from isda_repro.files import expanded
from isda_repro.training import builders
from isda_repro.training.evaluate import LIKELIEST, Evaluation


@dataclass(frozen=True)
class Predictions:
    """Predictions for the N images that could be read, on the CPU; K is 5, or the number of classes if that is less.

    Args:
        images: name of each image: its path, or its number among the evaluated images.
        predicted: predicted class, int64 [N].
        likeliest: the K most probable classes, the first one first, int64 [N, K].
        probabilities: their probabilities, float64 [N, K].
        targets: labels, int64 [N]; None if they are not known.
        logits: logits, float32 [N, C], C being the number of classes; None without labels.
        num_classes: number of classes C.
        unreadable: number of images that could not be read, and are left out.
    """

    images: Sequence[str]
    predicted: Tensor
    likeliest: Tensor
    probabilities: Tensor
    targets: Tensor | None
    logits: Tensor | None
    num_classes: int
    unreadable: int

    @cached_property
    def evaluation(self) -> Evaluation:
        """Loss and errors, as ``isda_repro.training.evaluate.evaluate`` returns them.

        Raises:
            ValueError: there are no labels.
        """
        if self.targets is None or self.logits is None:
            raise ValueError("without labels there is no error")
        error, top5 = ((one != self.targets[:, None]).all(1) for one in (self.predicted[:, None], self.likeliest))
        percent = [100 * int(wrong.sum()) / len(wrong) for wrong in (error, top5)]
        loss = float(F.cross_entropy(self.logits.double(), self.targets))
        return Evaluation(loss, percent[0], percent[1] if self.num_classes > LIKELIEST else None)


def predict_test(classifier: Classifier) -> Predictions:
    """Predict the images that the run of a classifier is evaluated on, prepared as in training.

    Raises:
        DataError: an image cannot be read, and ``dataset.unreadable`` is ``stop``.
        UserError: all images are unreadable, or an output of the network is not finite.
    """
    split = classifier.source.test
    where: Callable[[int], str] = getattr(split, "where", str)  # images in memory have a number alone
    return _predict(classifier, classifier.cfg, split, where, split.targets)


def find_images(given: str | Sequence[object]) -> list[str]:
    """Return the paths of images: those of files as they are, and all images in and below a folder.

    Args:
        given: a file, a folder, or a list of files and folders.

    Raises:
        UserError: one is missing or is neither a file nor a folder, or a folder has no images.
    """
    found = []
    for name in [given] if isinstance(given, str) else given:
        path = expanded(str(name))
        if not (path.is_dir() or path.is_file()):
            raise UserError(f"images={name} is no file and no folder")
        found += images_below(path) if path.is_dir() else [str(path)]
    if not found:
        raise UserError("images=[] names no image")
    return found


def predict_images(classifier: Classifier, paths: Sequence[str]) -> Predictions:
    """Predict images without labels, prepared as the images that the run of the classifier is evaluated on.

    Those of a data set in memory, as CIFAR, have one size: the shorter side of any other image is scaled to it, and the
    centre is taken. An image that cannot be read is named in a warning and left out.

    Raises:
        UserError: all images are unreadable, or an output of the network is not finite, or the data set has images
            that are not square or not of three channels.
    """
    test, name = classifier.source.test, classifier.source.name
    (height, width), channels = test.image_size, test.channels
    if height != width or channels != 3:
        raise UserError(f"images= is for square images of 3 channels, and {name} has {channels} x {height} x {width}")
    encoded = np.array([os.fsencode(path) for path in paths])
    unlabelled = torch.zeros(len(paths), dtype=torch.int64)
    split = FileSplit(Path(), encoded, np.full(len(paths), -1), unlabelled, (height, width))
    few = len(paths) <= builders.STREAMED_TEST_BATCH_SIZE  # one batch, which one process reads
    reading: dict[str, Any] = {
        "unreadable": "skip",
        "workers": 0 if few else classifier.cfg.dataset.get("workers", "auto"),
    }
    if "test_crop" not in classifier.cfg.dataset:
        whole = {"_target_": "isda_repro.data.Crop", "size": height, "kind": "center", "resize": height}
        reading["test_crop"] = whole
    cfg = cast(DictConfig, OmegaConf.merge(classifier.cfg, {"dataset": reading}))
    return _predict(classifier, cfg, split, split.where, None)


def _predict(
    classifier: Classifier, cfg: DictConfig, split: AnySplit, where: Callable[[int], str], targets: Tensor | None
) -> Predictions:
    numbered = replace(cast(Any, split), targets=torch.arange(len(split)))  # a loader leaves out unreadable images
    constants = builders.normalisation_constants(cfg, classifier.source)
    loader = builders.build_loader(cfg, numbered, classifier.compute, constants, train=False)
    try:
        parts = _batches(classifier, loader, keep_logits=targets is not None)
    finally:
        loader.close()
    if not parts:
        raise UserError(f"no image can be read; there are {len(split):,}, the first being {where(0)}")
    numbers, predicted, likeliest, probabilities, *logits = (torch.cat(one) for one in zip(*parts, strict=True))
    return Predictions(
        images=[where(number) for number in numbers.tolist()],
        predicted=predicted,
        likeliest=likeliest,
        probabilities=probabilities,
        targets=None if targets is None else targets[numbers],
        logits=logits[0] if logits else None,
        num_classes=classifier.source.num_classes,
        unreadable=len(split) - len(numbers),
    )


@torch.inference_mode()
def _batches(classifier: Classifier, loader: Loader, keep_logits: bool) -> list[tuple[Tensor, ...]]:
    """Return for each batch numbers, predictions, likeliest classes and their probabilities, and maybe logits.

    The loader yields the numbers of images instead of their labels.
    """
    found, network = [], classifier.network.eval()
    with tqdm(total=loader.num_samples, desc="images", unit=" images", disable=None, leave=False) as bar:
        for images, numbers in loader.epoch(0):
            if len(numbers):
                with classifier.compute.autocast():
                    logits = network(images).logits
                outputs = (*_of_batch(logits), *([logits.float()] if keep_logits else []))
                found.append((numbers.cpu(), *(one.cpu() for one in outputs)))
            with ignore_broken_pipe(sys.stderr):
                bar.update(len(numbers))
    return found


def _of_batch(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions [N], likeliest classes [N, K] and their probabilities [N, K]."""
    logs = F.log_softmax(logits.double(), dim=1)
    if not logs.isfinite().all():
        raise UserError("the network gives outputs that are not finite numbers: are these the weights of a whole run?")
    likeliest = logits.topk(min(LIKELIEST, logits.shape[1]), dim=1).indices
    return logits.argmax(1), likeliest, logs.gather(1, likeliest).exp()
