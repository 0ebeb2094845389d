"""Points of a curve that the report keeps."""

import dataclasses
import itertools

import pytest

from isda_repro.report.runs import CURVES, FEWEST, NUMBERS, curves_of, epochs_each, epochs_kept

STEPS = [0.1] * 80 + [0.01] * 40 + [0.001] * 40
COSINE = [0.1 * (1 - epoch / 300) for epoch in range(300)]


def test_all_epochs_of_a_few_hundred_runs_are_kept():
    assert epochs_each(500) >= 300
    assert epochs_kept(COSINE, epochs_each(500)) == list(range(1, 301))


@pytest.mark.parametrize("runs", [1_000, 10_000, 100_000])
def test_many_runs_share_the_numbers_that_a_page_holds(runs):
    assert epochs_each(runs) == FEWEST or epochs_each(runs) * runs * len(CURVES) <= NUMBERS


@pytest.mark.parametrize("most", [20, 24, 29, 30, 37])
def test_a_thinned_curve_keeps_its_ends_and_both_sides_of_each_drop(most):
    kept = epochs_kept(STEPS, most)
    assert len(kept) <= most
    assert {1, 80, 81, 120, 121, 160} <= set(kept)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) <= 160 / (most - 6) + 1
    assert kept == sorted(set(kept))


def test_a_schedule_without_drops_is_thinned_evenly():
    kept = epochs_kept(COSINE, 25)
    assert (kept[0], kept[-1]) == (1, 300)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


def test_a_kept_epoch_has_its_own_value(result):
    epochs = epochs_kept(result.curves["lr"], 12)
    kept = curves_of(result, epochs)
    assert kept["test_error"] == [round(result.curves["test_error"][epoch - 1], 2) for epoch in epochs]
    assert kept["test_loss"] == [float(f"{result.curves['test_loss'][epoch - 1]:.4g}") for epoch in epochs]


def test_a_curve_that_was_not_recorded_is_left_out(result):
    without = dataclasses.replace(result, curves={name: result.curves[name] for name in ("test_error", "lr")})
    assert list(curves_of(without, [1, 2])) == ["test_error"]
