"""Files of figures: PNG and SVG in one style, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isda_repro.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

STYLE: dict[str, Any] = {
    "font.family": "STIXGeneral",  # a Times, and matplotlib brings it along
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "svg.fonttype": "path",  # looks the same where the font is missing
    "svg.hashsalt": "isda_repro",  # ids that do not change from one drawing to the next
}


def figure_files(path: Path) -> list[Path]:
    """A figure's file, and the twin in the other format that is written beside it.

    Raises:
        UserError: another ending, or a folder.
    """
    if path.suffix not in SUFFIXES or path.is_dir():
        raise UserError(f"figure={path} must be a file that ends in .png or .svg; the other is written beside it")
    return [path, *(path.with_suffix(other) for other in SUFFIXES if other != path.suffix)]


def write_figure(path: Path, make: Callable[[], Figure]) -> list[Path]:
    """Write what ``make`` draws to ``path`` and its twin, as PNG and SVG, in our style; the same bytes each time."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        mpl.rcParams.update(cast(Any, STYLE))
        paths = figure_files(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in paths:
            undated: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            make().savefig(file, dpi=200, metadata=undated)  # drawn anew: saving moves its parts by a hair
    return paths
