"""Results of finished runs, rebuilt from W&B alone through its public API.

Only runs that ``isda_repro.tracking`` has marked are read. A result is rebuilt from the record in the run's summary and
the curves in its history. Temporary failures (a lost connection, too many requests, a server error) are retried. A run
that cannot be used is reported by name, and does not stop the rest.
"""

from __future__ import annotations

import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from isda_repro.console import one_line
from isda_repro.errors import UserError, first_line
from isda_repro.runs.offline_runs import offline_files, read_offline
from isda_repro.runs.records import RecordError, Result
from isda_repro.runs.sources import Finding, Found
from isda_repro.runs.strict_json import parsed
from isda_repro.tracking.wandb import own_identity, unasked
from isda_repro.tracking.wandb_record import CURVES, EPOCH, JOB_TYPE, RECORD, SCHEMA, SCHEMA_KEY, id_of

if TYPE_CHECKING:
    from wandb import Api


def record_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record in a run's summary: the result without its curves, and the names of those.

    Raises:
        RecordError: the summary has no record, because the run did not finish or another program wrote it.
    """
    text = summary.get(RECORD)
    if not isinstance(text, str):
        raise RecordError(f"its summary has no {RECORD}: it is not whole, or not a run of this project")
    try:
        record = parsed(text.encode())
    except ValueError as error:
        raise RecordError(f"the {RECORD} of its summary is not JSON") from error
    names = record.get(CURVES) if isinstance(record, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RecordError(f"the {RECORD} of its summary names no {CURVES}")
    return cast(dict[str, Any], record)


def result_from(record: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Result:
    """Rebuild a result from its record and its history.

    Args:
        record: what ``record_of`` returns.
        rows: the history in the order in which it was logged; rows without an epoch are ignored.

    Raises:
        RecordError: an epoch or one of its numbers is missing, or the rows do not give the recorded error.
    """
    names = record[CURVES]
    epochs = record.get("epochs")
    by_epoch = {row[EPOCH]: row for row in rows if isinstance(row.get(EPOCH), int)}
    if type(epochs) is not int or epochs > len(by_epoch):
        raise RecordError(f"its history has {len(by_epoch)} of {epochs} epochs")
    try:
        curves = {name: [float(by_epoch[epoch][name]) for epoch in range(1, epochs + 1)] for name in names}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        have = f"{sum(set(names) <= set(row) for row in by_epoch.values())} of {epochs} epochs"
        raise RecordError(f"its history has {have} with all of {', '.join(names)}") from error
    return Result.from_json({**record, CURVES: curves})


CONTACT_SECONDS = 8  # timeout of the first request, short so that a missing network is reported soon
ANSWER_SECONDS = 60  # timeout of each later request
WAITS = (2.0, 10.0)  # seconds before the second and third attempt
RUNS_PER_PAGE = 100
HISTORIES_AT_ONCE = 8
OURS = {"jobType": JOB_TYPE, f"config.{SCHEMA_KEY}": SCHEMA}  # filters that the server applies

Answer = TypeVar("Answer")


def connect() -> Api:
    """Return W&B's API, with the account that is configured on this machine.

    Raises:
        UserError: there is no account, its key is refused, or W&B cannot be reached.
    """
    import wandb

    patience = wandb.Settings(  # by default W&B retries for many minutes, and when reading a history without end
        x_graphql_retry_max=2,
        x_graphql_retry_wait_min_seconds=1,
        x_graphql_retry_wait_max_seconds=4,
        x_graphql_timeout_seconds=20,
    )
    try:
        with own_identity(), unasked():
            wandb.setup(settings=patience)
            wandb.Api(timeout=CONTACT_SECONDS)
            return wandb.Api(timeout=ANSWER_SECONDS)
    except wandb.errors.AuthenticationError as error:
        raise UserError(
            f"W&B cannot be reached, or refuses the key that is set here ({_reason(error)}); "
            "all but source=wandb and the dashboards works without it"
        ) from error
    except wandb.errors.Error as error:
        raise UserError(
            f"W&B wants an account ({_reason(error)}): `wandb login`, or a key in WANDB_API_KEY; "
            "all but source=wandb and the dashboards works without it"
        ) from error


def results_from_wandb(
    entity: str | None, project: str, api: Api | None = None, wait: Callable[[float], None] = time.sleep
) -> Iterator[Finding]:
    """Yield each finished run of a W&B project, and a RecordError for each run of ours that cannot be used.

    Args:
        entity: W&B user or team; None means the account's default.
        project: name of the project.
        api: W&B's API; None means ``connect()``.
        wait: function that sleeps for some seconds before another attempt.

    Raises:
        UserError: W&B cannot be reached, or the project cannot be read.
    """
    api = api or connect()
    source = _Source(api, f"{entity or api.default_entity}/{project}", wait)
    unfinished = source.runs({**OURS, "state": {"$ne": "finished"}}, whole=False)
    for run in unfinished:
        yield RecordError(f"W&B run {source.path}/{run.id}: it is {run.state}, not finished")
    with ThreadPoolExecutor(HISTORIES_AT_ONCE) as pool:
        yield from pool.map(source.result_of, source.runs({**OURS, "state": "finished"}, whole=True))


def results_offline(runs_dir: Path) -> Iterator[Finding]:
    """Yield each finished run that left an offline W&B file in ``runs_dir``, and a RecordError for each unusable one.

    Only the W&B files are read, not the ``result.json`` beside them.
    """
    for path in offline_files(runs_dir):
        try:
            run = read_offline(path)
            if run.about.get("job_type", JOB_TYPE) != JOB_TYPE:  # generators are tracked too
                continue
            if run.exit_code != 0:
                raise RecordError("it is not finished")
            yield Found(one_line(path), result_from(record_of(run.summary), run.rows))
        except RecordError as error:
            yield RecordError(f"{one_line(path)}: {error}")


class _Source:
    """One W&B project, queried with retries."""

    def __init__(self, api: Api, path: str, wait: Callable[[float], None]) -> None:
        self._api, self.path, self._wait = api, path, wait
        self._unanswered = 0  # consecutive runs whose history could not be fetched

    def runs(self, filters: dict[str, Any], whole: bool) -> Iterator[Any]:
        """Yield the runs that match ``filters``, fetched page by page; with ``whole``, including config and summary.

        Runs are fetched by index, because W&B's iterator skips a run when it continues after a failure.

        Raises:
            UserError: the project cannot be read.
        """
        try:
            found = self._api.runs(self.path, filters=filters, per_page=RUNS_PER_PAGE, lazy=not whole)
            for index in itertools.count():
                try:
                    run = self._patiently(functools.partial(operator.getitem, found, index))
                except IndexError:
                    return
                yield run
        except Exception as error:  # W&B's errors have no common base class
            raise UserError(
                f"W&B's project {self.path} cannot be read ({_reason(error)}): check entity= and project=, "
                "and whether your account may see it"
            ) from error

    def result_of(self, run: Any) -> Finding:
        """Return the result of a finished run, or the RecordError that says what is wrong with it.

        Raises:
            UserError: more than ``HISTORIES_AT_ONCE`` runs in a row could not be fetched; W&B has stopped answering.
        """
        origin = f"W&B run {self.path}/{run.id}"
        try:
            record = record_of(run.summary_metrics)
            columns = [EPOCH, *record[CURVES]]
            rows = self._patiently(lambda: list(run.scan_history(keys=columns, page_size=10_000)))
            result = result_from(record, rows)
            if id_of(result.run_id) != run.id:
                raise RecordError(f"it holds the result of {result.run_id}")
        except RecordError as error:
            return RecordError(f"{origin}: {error}")
        except Exception as error:  # deleted since it was listed, or no answer after all retries
            self._unanswered += _is_passing(error)
            if self._unanswered > HISTORIES_AT_ONCE:
                raise UserError(f"W&B has stopped answering ({_reason(error)}): try again later") from error
            return RecordError(f"{origin}: it cannot be read any more ({_reason(error)})")
        self._unanswered = 0
        return Found(origin, result)

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Call ``ask``, and repeat it after each of ``WAITS`` as long as the failure may be temporary."""
        for seconds in WAITS:
            try:
                return ask()
            except Exception as error:
                if not _is_passing(error):
                    raise
            self._wait(seconds)
        return ask()


def _is_passing(error: Exception) -> bool:
    """Return whether a request may succeed if it is repeated.

    W&B's errors carry the HTTP status of the response, or 0 if there was none.
    """
    cause: Any = getattr(error, "exc", None) or error
    if isinstance(cause, ConnectionError | TimeoutError):
        return True
    if not hasattr(cause, "response"):
        return False
    status = getattr(cause.response, "http_status", 0) or 0
    return status in (0, 408, 429) or status >= 500


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")
