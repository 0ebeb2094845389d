"""What a run tells W&B, and under which names; ``isda_repro.runs.from_wandb`` makes its result from it again.

- the config: the request, the names chosen in each group, and under ``ran_on`` the last stretch's device, hardware,
  precision and revision;
- the history: a row an epoch, with the numbers of its record and ``timing/...``;
- the summary: ``table_value``, the number that enters the table, what else the result has as numbers, the run's totals
  as ``total/...``, and as one text under ``record`` all of the result but its curves;
- of a run that belongs to tables, its test error and its number once more under ``<table>/...``: a panel of W&B's
  workspaces shows the runs that have its metric, and knows no other filter.

No name of the summary is one of the history: W&B writes a row's numbers into the summary too, the last of them late.
Knows nothing of W&B's package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from isda_repro.tracking.tracker import Record

SCHEMA = 1
"""Raise it when the names below, or their meanings, change."""

SCHEMA_KEY = "isda_repro_schema"  # of the config: a run that is ours
JOB_TYPE = "train"
RAN_ON = "ran_on"  # of the config: the last segment
TABLE_VALUE = "table_value"  # of the summary
TABLE_METRIC = "table_metric"  # likewise: which field of the result that is
RECORD = "record"  # likewise: the result without its curves, as JSON text
CURVES = "curves"  # in that text: the names of the curves, each a column of the history
TEST_ERROR = "test_error"  # of the history
EPOCH = "epoch"  # of the history: counts from 1; of two rows with one epoch the later counts

DEFAULT_METRIC = "test_error_last10"  # Table 2's figure


def in_table(table: str, name: str) -> str:
    """What ``name`` is called of the runs of a table alone."""
    return f"{table.replace('+', '_')}/{name}"


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config that W&B shows: ``settings``, marked as ours."""
    return {**settings, SCHEMA_KEY: SCHEMA}


def ran_on(segment: Record) -> dict[str, Any]:
    """What is added to the config when a stretch of the run begins."""
    return {RAN_ON: {key: value for key, value in segment.items() if key not in ("kind", "schema", "step")}}


def row_of(epoch: Record, tables: Sequence[str] = ()) -> dict[str, float]:
    """The history's row of an epoch, of a run that belongs to ``tables``."""
    numbers = {key: value for key, value in epoch.items() if isinstance(value, int | float) and key != "schema"}
    return {
        **numbers,
        **{f"timing/{key}": value for key, value in epoch["timing"].items()},
        **{in_table(table, TEST_ERROR): epoch[TEST_ERROR] for table in tables},
    }


def summary_of(result: Record, metric: str | None = None, tables: Sequence[str] = ()) -> dict[str, Any]:
    """The summary of a finished run; ``metric`` names the field that enters its ``tables``, if the result has it."""
    metric = metric if metric is not None and result.get(metric) is not None else DEFAULT_METRIC
    bare = {key: value for key, value in result.items() if key not in ("kind", "schema")}
    numbers = {key: value for key, value in bare.items() if isinstance(value, int | float | str)}
    text = {**result, CURVES: sorted(result["curves"])}
    return {
        **numbers,
        **{f"total/{key}": value for key, value in result["timing"].items()},
        **{in_table(table, TABLE_VALUE): result[metric] for table in tables},
        TABLE_VALUE: result[metric],
        TABLE_METRIC: metric,
        RECORD: json.dumps(text, sort_keys=True, allow_nan=False),
    }
