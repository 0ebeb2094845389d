"""JSON data of all finished runs for the page's scripts: panels with lines of runs, and thinned curves."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from isda_repro.report.labels import (
    differing,
    facts_of,
    line_labels,
    line_order,
    line_settings,
    names_of,
    panel_settings,
)
from isda_repro.runs.records import COVARIANCE_CURVES, METRICS, Result
from isda_repro.tables.curves import learning_rate_drops


class Pool:
    """Distinct values, numbered in the order in which they were added."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.values: list[Any] = []

    def number(self, value: Any) -> int:
        """Return the number of a JSON value, adding it if it is new. Equal values have the same number."""
        text = json.dumps(value, sort_keys=True)
        if text not in self._numbers:
            self._numbers[text] = len(self.values)
            self.values.append(value)
        return self._numbers[text]


CURVES = ("test_error", "train_error", "test_loss", "train_loss", *COVARIANCE_CURVES)
NUMBERS = 2_000_000  # numbers in all curves of a page: about 10 MB, a third of that when compressed
FEWEST = 24  # epochs that a curve keeps at least, however many runs there are
DIGITS = 4  # significant digits of a loss; errors have two decimals, as in the tables


def epochs_each(runs: int) -> int:
    """Return the number of epochs that the page keeps of each run."""
    return max(FEWEST, NUMBERS // (len(CURVES) * max(runs, 1)))


def epochs_kept(rates: Sequence[float], most: int) -> list[int]:
    """Return the epochs to keep, counted from 1: all, or about ``most`` spread evenly.

    The first and last epoch, and the two at each drop of the learning rate, are always kept.

    Args:
        rates: the learning rate of each epoch.
        most: number of epochs to keep; exceeded only if the epochs that are always kept are more.
    """
    count = len(rates)
    if count <= most:
        return list(range(1, count + 1))
    corners = {1, count, *(epoch for drop in learning_rate_drops(rates) for epoch in (drop - 1, drop))}
    free = max(most - len(corners), 1)
    spread = {round(1 + (count - 1) * position / free) for position in range(1, free)}
    return sorted(corners | spread)


def curves_of(result: Result, epochs: Sequence[int]) -> dict[str, list[float]]:
    """Return the kept epochs of each complete curve of the result, rounded to what a screen can show."""
    return {
        name: [_rounded(result.curves[name][epoch - 1], name) for epoch in epochs]
        for name in CURVES
        if len(result.curves.get(name, ())) == result.epochs
    }


def _rounded(value: Any, name: str) -> float:
    return round(value, 2) if name.endswith("error") else float(f"{value:.{DIGITS}g}")


def slim(result: Result) -> Result:
    """Return a copy whose curves take a fifth of the memory, because thousands of results are held at once."""
    curves = {name: array("d", values) for name, values in result.curves.items()}
    return replace(result, curves=cast(dict[str, list[float]], curves))


def described(results: Mapping[str, tuple[str, Result]], order: Iterable[str] = ()) -> dict[str, Any]:
    """Return the data of all runs, for JSON.

    Args:
        results: run id -> (file, result).
        order: run ids in the order of the tables, which panels and lines follow; runs that are not in it come last.

    Returns:
        A dictionary with ``runs``; ``panels``, whose ``lines`` have the indices of their ``runs``; ``epochs_each``, the
        most epochs that a curve keeps; ``metrics``, the descriptions of the runs' errors; and the shared
        values to which runs refer by number: ``settings``, ``sizes``, ``environments``, ``segments``, ``epochs``.
    """
    names = [name for name in dict.fromkeys((*order, *sorted(results))) if name in results]
    most = epochs_each(len(names))
    pools = {name: Pool() for name in ("settings", "sizes", "environments", "segments", "epochs")}
    runs = [_run(results[name][1], results[name][0], most, pools) for name in names]
    return {
        "runs": runs,
        "panels": _panels([results[name][1] for name in names]),
        "epochs_each": most,
        "metrics": METRICS,
        **{name: pool.values for name, pool in pools.items()},
    }


def _run(result: Result, file: str, most: int, pools: Mapping[str, Pool]) -> dict[str, Any]:
    """Return one run for JSON. Values that runs may share are replaced by their number in ``pools``."""
    kept = epochs_kept(result.curves["lr"], most)
    shared = {key: value for key, value in result.request.items() if key != "seed"}
    sizes = {
        "epochs": result.epochs,
        "steps": result.steps,
        "parameters": result.parameters,
        "feature_dim": result.feature_dim,
        "train_images": result.train_images,
        "test_images": result.test_images,
    }
    return {
        "id": result.run_id,
        "seed": result.request["seed"],
        "file": file,
        "on": result.evaluated_on,
        "errors": {name: round(value, 4) for name in METRICS if (value := getattr(result, name)) is not None},
        "timing": {name: float(f"{value:.4g}") for name, value in result.timing.items()},
        "curves": curves_of(result, kept),
        "epochs": pools["epochs"].number(kept),
        "settings": pools["settings"].number({**shared, "choice": result.choices}),
        "sizes": pools["sizes"].number(sizes),
        "environment": pools["environments"].number(result.environment),
        "segments": pools["segments"].number(result.segments),
    }


def _panels(results: list[Result]) -> list[dict[str, Any]]:
    """Group runs into panels and lines.

    Runs that differ only in their seed are one line. Lines that differ only in loss, synthetic images and dropout are
    one panel.
    """
    keys, lines, members = Pool(), Pool(), dict[int, dict[int, list[int]]]()
    for number, result in enumerate(results):
        panel, line = keys.number(panel_settings(result)), lines.number(line_settings(result))
        members.setdefault(panel, {}).setdefault(line, []).append(number)
    labels, order = line_labels(lines.values), [line_order(settings) for settings in lines.values]
    panels = [
        _panel(results, {line: by_line[line] for line in sorted(by_line, key=order.__getitem__)}, labels)
        for by_line in members.values()
    ]
    _tell_apart(panels, [keys.values[panel] for panel in members])
    return panels


def _panel(results: list[Result], by_line: Mapping[int, list[int]], labels: Sequence[str]) -> dict[str, Any]:
    """Return one panel for JSON, with its title, its facts and its lines."""
    own = [results[run] for runs in by_line.values() for run in runs]
    names = names_of(own[0])
    lines = [
        {"label": labels[line], "method": results[runs[0]].choices["loss"], "runs": runs}
        for line, runs in by_line.items()
    ]
    return {
        "title": f"{names['model']}, {names['dataset']}",
        "facts": facts_of(own[0]),
        "on": own[0].evaluated_on,
        **{name: names[name] for name in ("model", "dataset", "augmentation")},
        "drops": sorted({drop for result in own for drop in learning_rate_drops(result.curves["lr"])}),
        "floor": 50 / max(result.test_images for result in own),
        "lines": lines,
    }


def _tell_apart(panels: list[dict[str, Any]], settings: list[Any]) -> None:
    """Extend the facts of panels that would look the same by the settings in which they differ."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, panel in enumerate(panels):
        alike.setdefault((panel["title"], panel["facts"], panel["on"]), []).append(number)
    for numbers in alike.values():
        for number, own in zip(numbers, differing([settings[one] for one in numbers]), strict=True):
            panels[number]["facts"] = ", ".join((panels[number]["facts"], *own))
