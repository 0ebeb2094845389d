"""Trained generators as a source of labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isda_repro.config import build, read_frozen_generator
from isda_repro.errors import UserError
from isda_repro.gan.networks import Generator
from isda_repro.gan.objectives import Game, Shape
from isda_repro.training.checkpoint import load

IMAGES_AT_ONCE = 500
GREYS = 255


class ImageGenerator:
    """Images of the classes that are asked for.

    It is in evaluation mode: batch normalisation uses the averages of training, so that an image depends on its own
    noise and label, and not on those beside it.

    Args:
        game: that the generators were trained in.
        generators: one, or one for each class.
        shape: of the images.
    """

    def __init__(self, game: Game, generators: Sequence[Generator], shape: Shape) -> None:
        self.game, self.shape = game, shape
        self.generators = [generator.eval() for generator in generators]
        self.device = next(self.generators[0].parameters()).device

    @property
    def num_classes(self) -> int:
        """Of which it makes images."""
        return self.shape.num_classes

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator, part: slice = slice(None)) -> Tensor:
        """An image of each label, or of a part of them.

        Args:
            labels: int64 [N], on any device; on the CPU a GPU is not waited for.
            generator: draws the noise; on any device, and on another one it draws other noise.
            part: which of the images are made. Noise is drawn for all of them.

        Returns:
            uint8 [n, channels, H, W] on the generators' device.

        Raises:
            ValueError: a label that is none of the classes.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"labels must be in [0, {self.num_classes}), but one is not")
        noise, codes = (drawn[part].to(self.device) for drawn in self.game.draw(len(labels), generator))
        return self.made_from(noise, codes, labels[part])

    @torch.no_grad()
    def made_from(self, noise: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
        """An image of each label from numbers that were drawn: uint8 [N, channels, H, W]."""
        size, channels = self.shape.image_size, self.shape.channels
        images = torch.empty(len(labels), channels, size, size, dtype=torch.uint8, device=self.device)
        there = labels.to(self.device, non_blocking=True)
        for index, network in enumerate(self.generators):
            chosen = (labels == index).nonzero()[:, 0] if len(self.generators) > 1 else torch.arange(len(labels))
            for rows in chosen.to(self.device, non_blocking=True).split(IMAGES_AT_ONCE):
                inputs = self.game.inputs(noise[rows], there[rows], codes[rows], self.num_classes)
                images[rows] = pixels(network(inputs))
        return images


def pixels(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8."""
    return ((images.float() + 1) * (GREYS / 2)).round().clamp(0, GREYS).to(torch.uint8)


def trained_generator(folder: Path, device: torch.device, wanted: Mapping[str, Any]) -> ImageGenerator:
    """The generators of a finished run: what ``synthetic=`` trains on.

    Args:
        folder: of the run.
        device: where they are to be.
        wanted: of which ``kind``, and on what trained: ``dataset``, ``train_limit``, ``holdout``.

    Raises:
        UserError: there is no such run, it has not finished, its files are damaged, or it is another than is wanted.
    """
    cfg = read_frozen_generator(folder / "config.yaml")
    limits = {key: cfg.dataset[key] for key in ("train_limit", "holdout")}
    found = {"kind": cfg.choice.gan, "dataset": cfg.choice.dataset, **limits}
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(f"{folder} has a generator with {key} {found[key]}, and {value} is wanted: train one")
    game: Game = build(cfg.gan.game)
    return load_generator(game, folder / "checkpoint.pt", device)


def load_generator(game: Game, path: Path, device: torch.device) -> ImageGenerator:
    """The generators of a finished run, from its ``checkpoint.pt``.

    Args:
        game: as the run's configuration builds it.
        path: of the file.
        device: where they are to be.

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
    return ImageGenerator(game, [generator.to(device) for generator in generators], shape)
