"""The figure of a table's curves: its contents, and that the file is reproducible."""

import dataclasses
import sys
from subprocess import run as start

import pytest
from matplotlib.figure import Figure

from isda_repro.config import compose
from isda_repro.experiments.paper_values import PaperValue
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.table import PlotSpec
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.curves import panels
from isda_repro.tables.figures import draw_curves


@pytest.fixture
def filled(demo, finish, curves, there):
    for runs, best in zip(demo[1].values(), (2.3, 1.9), strict=True):
        for run in runs:
            finish(run, *curves(run.seed, best))
    return aggregate(*demo, there())


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Return ``draw(filled)``, the visible axes of the figure, which is not written to disk."""

    def axes_of(filled):
        made = []
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda self, *_, **__: made.append(self))
            draw_curves(filled, tmp_path / f"{len(list(tmp_path.iterdir()))}.svg")
        return [axes for axes in made[0].axes if axes.get_visible()]

    return axes_of


def bounds(band):
    """Return the lower and the upper edge of a band, epoch by epoch."""
    (path,) = band.get_paths()
    heights = {}
    for x, y in path.vertices:
        heights.setdefault(x, []).append(y)
    return [[of(heights[x]) for x in sorted(heights)] for of in (min, max)]


def test_a_figure_is_the_same_two_files_again_and_another_with_a_detail(filled, demo, tmp_path):
    png, svg = draw_curves(filled, tmp_path / "a" / "demo.png")
    assert (png.name, svg.name) == ("demo.png", "demo.svg")
    again = draw_curves(filled, tmp_path / "b" / "demo.svg")
    assert [path.name for path in again] == ["demo.svg", "demo.png"]
    assert [path.read_bytes() for path in again] == [svg.read_bytes(), png.read_bytes()]
    assert b"<dc:date>" not in svg.read_bytes()
    table = dataclasses.replace(demo[0], figure=PlotSpec(detail=1, bold="ISDA"))
    detailed = draw_curves(dataclasses.replace(filled, table=table), tmp_path / "c.svg", demo[1], tmp_path / "runs")
    assert [path.name for path in detailed] == ["c.svg", "c.png"]
    assert detailed[0].read_bytes() != svg.read_bytes()


def test_lines_and_bands_are_the_curves_on_a_logarithmic_axis(filled, draw):
    (axes,) = draw(filled)
    ((title, curves),) = panels(filled).items()
    assert (axes.get_title(), axes.get_yscale()) == (title, "log")
    lines = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == 30}
    assert list(lines) == [curve.label for curve in curves.values()]
    for curve, line, band in zip(curves.values(), lines.values(), axes.collections, strict=True):
        assert list(line.get_xdata()) == list(range(1, 31))
        assert list(line.get_ydata()) == curve.mean
        assert bounds(band) == [curve.low, curve.high]
    drops = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert drops == [15.5, 23.5], "between the epochs"


def test_the_axis_has_the_passes_of_an_epoch(demo, finish, there, draw):
    plan = plan_runs(demo[0], compose, ("recipe.passes=8",))
    finish(next(iter(plan.values()))[0], 4.0, 3.0)
    (axes,) = draw(aggregate(demo[0], plan, there(), reduced=True))
    assert axes.get_xlabel() == "epoch (of 8 passes)"


def test_an_error_of_zero_is_drawn_at_half_an_image_and_none_above_100(demo, finish, there, draw):
    for run in next(iter(demo[1].values())):
        finish(run, 96.0, 90.0)
    filled = aggregate(*demo, there())
    (axes,) = draw(filled)
    assert axes.get_ylim() == pytest.approx((50, 100))
    for run in next(iter(demo[1].values())):
        finish(run, 96.0, 0.0)
    (axes,) = draw(aggregate(*demo, there()))
    assert list(axes.lines[0].get_ydata()) == [96.0, pytest.approx(50 / 360)]
    assert 0 < axes.get_ylim()[0] < 50 / 360


def test_the_papers_values_are_lines_in_the_colours_of_the_curves(filled, draw):
    cells = {
        key: dataclasses.replace(cell, cell=dataclasses.replace(cell.cell, paper=PaperValue(1.5)))
        for key, cell in filled.cells.items()
    }
    (axes,) = draw(dataclasses.replace(filled, cells=cells))
    flat = [line for line in axes.lines if list(line.get_ydata()) == [1.5, 1.5]]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 30]
    assert [line.get_color() for line in flat] == [line.get_color() for line in curves]
    assert [text.get_text() for text in axes.get_legend().get_texts()].count("the paper's values") == 1
    assert axes.get_ylim()[0] < 1.5


def test_every_panel_is_seen_and_none_else(filled, draw):
    """Seven panels leave empty places in their grid, which must stay invisible."""
    by_column = {column: cell for (_, column), cell in filled.cells.items()}
    cells = {((f"row {n}",), column): cell for n in range(7) for column, cell in by_column.items()}
    axes = draw(dataclasses.replace(filled, cells=cells))
    assert [one.get_title() for one in axes] == [f"row {n}" for n in range(7)]


def test_nothing_finished_draws_nothing(demo, there, tmp_path):
    assert draw_curves(aggregate(*demo, there()), tmp_path / "demo.png") == []
    assert not (tmp_path / "demo.png").exists()


def test_tables_are_planned_and_rendered_without_torch_hydra_or_matplotlib():
    code = (
        "import sys, isda_repro.tables.figures, isda_repro.sweeps.sweep, isda_repro.tables.render;"
        "from isda_repro.tables import costs; costs.networks();"
        "assert not {'torch', 'hydra', 'matplotlib'} & set(sys.modules)"
    )
    assert start([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_with_dollar_signs_is_no_formula(demo, finish, curves, there, tmp_path):
    finish(next(iter(demo[1].values()))[0], *curves(0, 2.0))
    filled = aggregate(*demo, there())
    (key, cell), *_ = filled.cells.items()
    named = {(key[0], ("$\\nonsense{$",)): cell}
    for detail in (None, 1):
        table = dataclasses.replace(demo[0], figure=PlotSpec(detail=detail))
        assert draw_curves(dataclasses.replace(filled, table=table, cells=named), tmp_path / f"{detail}.png")


def test_runs_of_different_lengths_are_drawn_as_far_as_all_have_got(demo, finish, there):
    runs = next(iter(demo[1].values()))
    finish(runs[0], 3.0, 2.0, 1.0)
    finish(runs[1], 5.0, 4.0)
    ((_, lines),) = panels(aggregate(*demo, there())).items()
    (curve,) = lines.values()
    assert curve.mean == [4.0, 3.0]
