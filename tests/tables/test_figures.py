import math
import sys
from subprocess import run as start

import pytest

from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.curves import panels as panels_of
from isda_repro.tables.figures import _figure, draw_curves, learning_rate_drops


@pytest.fixture
def filled(demo, finish, curves, there):
    for runs, best in zip(demo[1].values(), (2.3, 1.9), strict=True):
        for run in runs:
            finish(run, *curves(run.seed, best))
    return aggregate(*demo, there())


def test_the_band_is_from_the_smallest_to_the_largest_seed(demo, finish, there):
    runs = next(iter(demo[1].values()))
    for run, errors in zip(runs, ([30.0, 3.0], [60.0, 0.0], [60.0, 6.0]), strict=True):
        finish(run, *errors)
    panels = panels_of(aggregate(*demo, there()))
    assert list(panels) == ["ResNet-20 on digits"]
    assert list(panels["ResNet-20 on digits"]) == ["CE"]
    curve = panels["ResNet-20 on digits"]["CE"]
    assert (curve.low, curve.mean, curve.high) == ([30.0, 0.0], [50.0, 3.0], [60.0, 6.0])
    assert curve.floor == pytest.approx(100 / 360 / 2)
    assert curve.label == "CE (3 seeds)"


def test_drops_of_steps_are_marked_and_a_cosine_has_none():
    assert learning_rate_drops([0.05] * 15 + [0.005] * 8 + [0.0005] * 7) == [16, 24]
    assert learning_rate_drops([1.0, 0.2, 0.2]) == [2]
    assert learning_rate_drops([1.0]) == []
    assert learning_rate_drops([0.1, 0.1, 0.01, 0.001, 0.001]) == [3, 4]  # one right after another
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 30)) for epoch in range(31)]
    assert learning_rate_drops(cosine) == []


def test_both_files_and_the_same_bytes_again(filled, tmp_path):
    first = draw_curves(filled, tmp_path / "a" / "demo.png")
    assert [path.name for path in first] == ["demo.png", "demo.svg"]
    second = draw_curves(filled, tmp_path / "b" / "demo.svg")
    assert [path.name for path in second] == ["demo.svg", "demo.png"]
    assert first[0].read_bytes() == second[1].read_bytes()
    assert first[1].read_bytes() == second[0].read_bytes()
    assert b"<dc:date>" not in first[1].read_bytes()
    assert first[0].stat().st_size > 10_000


def test_lines_differ_without_colour_and_the_axis_is_logarithmic(filled):
    axes = _figure(panels_of(filled), "test").axes[0]
    ce, isda = (line for line in axes.lines if str(line.get_label()).endswith("seeds)"))
    assert ce.get_marker() != isda.get_marker()
    assert ce.get_linestyle() != isda.get_linestyle()
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert 1 < low < 1.9
    assert 60 < high < 100
    drops = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert drops == [15.5, 23.5]
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_no_axis_of_errors_goes_above_all_of_them(demo, finish, there):
    for run in next(iter(demo[1].values())):
        finish(run, 96.0, 90.0)
    (axes,) = _figure(panels_of(aggregate(*demo, there())), "test").axes
    low, high = axes.get_ylim()
    assert high == pytest.approx(100)
    assert low == pytest.approx(50)


def test_nothing_finished_draws_nothing(demo, there, tmp_path):
    filled = aggregate(*demo, there())
    assert draw_curves(filled, tmp_path / "demo.png") == []
    assert not (tmp_path / "demo.png").exists()


def test_the_room_is_quick_to_import():
    code = (
        "import sys, isda_repro.tables.figures, isda_repro.tables.sweep, isda_repro.tables.render;"
        "assert not {'torch', 'hydra', 'matplotlib'} & set(sys.modules)"
    )
    assert start([sys.executable, "-c", code], check=False).returncode == 0
