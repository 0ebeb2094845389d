"""Error curves of many methods: the whole training above, and below, enlarged, the last epochs with each line named.

Lines can be told apart by the name at their end, then by dashes and marker, and only then by colour, so a grey print is
readable.
"""

from __future__ import annotations

import fnmatch
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isda_repro.experiments.table import PlotSpec
from isda_repro.tables.curves import Curve, epoch_label, seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LineStyle:
    """Appearance of a line."""

    colour: str
    dashes: Any
    marker: str
    width: float = 0.9
    filled: bool = False


BOLD = (
    LineStyle("#C43E00", "-", "s", width=1.9, filled=True),
    LineStyle("#C43E00", (0, (4, 1.2)), "D", width=1.9),
)
OTHERS = (  # dark and light alternate, so that neighbours also differ in grey
    LineStyle("#0072B2", (0, (5, 2)), "o"),
    LineStyle("#56B4E9", (0, (2, 1)), "v", filled=True),
    LineStyle("#00694C", (0, (6, 1.5, 1, 1.5)), "^"),
    LineStyle("#CC79A7", "-", "D", filled=True),
    LineStyle("#8A5A00", (0, (1, 1)), "s"),
    LineStyle("#999933", (0, (8, 2)), "P", filled=True),
    LineStyle("#332288", (0, (3, 1, 1, 1, 1, 1)), "X"),
    LineStyle("#44AA99", (0, (4, 1)), "<", filled=True),
    LineStyle("#882255", (0, (6, 1, 2, 1)), ">"),
    LineStyle("#999999", "-", "o", filled=True),
    LineStyle("#222222", "-", "*", filled=True),
)


def line_styles(names: Sequence[str], bold: str | None) -> dict[str, LineStyle]:
    """Return a style for each name.

    Names that match the pattern ``bold`` (fnmatch) get heavy styles, of which the last name gets the heaviest.
    """
    heavy = [name for name in names if bold is not None and fnmatch.fnmatchcase(name, bold)]
    light = [name for name in names if name not in heavy]
    looks = {name: BOLD[i % len(BOLD)] for i, name in enumerate(reversed(heavy))}
    return looks | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(light)}


WIDTH, MARGIN, GAP = 2.35, 0.52, 0.2  # widths in inches: curves of a panel, axis labels left of them, between panels
SAMPLE, VALUE = 0.4, 0.36  # widths in inches: sample of the line before its name, number after it
COURSE, DETAIL, BETWEEN, TOP, BOTTOM, FOOT = 1.25, 1.95, 0.32, 0.28, 0.45, 0.2  # heights in inches; FOOT of a line
CHARACTERS = 21  # of the text below the panels, per inch
SIZE = 7.5  # font size in points
MOST_ABREAST = 3
CAP = 3.2  # the upper axes end at this multiple of the smallest error, which cuts off the noisy beginning
SETTLED = 0.1  # fraction of the enlarged epochs in which errors still fall; the range of the lower axes ignores it


@dataclass(frozen=True)
class _Writing:
    """Text beside the lines of a figure."""

    usual: int  # the number of seeds that most curves have
    name_width: float  # inches

    @property
    def width(self) -> float:
        """Width of line sample, name and number together, in inches."""
        return SAMPLE + self.name_width + VALUE

    def name(self, curve: Curve) -> str:
        """Return the name of a curve, followed by what is unusual about it."""
        return ", ".join((curve.name, *self.unusual(curve)))

    def unusual(self, curve: Curve) -> list[str]:
        """Return what is unusual about a curve: another number of seeds than most, or unfinished runs."""
        count = None if curve.seeds == self.usual else seeds(curve.seeds)
        return [one for one in (count, curve.unfinished) if one is not None]


def detailed_figure(drawn: dict[str, dict[str, Curve]], ylabel: str, numbers: str, how: PlotSpec) -> Figure:
    """Return a figure with a pair of axes for each panel, and the names of the lines beside the lower axes.

    Args:
        drawn: panel title -> line label -> curve.
        ylabel: label of the axes of errors.
        numbers: description of the numbers beside the names, of which the table's best are bold.
        how: the table's ``figure:``.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for lines in drawn.values() for name in lines))
    curves = [curve for lines in drawn.values() for curve in lines.values()]
    looks, writing = line_styles(names, how.bold), _writing(curves)
    most = min(len(drawn), MOST_ABREAST)
    abreast = next((n for n in range(most, 1, -1) if len(drawn) % n == 0), most)
    wide, high = MARGIN + WIDTH + writing.width + GAP, TOP + COURSE + BETWEEN + DETAIL + BOTTOM
    foot = textwrap.wrap(_foot(curves, writing.usual, numbers), int((wide * abreast - MARGIN) * CHARACTERS))
    below = FOOT * len(foot)
    size = (wide * abreast, high * -(-len(drawn) // abreast) + below)
    figure = Figure(figsize=size)

    def axes(left: float, bottom: float, width: float, height: float) -> Any:
        return figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))

    for index, (title, lines) in enumerate(drawn.items()):
        left, bottom = wide * (index % abreast) + MARGIN, size[1] - high * (index // abreast + 1) + BOTTOM
        course = axes(left, bottom + DETAIL + BETWEEN, WIDTH + writing.width, COURSE)
        detail = axes(left, bottom, WIDTH, DETAIL)
        ends = _panel(course, detail, {name: lines[name] for name in names if name in lines}, looks, how.detail)
        _write(axes(left + WIDTH, bottom, writing.width, DETAIL), lines, looks, ends, writing)
        course.set_title(title, fontsize=SIZE + 1.5, pad=5)
        for one in (course, detail):
            one.set_ylabel(ylabel if index % abreast == 0 else "", fontsize=SIZE + 0.5)
        detail.set_xlabel(epoch_label(lines.values()), fontsize=SIZE + 0.5)
    text = "\n".join(foot)
    figure.text(MARGIN / size[0], 0.07 / size[1], text, fontsize=SIZE - 0.5, color="0.3", linespacing=1.5)
    return figure


def _foot(curves: Sequence[Curve], usual: int, numbers: str) -> str:
    """Return the text below the panels: what bands, lines and numbers are."""
    bands = f"Mean of {seeds(usual)}, bands from the smallest to the largest" if usual > 1 else "One seed"
    drops = f"{bands}. Dotted: the learning rate drops."
    paper = " Thin horizontal lines: the paper's values." if any(curve.paper is not None for curve in curves) else ""
    values = f" Numbers: {numbers}." if any(curve.value is not None for curve in curves) else ""
    return drops + paper + values


def _writing(curves: Sequence[Curve]) -> _Writing:
    """Measure the longest name, as if all names were bold."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    usual = Counter(curve.seeds for curve in curves).most_common(1)[0][0]
    font = FontProperties(weight="bold")
    widths = []
    for curve in curves:
        name = TextPath((0, 0), _Writing(usual, 0).name(curve), size=SIZE, prop=font).get_extents().width / 72
        widths.append(name - (VALUE if curve.value is None else 0))  # a curve without a number may use its space
    return _Writing(usual, max(widths) + 0.06)


# -------------------------------------------------------------------------------------------------------------- panels


def _panel(
    course: Any, detail: Any, lines: dict[str, Curve], looks: dict[str, LineStyle], drops: int
) -> tuple[float, float]:
    """Draw all lines in both axes, and return the range of errors that the lower axes show."""
    curves = list(lines.values())
    last = max(len(curve.mean) for curve in curves)
    first = first_of_detail(curves, drops)
    for number, (name, curve) in enumerate(lines.items()):
        _draw(course, curve, looks[name], range(1, last + 1), markers=0, shift=0)
        _draw(detail, curve, looks[name], range(first, last + 1), markers=5, shift=number / len(lines))
        mark_paper(detail, curve, looks[name].colour)
    smallest = min(min(curve.low) for curve in curves)
    largest = max(max(curve.mean) for curve in curves)
    low, high = _range(curves, first, last)
    _dress(course, curves, (1, last), (0.8 * smallest, min(largest, CAP * smallest or largest)), ticks=5)
    _dress(detail, curves, (first, last), (low, high), ticks=7)
    course.fill_between([first, last], low, high, facecolor="0.93", edgecolor="0.6", linewidth=0.5, zorder=0)
    return low, high


def first_of_detail(curves: Sequence[Curve], detail: int) -> int:
    """Return the epoch from which the curves are enlarged: the ``detail``-th drop of the learning rate, from the last.

    If there is no such drop, or it is the last epoch, return the epoch at 60% of the training.
    """
    last = max(len(curve.mean) for curve in curves)
    drops = sorted({drop for curve in curves for drop in curve.drops})
    return drops[-detail] if len(drops) >= detail and drops[-detail] < last else max(1, round(0.6 * last))


def _range(curves: Sequence[Curve], first: int, last: int) -> tuple[float, float]:
    """Return the range of errors from ``first`` on, without the first ``SETTLED`` of these epochs, plus a margin."""
    begin = first - 1 + round(SETTLED * (last - first))
    seen = [curve for curve in curves if len(curve.mean) > begin]
    paper = [curve.paper for curve in curves if curve.paper is not None]
    low = min([*paper, *(min(curve.low[begin:]) for curve in seen)])
    high = max([*paper, *(max(curve.high[begin:]) for curve in seen)])
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _draw(axes: Any, curve: Curve, look: LineStyle, epochs: range, markers: int, shift: float) -> None:
    """Draw the part of a line that is within ``epochs``.

    Args:
        axes: the axes.
        curve: the line.
        look: its style.
        epochs: the epochs that the axes show.
        markers: number of markers on the line.
        shift: position of the first marker, as a fraction of the distance between markers.
    """
    low, mean, high = (errors[epochs.start - 1 : epochs.stop - 1] for errors in (curve.low, curve.mean, curve.high))
    seen = range(epochs.start, epochs.start + len(mean))
    bold = look in BOLD
    axes.fill_between(seen, low, high, color=look.colour, alpha=0.2 if bold else 0.08, linewidth=0, zorder=3 + bold)
    places = [round((number + shift) * len(epochs) / markers) for number in range(markers)]
    axes.plot(
        seen, mean, color=look.colour, linestyle=look.dashes, linewidth=look.width if markers else 0.6 * look.width,
        zorder=3.5 + bold, markevery=[place for place in places if place < len(mean)], **_marker(look),
    )  # fmt: skip


def _marker(look: LineStyle) -> dict[str, Any]:
    face = look.colour if look.filled else "white"
    return {"marker": look.marker, "markersize": 3.4, "markerfacecolor": face, "markeredgewidth": 0.8}


def _dress(axes: Any, curves: Sequence[Curve], across: tuple[int, int], up: tuple[float, float], ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.tick_params(labelsize=SIZE, length=2.5, width=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.set_xlim(across[0], max(across[1], across[0] + 1))
    axes.set_ylim(*up)
    mark_drops(axes, curves)


def mark_drops(axes: Any, curves: Sequence[Curve], label: str | None = None) -> None:
    """Mark drops of the learning rate by dotted vertical lines. ``label`` is the first line's entry in the legend."""
    for number, drop in enumerate(sorted({drop for curve in curves for drop in curve.drops})):
        axes.axvline(drop - 0.5, color="0.35", linestyle=(0, (1, 2)), linewidth=0.9, zorder=0,
                     label=None if number else label)  # fmt: skip


def mark_paper(axes: Any, curve: Curve, colour: str) -> None:
    """Mark the paper's value of a curve, if there is one, by a thin horizontal line."""
    if curve.paper is not None:
        axes.axhline(curve.paper, color=colour, linewidth=0.6, zorder=1)


# --------------------------------------------------------------------------------------------------------------- names


def _write(
    axes: Any, lines: dict[str, Curve], looks: dict[str, LineStyle], ends: tuple[float, float], writing: _Writing
) -> None:
    """Write names and table values beside the curves, and connect them to the ends of the lines."""
    axes.set_axis_off()
    axes.set_xlim(0, writing.width)
    axes.set_ylim(*ends)
    last = max(len(curve.mean) for curve in lines.values())
    order = sorted(lines, key=lambda name: lines[name].mean[-1])
    height = SIZE * 1.22 / 72 / DETAIL * (ends[1] - ends[0])
    places = spread([min(max(lines[name].mean[-1], ends[0]), ends[1]) for name in order], height, ends)
    for name, place in zip(order, places, strict=True):
        curve, look = lines[name], looks[name]
        if len(curve.mean) == last:
            axes.plot([0.0, 0.13], [curve.mean[-1], place], color="0.6", linewidth=0.5, clip_on=False)
        axes.plot([0.15, 0.25, 0.35], [place] * 3, color=look.colour, linestyle=look.dashes, linewidth=look.width,
                  markevery=[1], **_marker(look))  # fmt: skip
        font: dict[str, Any] = {"fontsize": SIZE, "va": "center_baseline"}
        weight, style = "bold" if look in BOLD else "normal", "italic" if writing.unusual(curve) else "normal"
        axes.text(SAMPLE, place, writing.name(curve), weight=weight, style=style, **font)
        value = "" if curve.value is None else f"{curve.value:.2f}"
        axes.text(writing.width, place, value, ha="right", weight="bold" if curve.is_best else "normal", **font)


def spread(targets: Sequence[float], gap: float, ends: tuple[float, float]) -> list[float]:
    """Return positions near the targets that are at least ``gap`` apart.

    They minimise the sum of squared distances to the targets.

    Args:
        targets: preferred positions in ascending order.
        gap: minimum distance.
        ends: lowest and highest position; the result stays half a gap inside them if it fits.
    """
    from scipy.optimize import isotonic_regression  # 0.2 s, and only figures need it

    wanted = isotonic_regression([target - index * gap for index, target in enumerate(targets)]).x.tolist()
    lowest, highest = ends[0] + gap / 2, ends[1] - gap / 2 - (len(targets) - 1) * gap
    within = [min(max(one, lowest), max(lowest, highest)) for one in wanted]
    return [one + index * gap for index, one in enumerate(within)]
