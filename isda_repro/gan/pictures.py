"""Pictures of a generator's training: grids of generated images, and loss curves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from isda_repro.files import write_output
from isda_repro.gan.sampling import ImageGenerator
from isda_repro.plotting import write_figure

COLUMNS = 10  # images of each class in a grid
MOST_ROWS = 10  # maximum number of classes in a grid
GAP = 2  # pixels between images, before enlarging
ENLARGED_TO = 64  # approximate height of an image in the grid, in pixels
WHITE = 255


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


def arrange(images: Tensor) -> Tensor:
    """Arrange images uint8 [rows, columns, 1 or 3, H, W] on white as one picture, uint8 [3, height, width]."""
    apart = F.pad(images.expand(-1, -1, 3, -1, -1), (GAP, 0, GAP, 0), value=WHITE)
    sheet = F.pad(apart.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), (0, GAP, 0, GAP), value=WHITE)
    enlarged = enlargement(images.shape[3])
    return sheet.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2)


def enlargement(height: int) -> int:
    """Return the integer factor by which images of this height are enlarged."""
    return max(1, ENLARGED_TO // height)


def write_picture(path: Path, picture: Tensor, is_own_place: bool = False) -> None:
    """Write a picture uint8 [3, height, width] as PNG. ``is_own_place`` is explained in ``write_output``."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(stream, format="PNG", optimize=True)
    write_output(path, stream.getvalue(), is_own_place)


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
