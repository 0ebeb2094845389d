"""Figure files in one style, as PNG and SVG; the same data gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isda_repro.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

STYLE: dict[str, Any] = {
    "font.family": "STIXGeneral",  # similar to Times, and bundled with matplotlib
    "mathtext.fontset": "stix",
    "text.parse_math": False,  # names may have a dollar sign
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
    "svg.fonttype": "path",  # looks the same if the font is not installed
    "svg.hashsalt": "isda_repro",  # makes ids reproducible
}


def figure_files(path: Path) -> list[Path]:
    """Return the paths of a figure: ``path`` itself, and the same name with the other suffix.

    Raises:
        UserError: the suffix is neither .png nor .svg, or ``path`` is a folder.
    """
    if path.suffix not in SUFFIXES or path.is_dir():
        raise UserError(f"figure={path} must be a file that ends in .png or .svg; the other is written beside it")
    return [path, *(path.with_suffix(other) for other in SUFFIXES if other != path.suffix)]


def write_figure(path: Path, make: Callable[[], Figure]) -> list[Path]:
    """Write the figure that ``make`` draws as PNG and SVG, in this project's style; return both paths.

    The same figure gives the same bytes each time.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # ignore the user's matplotlibrc
        mpl.rcParams.update(cast(Any, STYLE))
        paths = figure_files(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in paths:
            undated: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            make().savefig(file, dpi=200, metadata=undated)  # draw it again, because saving shifts parts of a figure
    return paths
