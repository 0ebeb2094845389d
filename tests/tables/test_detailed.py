"""Figures with a detail: many lines, each named."""

import dataclasses
import itertools

import pytest

from isda_repro.tables import figures
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.curves import Curve
from isda_repro.tables.detailed import detailed_figure, first_of_detail, spread
from isda_repro.tables.drawing import Drawing

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


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_places_are_as_near_to_their_targets_as_a_gap_allows():
    assert spread([1.0, 5.0], 1.0, (0.0, 10.0)) == [1.0, 5.0]
    assert spread([4.0, 4.0], 1.0, (0.0, 10.0)) == [3.5, 4.5]
    assert spread([4.0, 4.2, 4.4], 1.0, (0.0, 10.0)) == pytest.approx([3.2, 4.2, 5.2])
    assert spread([0.0, 0.0, 9.9], 1.0, (0.0, 10.0)) == [0.5, 1.5, 9.5]
    assert spread([], 1.0, (0.0, 1.0)) == []


def test_the_detail_begins_at_a_drop():
    curves = [curve("a", 6), curve("b", 6, epochs=100)]
    assert first_of_detail(curves, 1) == 120
    assert first_of_detail(curves, 2) == 80
    assert first_of_detail(curves, 3) == 96  # there are two: the last two fifths
    assert first_of_detail([curve("b", 6, epochs=50)], 1) == 30
    assert first_of_detail([curve("b", 6, epochs=1)], 1) == 1


def test_thirteen_lines_differ_without_colour(drawn):
    figure = detailed_figure(drawn, "test", "mean of the last 10 epochs", Drawing("rows", 1, "ISDA*"))
    course, detail, beside = figure.axes[:3]
    lines = [line for line in detail.lines if len(line.get_xdata()) == 41]
    assert len(lines) == 13
    assert len({(line.get_marker(), str(line._unscaled_dash_pattern)) for line in lines}) == 13
    assert {line.get_marker() for line in lines if line.get_linewidth() > 1.5} == {"s", "D"}
    assert sorted(name for name in texts(beside) if not name[0].isdigit()) == sorted(METHODS)
    assert len(course.lines) == 13 + 2
    assert [line.get_xdata()[0] for line in course.lines[13:]] == [79.5, 119.5]


def test_names_stand_in_the_order_of_the_ends_and_do_not_overlap(drawn):
    figure = detailed_figure(drawn, "test", "mean of the last 10 epochs", Drawing("rows", 1, "ISDA*"))
    figure.canvas.draw()
    beside = figure.axes[2]
    names = [text for text in beside.texts if text.get_text() in METHODS]
    ends = {name: one.mean[-1] for name, one in drawn["ResNet-110, CIFAR-10"].items()}
    assert [text.get_text() for text in names] == sorted(METHODS, key=lambda name: ends[name])
    boxes = [text.get_window_extent() for text in names]
    assert all(lower.y1 <= upper.y0 + 1.5 for lower, upper in itertools.pairwise(boxes))
    numbers = [text for text in beside.texts if text.get_text()[:1].isdigit()]
    assert len(numbers) == 13
    assert max(box.x1 for box in boxes) < min(number.get_window_extent().x0 for number in numbers)


def test_what_is_unfinished_says_so(drawn):
    lines = drawn["ResNet-110, CIFAR-10"]
    lines["WGAN"] = curve("WGAN", 7, epochs=57, seeds=1, unfinished="unfinished: epoch 57 of 160")
    lines["CGAN"] = curve("CGAN", 7, seeds=2)
    figure = detailed_figure(drawn, "test", "mean of the last 10 epochs", Drawing("rows", 1, "ISDA*"))
    said = texts(figure.axes[2])
    assert "WGAN, 1 seed, unfinished: epoch 57 of 160" in said
    assert "CGAN, 2 seeds" in said
    assert "ACGAN" in said
    assert len([text for text in said if text[0].isdigit()]) == 12
    assert figure.texts[0].get_text().startswith("Mean of 3 seeds, bands from the smallest to the largest. Dotted: ")


def test_a_table_that_wants_a_detail_is_drawn_so_and_the_same_again(demo, finish, curves, there, tmp_path):
    table, plan = demo
    wanted = dataclasses.replace(table, figure=Drawing(detail=1, bold="ISDA"))
    for runs in plan.values():
        finish(runs[0], *curves(0, 2.0))
    filled = aggregate(wanted, plan, there())
    first, second = (
        figures.draw_curves(filled, tmp_path / name, plan, tmp_path / "runs") for name in ("a.svg", "b.svg")
    )
    assert [path.name for path in first] == ["a.svg", "a.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    plain = figures.draw_curves(aggregate(table, plan, there()), tmp_path / "c.svg")
    assert plain[0].read_bytes() != first[0].read_bytes()
