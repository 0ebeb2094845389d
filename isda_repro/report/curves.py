"""What the page keeps of the curves: all epochs of a few hundred runs, fewer of many, so that it stays a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isda_repro.runs.records import Result
from isda_repro.tables.curves import learning_rate_drops

CURVES = ("test_error", "train_error", "test_loss", "train_loss")
NUMBERS = 2_000_000  # in all curves of a page: some 10 MB, of which compression leaves a third
FEWEST = 24  # epochs of a curve, however many runs there are
DIGITS = 4  # significant ones of a loss; errors have two decimals, as in the tables


def epochs_each(runs: int) -> int:
    """How many epochs of each run the page keeps."""
    return max(FEWEST, NUMBERS // (len(CURVES) * max(runs, 1)))


def epochs_kept(rates: Sequence[float], most: int) -> list[int]:
    """Epochs, counted from 1: all of them, or ``most`` spread evenly, the first, the last and those around each drop.

    Args:
        rates: the learning rate of each epoch.
        most: how many to keep; more are kept only where the drops alone are more.
    """
    count = len(rates)
    if count <= most:
        return list(range(1, count + 1))
    corners = {1, count, *(epoch for drop in learning_rate_drops(rates) for epoch in (drop - 1, drop))}
    free = max(most - len(corners), 1)
    spread = {round(1 + (count - 1) * position / free) for position in range(1, free)}
    return sorted(corners | spread)


def curves_of(result: Result, epochs: Sequence[int]) -> dict[str, list[float]]:
    """The kept epochs of each curve that the result has, rounded to what a screen shows."""
    return {
        name: [_rounded(result.curves[name][epoch - 1], name) for epoch in epochs]
        for name in CURVES
        if len(result.curves.get(name, ())) == result.epochs
    }


def _rounded(value: Any, name: str) -> float:
    return round(value, 2) if name.endswith("error") else float(f"{value:.{DIGITS}g}")
