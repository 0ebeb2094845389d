"""Sampling labelled images from trained generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isda_repro.config import build, read_frozen_generator
from isda_repro.config.checks import TRAINING_SELECTION
from isda_repro.errors import UserError
from isda_repro.gan.networks import Generator
from isda_repro.gan.objectives import Game, Shape
from isda_repro.training.checkpoint import load

IMAGES_AT_ONCE = 500
GREYS = 255


class ImageGenerator:
    """Generates images of given classes.

    The generators are in evaluation mode: batch normalisation uses the running averages, so that an image depends on
    its own noise and label only, and not on the rest of the batch.

    Args:
        game: the game that the generators were trained in.
        generators: one generator, or one for each class.
        shape: size and classes of the images.
        classes: the classes that can be generated, in the order of the generators; None: all.
    """

    def __init__(
        self, game: Game, generators: Sequence[Generator], shape: Shape, classes: Sequence[int] | None = None
    ) -> None:
        self.game, self.shape = game, shape
        self.classes = tuple(range(shape.num_classes) if classes is None else classes)
        self.generators = [generator.eval() for generator in generators]
        self.device = next(self.generators[0].parameters()).device

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self.shape.num_classes

    @property
    def asked_for_classes(self) -> bool:
        """True if images have the requested class; False for one generator that was trained without classes."""
        return self.game.tells_class or self.game.one_for_each_class

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
        """Return an image for each label, or for some of the labels.

        Args:
            labels: int64 [N], on any device; labels on the CPU do not make the host wait for a GPU.
            generator: draws the noise, which depends on the generator's device.
            part: which of the images to generate. Noise is drawn for all N, so that the parts fit together.

        Returns:
            uint8 [n, channels, H, W] on the generators' device.

        Raises:
            ValueError: a label is not among ``classes``.
        """
        if not torch.isin(labels, torch.tensor(self.classes, device=labels.device)).all():
            raise ValueError(f"labels must be among {list(self.classes)}, but one is not")
        noise, codes = (drawn[part].to(self.device) for drawn in self.game.draw(len(labels), generator))
        return self.made_from(noise, codes, labels[part])

    @torch.no_grad()
    def made_from(self, noise: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
        """Return an image for each label from given noise and codes: uint8 [N, channels, H, W]."""
        parts = zip(*(one.split(IMAGES_AT_ONCE) for one in (noise, codes, labels)), strict=True)
        return torch.cat([pixels(self.images(*part)) for part in parts])

    def images(self, noise: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
        """Return images float [N, channels, H, W] in [-1, 1], differentiable with respect to noise and codes.

        Args:
            noise: float [N, noise_dim], on the generators' device.
            codes: float [N, K], on the generators' device.
            labels: int64 [N], on any device; labels on the CPU do not make the host wait for a GPU.
        """
        there = labels.to(self.device, non_blocking=True)
        if not self.game.one_for_each_class:
            of_all: Tensor = self.generators[0](self.game.inputs(noise, there, codes, self.num_classes))
            return of_all
        present = labels.unique().tolist()
        if len(present) == 1:
            alone: Tensor = self.generators[self.classes.index(present[0])](noise)
            return alone
        size = self.shape.image_size
        images = noise.new_zeros(len(labels), self.shape.channels, size, size)
        for label in present:
            rows = (labels == label).nonzero()[:, 0].to(self.device, non_blocking=True)
            images[rows] = self.generators[self.classes.index(label)](noise[rows])
        return images


def pixels(images: Tensor) -> Tensor:
    """Convert images from float in [-1, 1] to uint8."""
    return ((images.float() + 1) * (GREYS / 2)).round().clamp(0, GREYS).to(torch.uint8)


def trained_generator(folder: Path, device: torch.device, wanted: Mapping[str, Any]) -> ImageGenerator:
    """Load the generators of a finished run, which ``synthetic=`` mixes into the training images.

    Args:
        folder: the run directory.
        device: device to load them on.
        wanted: required values of ``kind``, ``dataset`` and the keys of ``TRAINING_SELECTION``.

    Raises:
        UserError: there is no such run, it has not finished, its files are damaged, a value differs from ``wanted``, or
            it cannot generate every class.
    """
    cfg = read_frozen_generator(folder / "config.yaml")
    limits = {key: cfg.dataset.get(key) for key in TRAINING_SELECTION}
    found = {"kind": cfg.choice.gan, "dataset": cfg.choice.dataset, **limits}
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(f"{folder} has a generator with {key} {found[key]}, and {value} is wanted: train one")
    game: Game = build(cfg.gan.game)
    generator = load_generator(game, folder / "checkpoint.pt", device)
    if not generator.asked_for_classes or len(generator.classes) != generator.num_classes:
        raise UserError(f"{folder} has no generator for each class: train one without gan.classes= and one_for_all=")
    return generator


def load_generator(game: Game, path: Path, device: torch.device) -> ImageGenerator:
    """Load the generators of a finished run from its ``checkpoint.pt``.

    Args:
        game: the game, as the run's configuration builds it.
        path: the checkpoint file.
        device: device to load them on.

    Raises:
        UserError: the file is missing, damaged, or holds no generators of this game.
    """
    state: Mapping[str, Any] = load(path)
    if "shape" not in state or "generators" not in state["network"]:
        raise UserError(f"{path} holds no generator: it is of another kind of run, or of one that has not finished")
    shape, weights = Shape(**state["shape"]), state["network"]["generators"]
    generators = [game.generator(shape) for _ in weights]
    try:
        for generator, own in zip(generators, weights, strict=True):
            generator.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its configuration: {str(error).splitlines()[0]}") from error
    return ImageGenerator(game, [generator.to(device) for generator in generators], shape, state.get("classes"))
