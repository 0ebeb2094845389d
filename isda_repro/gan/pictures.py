"""Pictures of a generator's training: grids of generated images, and loss curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isda_repro.gan.sampling import ImageGenerator
from isda_repro.plotting import write_figure
from isda_repro.sheets import arrange

COLUMNS = 10  # images of each class in a grid
MOST_ROWS = 10  # maximum number of classes in a grid


def shown_epochs(epochs: int) -> set[int]:
    """Return the epochs after which a grid is saved: 1, 2, 5, 10, 20, 50 and so on, and the last."""
    series = {head * 10**power for head in (1, 2, 5) for power in range(len(str(epochs)))}
    return {epoch for epoch in series if epoch < epochs} | {epochs}


def grid(generator: ImageGenerator, seed: int) -> Tensor:
    """Return a picture with a row of generated images for each class, uint8 [3, height, width].

    All images of a column share their noise, and with infoGAN their codes. Generators without classes get new noise for
    each image.
    """
    labels = torch.tensor(generator.classes[:MOST_ROWS]).repeat_interleave(COLUMNS)
    draws = COLUMNS if generator.asked_for_classes else len(labels)
    drawn = generator.game.draw(draws, torch.Generator().manual_seed(seed))
    noise, codes = (one.repeat(len(labels) // draws, 1).to(generator.device) for one in drawn)
    return arrange(generator.made_from(noise, codes, labels).cpu().unflatten(0, (-1, COLUMNS)))


def draw_losses(path: Path, curves: Mapping[str, Sequence[float | None]], title: str) -> None:
    """Draw the losses on the left, and the discriminator's scores of real and generated images on the right.

    Args:
        path: the image file to write, in the folder of a run.
        curves: one value for each epoch, None where there is none, by name.
        title: title of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def make() -> Figure:
        figure = Figure(figsize=(8.4, 3.1), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2), ("loss", "score"), strict=True):
            names = [name for name in curves if name.endswith(kind)]
            for name, dashes in zip(names, ("-", "--", "-.", ":", (0, (5, 1, 1, 1))), strict=False):
                values = [math.nan if value is None else value for value in curves[name]]
                axes.plot(range(1, len(values) + 1), values, linestyle=dashes, label=name.replace("_", " "))
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize=8)
        figure.suptitle(title, fontsize=10)
        return figure

    write_figure(path, make, is_own_place=True)
