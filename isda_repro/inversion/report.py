"""What an inversion came to: as numbers that are kept, and as a page that is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from isda_repro.inversion.reversal import Inversion, Settings

PICTURE, PAGE, NUMBERS = "inversion.png", "inversion.md", "inversion.json"


def numbers_of(inversion: Inversion, settings: Settings, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings and distances, for JSON.

    Args:
        inversion: of N images.
        settings: it was made with.
        images: what is known of each: its ``index`` and its ``class``.
    """
    found = []
    for row, image in enumerate(images):
        start, end = ({key: float(one[row]) for key, one in ends._asdict().items()} for ends in _ends(inversion))
        lists = {name: getattr(inversion, name)[row].tolist() for name in ("moved", "before", "after")}
        found.append({**image, "step_one": {"start": start, "found": end}, "step_two": lists})
    return {
        "eta": settings.eta,
        "lambda": settings.strength,
        "augmentations": settings.augmentations,
        "seed": settings.seed,
        "step_one": vars(settings.first),
        "step_two": vars(settings.second),
        "images": found,
    }


def _ends(inversion: Inversion) -> Any:
    return inversion.start, inversion.found


def table(found: Mapping[str, Any]) -> list[str]:
    """How far both objectives fell, image by image, in Markdown."""
    lines = [
        "| image | features, Step I | pixels, Step I | features, Step II: moved by | before | after |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for image in found["images"]:
        start, end = image["step_one"]["start"], image["step_one"]["found"]
        fell = (f"{start[key]:,.3g} → {end[key]:,.3g}" for key in ("features", "pixels"))
        means = (
            f"{sum(image['step_two'][key]) / len(image['step_two'][key]):,.3g}" for key in ("moved", "before", "after")
        )
        lines.append(f"| {image['class']} {image['index']} | {' | '.join([*fell, *means])} |")
    return lines


def sheet(originals: Tensor, inversion: Inversion) -> Tensor:
    """Original, reconstruction and augmentations of each image: uint8 [N, 2 + M, 3, H, W]."""
    return torch.cat([originals[:, None], inversion.reconstructions[:, None], inversion.augmentations], dim=1)


def page(found: Mapping[str, Any], command: str, machine: Sequence[str]) -> str:
    """Picture, settings and table in Markdown."""
    first, second = found["step_one"], found["step_two"]
    return "\n".join(
        [
            "# Augmented features as images (Appendix C, Figures 3 and 5)",
            "",
            f"![originals, reconstructions, augmentations]({PICTURE})",
            "",
            "Each row: a real image; what the generator makes of the numbers that Step I found for it (equation 15);",
            f"and of those that Step II found for {found['augmentations']} features drawn from N(a, λ Σ) (equations 1",
            "and 16).",
            "",
            f"- generator `{found['generator']}`",
            f"- features of `{found['classifier']}`, test error {found['test_error']:.2f}%; {found['part']} images",
            f"- η = {found['eta']:g}, λ = {found['lambda']:g}, seed {found['seed']}",
            f"- {first['iterations']:,} iterations of each step, rates {first['lr']:g} and {second['lr']:g}, a tenth",
            f"  after each quarter, momentum {first['momentum']:g}, weight decay {first['weight_decay']:g}",
            f"- `{command}`",
            f"- {found['seconds']:,.0f} s; {' '.join(machine)}",
            "",
            "Squared distances, of features to those wanted, of pixels in [-1, 1] to the image's. Step I: from random",
            "numbers to what was found. Step II, means over augmentations: how far the feature was moved, and how far",
            "the image's features were from the moved one before and after.",
            "",
            *table(found),
        ]
    )
