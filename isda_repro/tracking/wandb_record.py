"""Names and contents of what a run sends to W&B; ``isda_repro.runs.from_wandb`` restores the result from them.

- Config: the request, the names chosen in each group and, under ``ran_on``, the device, hardware, precision and
  revision of the last segment.
- History: one row per epoch, with the numbers of its record, ``timing/...`` and, for ISDA, ``covariances/...``.
- Summary: ``table_value``, the number that enters the table; the other numbers of the result; the run's total times as
  ``total/...``; and, as one text under ``record``, the whole result except its curves.
- If the run belongs to tables: its test error and its table value once more under ``<table>/...``, because a panel of a
  W&B workspace shows the runs that have its metric and cannot filter otherwise.

The names of the summary and the history are disjoint, because W&B also writes the last row of the history into the
summary, sometimes late. This module does not import W&B.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from isda_repro.tracking.tracker import Record

SCHEMA = 1
"""Increment this when the names below, or their meanings, change."""

SCHEMA_KEY = "isda_repro_schema"  # config key that marks a run of this project
JOB_TYPE = "train"
RAN_ON = "ran_on"  # config key: the last segment
TABLE_VALUE = "table_value"  # summary key: the number that enters the table
TABLE_METRIC = "table_metric"  # summary key: the field of the result that holds this number
RECORD = "record"  # summary key: the result without its curves, as JSON text
CURVES = "curves"  # key in this text: names of the curves, each a column of the history
TEST_ERROR = "test_error"  # column of the history
EPOCH = "epoch"  # column of the history, counted from 1; of two rows with the same epoch the later one counts

DEFAULT_METRIC = "test_error_last10"  # the metric of Table 2

ID_BYTES, GROUP_LENGTH = 128, 128  # at most; an id is also part of a file's name


def id_of(run_id: str) -> str:
    """Return the W&B id of a run: its run id if W&B takes it, otherwise one that is cut or replaced, with a hash.

    A run id contains the name of a data set, which can have any characters and any length.
    """
    possible = re.sub(r"[:;,#?/'\\%\s\x00-\x1f\x7f\ud800-\udfff]", "-", run_id)
    if possible == run_id and len(run_id.encode()) <= ID_BYTES:
        return run_id
    cut = possible.encode()[: ID_BYTES - 11].decode(errors="ignore")
    return f"{cut}-{_digest(run_id)}"


def group_of(name: str) -> str:
    """Return a W&B group: the name, of which the end is replaced by a hash if W&B would not take its length."""
    text = storable(name)
    return text if len(text) <= GROUP_LENGTH else f"{text[: GROUP_LENGTH - 11]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]


def storable(value: Any) -> Any:
    """Return the value with all text as Unicode: names of files can have bytes that are no text in UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {storable(key): storable(item) for key, item in value.items()}
    return [storable(item) for item in value] if isinstance(value, list | tuple) else value


def in_table(table: str, name: str) -> str:
    """Return the W&B name of the metric ``name`` for the runs of one table."""
    return f"{table.replace('+', '_')}/{name}"


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the W&B config: ``settings`` and the key that marks a run of this project."""
    return {**storable(settings), SCHEMA_KEY: SCHEMA}


def ran_on(segment: Record) -> dict[str, Any]:
    """Return the update of the W&B config at the start of a segment."""
    return {RAN_ON: {key: value for key, value in segment.items() if key not in ("kind", "schema", "step")}}


def row_of(epoch: Record, tables: Sequence[str] = ()) -> dict[str, float]:
    """Return the history row of an epoch, for a run that belongs to ``tables``."""
    numbers = {key: value for key, value in epoch.items() if isinstance(value, int | float) and key != "schema"}
    of_covariances = epoch.get("covariances") or {}
    return {
        **numbers,
        **{f"timing/{key}": value for key, value in epoch["timing"].items()},
        **{f"covariances/{key}": value for key, value in of_covariances.items() if isinstance(value, int | float)},
        **{in_table(table, TEST_ERROR): epoch[TEST_ERROR] for table in tables},
    }


def summary_of(result: Record, metric: str | None = None, tables: Sequence[str] = ()) -> dict[str, Any]:
    """Return the summary of a finished run.

    Args:
        result: content of ``result.json``.
        metric: field of the result that enters the tables; ``DEFAULT_METRIC`` if it is None or missing in the result.
        tables: names of the tables that the run belongs to.
    """
    metric = metric if metric is not None and isinstance(result.get(metric), int | float) else DEFAULT_METRIC
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


def generator_summary(
    result: Mapping[str, Any], _metric: str | None = None, _tables: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the summary of a finished run of generators: the numbers of its result, and its total times."""
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float) and key != "schema"}
    return {**numbers, **{f"total/{key}": value for key, value in result["timing"].items()}}
