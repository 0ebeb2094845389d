"""Figure files in one style, as PNG and SVG; the same data gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isda_repro.errors import UserError
from isda_repro.files import check_output, write_output

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


def write_figure(path: Path, make: Callable[[], Figure], is_own_place: bool = False) -> list[Path]:
    """Write the figure that ``make`` draws as PNG and SVG, in this project's style; return both paths.

    The same figure gives the same bytes each time. ``is_own_place`` is explained in ``write_output``.

    Raises:
        UserError: a file of one of these names is there and not ours.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # ignore the user's matplotlibrc
        mpl.rcParams.update(cast(Any, STYLE))
        paths = figure_files(path)
        for file in () if is_own_place else paths:
            check_output(file)
        for file in paths:
            stream = io.BytesIO()
            undated: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            # draw it again, because saving shifts parts of a figure
            make().savefig(stream, format=file.suffix.removeprefix("."), dpi=200, metadata=undated)
            write_output(file, stream.getvalue(), is_own_place)
    return paths
