"""The result of a run from what W&B holds of it: the summary's record, and the curves from the history's rows.

The names are those of ``isda_repro.tracking.logged``; where the summary and the rows come from is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from isda_repro.runs.records import RecordError, Result, mean_of_last, result_of
from isda_repro.tracking.logged import CURVES, EPOCH, RECORD


def record_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The result without its curves, and their names.

    Raises:
        RecordError: the summary has none: the run did not come to its end, or is another program's.
    """
    text = summary.get(RECORD)
    if not isinstance(text, str):
        raise RecordError(f"its summary has no {RECORD}: it is not whole, or not a run of this project")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise RecordError(f"the {RECORD} of its summary is not JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get(CURVES), list):
        raise RecordError(f"the {RECORD} of its summary names no {CURVES}")
    return record


def result_from(record: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Result:
    """The result, as it was when the run had ended.

    Args:
        record: what ``record_of`` gives.
        rows: the history, in the order in which it was logged; those without an epoch are not ours.

    Raises:
        RecordError: an epoch, or a number of one, is missing, or the rows are not those that the result was made of.
    """
    names = record[CURVES]
    by_epoch = {row[EPOCH]: row for row in rows if EPOCH in row}
    try:
        expected = range(1, record["epochs"] + 1)
        curves = {name: [float(by_epoch[epoch][name]) for epoch in expected] for name in names}
    except (KeyError, TypeError, ValueError) as error:
        have = f"{sum(set(names) <= set(row) for row in by_epoch.values())} of {record.get('epochs')} epochs"
        raise RecordError(f"its history has {have} with all of {', '.join(map(str, names))}") from error
    result = result_of({**record, CURVES: curves})
    if mean_of_last(result.curves["test_error"]) != result.test_error_last10:
        raise RecordError("its history is not the one that its result was made of")
    return result
