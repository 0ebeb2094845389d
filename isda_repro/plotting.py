"""Figure files in one style, as PNG and SVG; the same data gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isda_repro.errors import UserError
from isda_repro.files import check_output, write_output

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
PANEL = (4.6, 3.1)  # width and height of a panel, inches
PANELS_ABREAST = 3
TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100)  # per cent, on the logarithmic axis
MORE_TICKS = (1.5, 2.5, 4, 6, 7, 8, 15, 25, 40, 60, 70, 80)  # where the axis spans less than a factor of 6

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


def panel_grid(panels: int, abreast: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and the axes of its panels, row by row; positions of the grid without a panel are invisible.

    Args:
        panels: number of panels.
        abreast: number of panels that belong together, and stay side by side if they fit.
    """
    from matplotlib.figure import Figure

    rows = -(-panels // (abreast if 1 < abreast <= PANELS_ABREAST else PANELS_ABREAST))
    columns = -(-panels // rows)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, grid[:panels]


def logarithmic_errors(axes: Axes, low: float, high: float) -> None:
    """Give errors in percent, from ``low`` to ``high``, a logarithmic vertical axis with readable ticks."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = TICKS if high > 6 * low else sorted((*TICKS, *MORE_TICKS))
    axes.set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def check_figure(path: Path) -> list[Path]:
    """Return the two files of a figure. Commands call this before their work, see ``check_output``.

    Raises:
        UserError: a file of one of these names is there and not ours, or the suffix is another.
    """
    paths = figure_files(path)
    for file in paths:
        check_output(file)
    return paths


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
        paths = figure_files(path) if is_own_place else check_figure(path)
        for file in paths:
            stream = io.BytesIO()
            undated: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            # draw it again, because saving shifts parts of a figure
            make().savefig(stream, format=file.suffix.removeprefix("."), dpi=200, metadata=undated)
            write_output(file, stream.getvalue(), is_own_place)
    return paths
