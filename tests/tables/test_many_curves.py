"""Figures of many labelled curves, with an enlarged part."""

import dataclasses

import matplotlib as mpl
import pytest

from isda_repro.experiments.table import PlotSpec
from isda_repro.plotting import STYLE
from isda_repro.tables.curves import Curve
from isda_repro.tables.many_curves import detailed_figure, first_of_detail

METHODS = [
    *("Large Margin", "Disturb Label", "Focal Loss", "Center Loss", "Lq Loss", "WGAN", "CGAN", "ACGAN", "infoGAN"),
    *("Basic", "Basic + Dropout", "ISDA", "ISDA + Dropout"),
]


def curve(name, best, epochs=160, seeds=3, unfinished=None, drops=(80, 120)):
    levels = [1.02 if epoch >= 120 else 1.3 if epoch >= 80 else 2.2 for epoch in range(1, epochs + 1)]
    mean = [best * level + 50 / epoch**2 for epoch, level in enumerate(levels, start=1)]
    reached = [drop for drop in drops if drop <= epochs]
    value = best if epochs == 160 else None
    return Curve(
        name, seeds, unfinished, mean, [one - 0.1 for one in mean], [one + 0.1 for one in mean], reached, 0.01, value
    )


@pytest.fixture
def drawn():
    return {
        title: {name: curve(name, 6 + 0.05 * (index * 5 % 13)) for index, name in enumerate(METHODS)}
        for title in ("ResNet-110, CIFAR-10", "ResNet-110, CIFAR-100")
    }


def draw(drawn):
    """Return the axes of the first panel: all epochs, the enlarged part, and the labels."""
    figure = detailed_figure(drawn, "test", "mean of the last 10 epochs", PlotSpec("rows", 1, "ISDA*"))
    assert len(figure.axes) == 3 * len(drawn)
    return figure.axes[:3]


def written(axes):
    """Return the texts at each height, from bottom to top and from left to right."""
    by_height = {}
    for text in sorted(axes.texts, key=lambda text: text.get_position()[0]):
        by_height.setdefault(text.get_position()[1], []).append(text.get_text())
    return [by_height[height] for height in sorted(by_height)]


def test_the_detail_begins_at_a_drop():
    curves = [curve("a", 6), curve("b", 6, epochs=100)]
    assert first_of_detail(curves, 1) == 120
    assert first_of_detail(curves, 2) == 80
    assert first_of_detail(curves, 3) == 96  # fewer than three drops: the last two fifths
    assert first_of_detail([curve("b", 6, epochs=50)], 1) == 30
    assert first_of_detail([curve("b", 6, epochs=1)], 1) == 1


def test_both_axes_have_every_curve(drawn):
    course, detail, _ = draw(drawn)
    curves = drawn["ResNet-110, CIFAR-10"].values()
    for axes, first in ((course, 1), (detail, 120)):
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert [list(line.get_ydata()) for line in lines] == [one.mean[first - 1 :] for one in curves]
        assert all(list(line.get_xdata()) == list(range(first, 161)) for line in lines)
        drops = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
        assert drops == [79.5, 119.5]
    low, high = detail.get_ylim()
    assert all(low < min(one.low[130:]) and max(one.high[130:]) < high for one in curves)


def test_a_seed_without_an_error_leaves_the_upper_axes_their_height(drawn):
    one = dataclasses.replace(curve("a", 6), low=[0.0] * 160)
    course, *_ = draw({title: {**lines, "a": one} for title, lines in drawn.items()})
    assert course.get_ylim()[1] > 6


def test_names_stand_in_the_order_of_the_ends_each_beside_its_number(drawn):
    curves = drawn["ResNet-110, CIFAR-10"]
    rising = sorted(METHODS, key=lambda name: curves[name].mean[-1])
    assert written(draw(drawn)[2]) == [[name, f"{curves[name].value:.2f}"] for name in rising]


def test_names_are_bold_by_their_pattern_and_values_where_the_table_prints_them_bold(drawn):
    lines = drawn["ResNet-110, CIFAR-10"]
    lines["CGAN"] = dataclasses.replace(lines["CGAN"], is_best=True)
    bold = {text.get_text() for text in draw(drawn)[2].texts if text.get_weight() == "bold"}
    assert bold == {"ISDA", "ISDA + Dropout", f"{lines['CGAN'].value:.2f}"}


def test_the_axis_of_epochs_has_their_passes(drawn):
    lines = drawn["ResNet-110, CIFAR-10"]
    assert draw(drawn)[1].get_xlabel() == "epoch"
    lines |= {name: dataclasses.replace(one, passes=8) for name, one in lines.items()}
    assert draw(drawn)[1].get_xlabel() == "epoch (of 8 passes)"
    lines["WGAN"] = dataclasses.replace(lines["WGAN"], passes=4)
    assert draw(drawn)[1].get_xlabel() == "epoch"


def test_what_is_unfinished_or_of_fewer_seeds_says_so_and_has_no_number(drawn):
    lines = drawn["ResNet-110, CIFAR-10"]
    lines["WGAN"] = curve("WGAN", 7, epochs=57, seeds=1, unfinished="unfinished: epoch 57 of 160")
    lines["CGAN"] = curve("CGAN", 7.2, seeds=2)
    said = {name.split(",")[0]: (name, value) for name, value in written(draw(drawn)[2])}
    assert said["WGAN"][1] == ""
    assert "unfinished: epoch 57 of 160" in said["WGAN"][0]
    assert "1 seed" in said["WGAN"][0]
    assert "2 seeds" in said["CGAN"][0]
    assert said["CGAN"][1] == "7.20"
    assert said["ACGAN"][0] == "ACGAN"


def test_the_papers_values_are_lines_within_the_enlarged_part_and_said(drawn):
    lines = drawn["ResNet-110, CIFAR-10"]
    lines["ISDA"] = dataclasses.replace(lines["ISDA"], paper=5.0)
    course, detail, _ = draw(drawn)
    assert [line.get_ydata()[0] for line in detail.lines if list(line.get_xdata()) == [0, 1]] == [5.0]
    assert not [line for line in course.lines if list(line.get_xdata()) == [0, 1]]
    assert detail.get_ylim()[0] < 5.0


@pytest.mark.parametrize(("panels", "abreast"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 3), (16, 2)])
def test_panels_are_beside_each_other(drawn, panels, abreast):
    lines = {"ISDA": drawn["ResNet-110, CIFAR-10"]["ISDA"]}
    figure = detailed_figure({str(number): lines for number in range(panels)}, "test", "m", PlotSpec("rows", 1, None))
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes[::3]}) == abreast
    boxes = [axes.get_position() for axes in figure.axes[::3]]
    assert len({(round(box.x0, 3), round(box.y0, 3)) for box in boxes}) == panels
    assert all(box.y0 > 0 and box.y1 < 1 for axes in figure.axes for box in [axes.get_position()])


@pytest.mark.parametrize("panels", [1, 2])
def test_the_text_below_fits_the_width_of_the_figure(drawn, panels):
    lines = {name: dataclasses.replace(one, paper=5.0) for name, one in drawn["ResNet-110, CIFAR-10"].items()}
    drawn = {str(number): lines for number in range(panels)}
    with mpl.rc_context(STYLE):
        figure = detailed_figure(drawn, "test", "mean of the last 10 epochs", PlotSpec("rows", 1, None))
    (foot,) = figure.texts
    for said in ("smallest to the largest", "Dotted", "paper's values", "last 10 epochs"):
        assert said in foot.get_text().replace("\n", " ")
    box, (width, _) = foot.get_window_extent(), figure.canvas.get_width_height()
    assert 0 < box.x0 < box.x1 < width
    assert box.y0 > 0
