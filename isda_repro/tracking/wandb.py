"""Weights & Biases (W&B). A failure of W&B becomes one warning: it neither blocks a run for long nor stops it."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from isda_repro.console import warn
from isda_repro.tracking.tracker import Record
from isda_repro.tracking.wandb_record import EPOCH, JOB_TYPE, config_of, ran_on, row_of, summary_of

INIT_TIMEOUT_SECONDS = 7.0  # together with W&B's start-up, a run waits for less than 10 s
FINISH_TIMEOUT_SECONDS = 30.0  # data that is not sent by then stays on the disk for `wandb sync`
Arguments = ParamSpec("Arguments")


def _never_fatal(method: Callable[Concatenate[WandbTracker, Arguments], None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: WandbTracker, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # the network, a full disk, a bug of W&B's: none of them may stop training
            self.give_up()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warn(f"W&B is off for this run, training goes on: {reason}")

    return guarded


class WandbTracker:
    """Tracker that writes one W&B run, identified by its ``run_id``; ``tracking/wandb_record.py`` defines its content.

    In online mode, records are logged as they come. In offline mode, the W&B run is written when training has finished,
    by replaying ``metrics.jsonl``: offline runs cannot be resumed, so this way an interrupted run still appears once
    and complete.

    Args:
        mode: "online" or "offline".
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        run_id: id and name of the W&B run, also when it is resumed.
        config: the frozen configuration, shown as the run's config.
        group: name of the runs to be shown together, for example all seeds of a cell.
        metrics_path: the run's ``metrics.jsonl``; ``environment.json`` in its folder becomes a file of the W&B run.
        tags: further tags to find the run by, for example its cell.
        tables: names of the tables that the run belongs to.
        table_metric: field of the result that becomes its ``table_value``; None: Table 2's.
        job_type: W&B job type; tables only read those of classifiers, "train".
        summary_of: function from a result, the metric and the tables to the summary.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        entity: str | None,
        run_id: str,
        config: Mapping[str, Any],
        group: str,
        metrics_path: Path,
        tags: Sequence[str] = (),
        tables: Sequence[str] = (),
        table_metric: str | None = None,
        job_type: str = JOB_TYPE,
        summary_of: Callable[..., dict[str, Any]] = summary_of,
    ) -> None:
        self._metrics_path, self._tables, self._table_metric = metrics_path, tuple(tables), table_metric
        self._offline, self._summary_of = mode == "offline", summary_of
        self._arguments: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "entity": entity,
            "id": run_id,
            "name": run_id,
            "group": group,
            "tags": list(tags),
            "job_type": job_type,
            "config": config_of(config),
            "dir": str(metrics_path.parent),
            "resume": None if self._offline else "allow",
        }
        self._run: Any = None
        self._is_off = self._is_whole = False
        self._sent = 0  # last epoch that was sent to W&B

    @_never_fatal
    def log(self, record: Record) -> None:
        """Log the start of a segment, an epoch, or the summary of the finished run."""
        if self._is_off or (self._offline and record["kind"] != "result"):
            return
        if self._run is None:
            self._begin()
        if record["kind"] == "segment":
            self._run.config.update(ran_on(record), allow_val_change=True)
        elif record["kind"] == "epoch":
            self._catch_up(until=record["epoch"])
            self._send_epoch(record)
        elif record["kind"] == "result":
            self._catch_up()
            self._run.summary.update(self._summary_of(record, self._table_metric, self._tables))
            self._is_whole = True

    @_never_fatal
    def close(self) -> None:
        """End the W&B run; a run without a result is marked as failed until it is resumed."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._is_whole else 1)

    def give_up(self) -> None:
        """Stop logging for the rest of the run."""
        self._run, self._is_off = None, True

    def _begin(self) -> None:
        import wandb

        # A W&B service inherited from a parent process may have ended, or run on the host that submitted the job. A
        # running one treats the id of a run that was killed, or that found no server, as still in use.
        os.environ.pop("WANDB_SERVICE", None)
        if self._offline:
            self._remove_unfinished()
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
        )
        self._run = wandb.init(settings=settings, **self._arguments)
        self._run.define_metric(EPOCH)
        self._run.define_metric("*", step_metric=EPOCH)
        if self._run.resumed:
            self._sent = int(self._run.summary.get(EPOCH) or 0)
        environment = self._metrics_path.with_name("environment.json")
        if environment.exists():  # has what the config does not: the command, the host, the diff
            copy = shutil.copy(environment, self._run.dir)  # a copy, because W&B prints a message if it makes a link
            self._run.save(copy, base_path=self._run.dir, policy="now", glob=False)

    def _remove_unfinished(self) -> None:
        """Remove what a process left behind that died while replaying this run; ``metrics.jsonl`` has all of it."""
        for folder in (self._metrics_path.parent / "wandb").glob(f"offline-run-*-{self._arguments['id']}"):
            shutil.rmtree(folder)

    def _catch_up(self, until: int | None = None) -> None:
        """Send epochs of ``metrics.jsonl`` before ``until`` that W&B lacks: all if offline, some after an outage."""
        end = math.inf if until is None else until
        if end <= self._sent + 1:
            return
        for line in self._metrics_path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["kind"] == "segment" and self._offline:
                self._run.config.update(ran_on(record), allow_val_change=True)
            elif record["kind"] == "epoch" and self._sent < record["epoch"] < end:
                self._send_epoch(record)

    def _send_epoch(self, record: Record) -> None:
        """Send the row of an epoch.

        If a resumed run repeats an epoch, W&B has two rows of it, and readers use the later one.
        """
        self._run.log(row_of(record, self._tables))
        self._sent = record["epoch"]
