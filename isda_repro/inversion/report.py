"""Results of an inversion: the numbers as JSON, sheets of images, and a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isda_repro.files import write_output
from isda_repro.inversion.objectives import Distances
from isda_repro.inversion.reversal import Inversion, Settings
from isda_repro.sheets import GAP, WHITE, arrange, enlargement

TEXT = 13  # font size in pixels
MARGIN = 4
FRAME = 3  # pixels; drawn in the gap around an image
BLACK = (0, 0, 0)


def titled(images: Tensor, columns: Sequence[str], rows: Sequence[str], framed: Tensor | None = None) -> Tensor:
    """Return a grid of images with column names above and row names on the left: uint8 [3, height, width].

    Args:
        images: uint8 [rows, columns, 1 or 3, H, W].
        columns: column names. A long name may run over the following columns if their names are empty.
        rows: row names.
        framed: bool [rows, columns], the images with a black frame; None: no frames.
    """
    from matplotlib.font_manager import findfont
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), TEXT)  # comes with matplotlib, and has Greek
    sheet = arrange(images)
    enlarged = enlargement(images.shape[3])
    gap, (step_y, step_x) = GAP * enlarged, ((side + GAP) * enlarged for side in images.shape[3:])
    height, width = sheet.shape[1:]
    left = max(int(font.getlength(name)) for name in rows) + 2 * MARGIN
    top = TEXT + 2 * MARGIN
    picture = Image.new("RGB", (left + width, top + height), (WHITE,) * 3)
    picture.paste(Image.fromarray(sheet.permute(1, 2, 0).numpy()), (left, top))
    draw = ImageDraw.Draw(picture)
    if framed is not None:
        for row, column in framed.nonzero().tolist():
            x, y = left + gap + column * step_x, top + gap + row * step_y
            box = (x - FRAME, y - FRAME, x + step_x - gap + FRAME - 1, y + step_y - gap + FRAME - 1)
            draw.rectangle(box, outline=BLACK, width=FRAME)
    for index, name in enumerate(columns):
        draw.text((left + gap + index * step_x, MARGIN), name, BLACK, font)
    for index, name in enumerate(rows):
        middle = top + gap + index * step_y + (step_y - gap) / 2
        draw.text((left - MARGIN, middle), name, BLACK, font, anchor="rm")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


PICTURE, PAGE, NUMBERS = "inversion.png", "inversion.md", "inversion.json"


def numbers_of(inversion: Inversion, settings: Settings, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return settings, distances and objectives of an inversion, for JSON.

    Args:
        inversion: the result for N images.
        settings: the settings that it was made with.
        images: the ``index`` and the ``class`` of each image.
    """
    found = []
    for row, image in enumerate(images):
        lists = {name: getattr(inversion, name)[row].tolist() for name in ("moved", "before", "after")}
        ends = {name: _first(getattr(inversion, name), row, settings.eta) for name in ("start", "found")}
        found.append({**image, "step_one": ends, "step_two": lists})
    return {
        "eta": settings.eta,
        "lambda": settings.strength,
        "augmentations": settings.augmentations,
        "seed": settings.seed,
        "step_one": vars(settings.first),
        "step_two": vars(settings.second),
        "images": found,
    }


def _first(distances: Distances, row: int, eta: float) -> dict[str, float]:
    """Return both terms of equation 15, and the objective."""
    features, pixels = float(distances.features[row]), float(distances.pixels[row])
    return {"features": features, "pixels": pixels, "objective": features + eta * pixels}


def table(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of a Markdown table: how far both objectives fell, for each image."""
    lines = [
        "| image | equation 15 | its features | its pixels | equation 16, each augmentation | moved by |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for image in found["images"]:
        start, end, second = image["step_one"]["start"], image["step_one"]["found"], image["step_two"]
        first = (f"{start[key]:,.3g} → {end[key]:,.3g}" for key in ("objective", "features", "pixels"))
        fell = (f"{a:,.3g} → {b:,.3g}" for a, b in zip(second["before"], second["after"], strict=True))
        moved = ", ".join(f"{one:,.3g}" for one in second["moved"])
        lines.append(f"| {image['class']} {image['index']} | {' | '.join(first)} | {', '.join(fell)} | {moved} |")
    return lines


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write each text to the file of its name."""
    for name, text in texts.items():
        write_output(folder / name, f"{text}\n")


def sheet(originals: Tensor, inversion: Inversion) -> Tensor:
    """Return original, reconstruction and augmentations of each image: uint8 [N, 2 + M, 3, H, W]."""
    return torch.cat([originals[:, None], inversion.reconstructions[:, None], inversion.augmentations], dim=1)


def page(found: Mapping[str, Any], command: str, machine: Sequence[str]) -> str:
    """Return a Markdown page with picture, settings and table."""
    first, second = found["step_one"], found["step_two"]
    return "\n".join(
        [
            "# Augmented features as images (Appendix C, Figures 3 and 5)",
            "",
            f"![originals, reconstructions, augmentations]({PICTURE})",
            "",
            "Each row: a real image; what the generator makes of the numbers that Step I found for it (equation 15);",
            f"and of those that Step II found for {found['augmentations']} features from N(a, λ Σ) (equation 16).",
            "",
            f"- generator `{found['generator']}`",
            f"- features of `{found['classifier']}`, error on its {found['evaluated_on']} set {found['error']:.2f}%",
            f"- images of its {found['part']} set",
            f"- η = {found['eta']:g}, λ = {found['lambda']:g}, seed {found['seed']}",
            f"- {first['iterations']:,} iterations of each step, rates {first['lr']:g} and {second['lr']:g}, a tenth",
            f"  of it after each quarter, momentum {first['momentum']:g}, weight decay {first['weight_decay']:g}",
            f"- `{command}`",
            f"- {found['seconds']:,.0f} s; {' '.join(machine)}",
            "",
            "Objectives before and after. Equation 15: the squared distance to the image's features, and η times",
            "that to its pixels, in [-1, 1]; from random numbers to what Step I found. Equation 16: the squared",
            "distance to the moved features; from what Step I found to what Step II found. Moved by: the squared",
            "distance of the moved features to the image's.",
            "",
            *table(found),
        ]
    )
