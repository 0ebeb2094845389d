"""Weights & Biases (W&B). A failure of W&B becomes one warning: it neither blocks a run for long nor stops it."""

from __future__ import annotations

import functools
import glob
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from isda_repro.console import warn
from isda_repro.errors import first_line
from isda_repro.files import home
from isda_repro.revision import ROOT
from isda_repro.tracking.tracker import Record
from isda_repro.tracking.wandb_record import (
    EPOCH,
    JOB_TYPE,
    config_of,
    group_of,
    id_of,
    ran_on,
    row_of,
    storable,
    summary_of,
)

INIT_TIMEOUT_SECONDS = 7.0  # together with W&B's start-up, a run waits for less than 10 s
FINISH_TIMEOUT_SECONDS = 30.0  # data that is not sent by then stays on the disk for `wandb sync`
PATIENCE_SECONDS = 300.0  # each of the two, where nothing else waits
FILE_BYTES = 2**24  # the largest environment.json that is sent
Arguments = ParamSpec("Arguments")

SWEEP = "WANDB_SWEEP_ID"  # set by `wandb agent`
IDENTITY = (
    *(SWEEP, "WANDB_SWEEP_PARAM_PATH", "WANDB_LAUNCH", "WANDB_RUN_ID"),
    *("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"),
)
"""Variables that would give a W&B run another id, project or beginning than it has here."""


def _never_fatal(method: Callable[Concatenate[WandbTracker, Arguments], None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: WandbTracker, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # the network, a full disk, a bug of W&B's: none of them may stop training
            if self.strict:
                raise
            self.give_up()
            reason = first_line(error)
            warn(f"W&B is off for this run, which scripts/dashboard.py send can send later; training goes on: {reason}")

    return guarded


@contextmanager
def unasked() -> Iterator[None]:
    """Replace stdin by an empty one: on a terminal W&B's client would ask for a key and wait."""
    kept = sys.stdin
    with Path(os.devnull).open() as nobody:
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = kept


@contextmanager
def own_identity() -> Iterator[str | None]:
    """Hide ``IDENTITY`` from W&B within the block; yield the id of the sweep if `wandb agent` started this process.

    W&B also needs a home directory, for its settings and its log.
    """
    hidden = {name: os.environ.pop(name) for name in IDENTITY if name in os.environ}
    home()
    try:
        yield hidden.get(SWEEP, "").strip() or None
    finally:
        os.environ.update(hidden)


class WandbTracker:
    """Tracker that writes one W&B run, identified by its ``run_id``; ``tracking/wandb_record.py`` defines its content.

    In online mode, records are logged as they come. In offline mode, the W&B run is written when training has finished,
    by replaying ``metrics.jsonl``: offline runs cannot be resumed, so this way an interrupted run still appears once
    and complete.

    Args:
        mode: "online" or "offline".
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        run_id: id and name of the W&B run, also when it is resumed; ``id_of`` makes it one that W&B takes.
        config: the frozen configuration, shown as the run's config.
        group: name of the runs to be shown together, for example all seeds of a cell.
        metrics_path: the run's ``metrics.jsonl``; ``environment.json`` in its folder becomes a file of the W&B run.
        tags: further tags to find the run by, for example its cell.
        tables: names of the tables that the run belongs to.
        table_metric: field of the result that becomes its ``table_value``; None: Table 2's.
        job_type: W&B job type; tables only read those of classifiers, "train".
        summary_of: function from a result, the metric and the tables to the summary.
        strict: replay the whole run online too, raise the errors of W&B, and wait for it with patience.
        sent: number of the last epoch that W&B has; None: the number that a resumed run's summary has.
        keep: offline folders of this run that are complete; others, torn when a process died, are removed.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str | None,
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
        strict: bool = False,
        sent: int | None = None,
        keep: Collection[Path] = (),
    ) -> None:
        self._metrics_path, self._tables, self._table_metric = metrics_path, tuple(tables), table_metric
        self._offline, self._summary_of = mode == "offline", summary_of
        self.strict, self._known_sent, self._keep = strict, sent, keep
        self._arguments: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "entity": entity,
            "id": id_of(run_id),
            "name": id_of(run_id),
            "group": group_of(group),
            "tags": storable(tags),
            "job_type": job_type,
            "config": config_of(config),
            "dir": str(metrics_path.parent),
            "resume": None if self._offline else "allow",
        }
        self._run: Any = None
        self._is_off = self._is_whole = False
        self._sent = 0  # last epoch that was sent to W&B

    @property
    def id(self) -> str:
        """Id of the W&B run."""
        return str(self._arguments["id"])

    def summary(self, result: Record) -> dict[str, Any]:
        """Return the summary that the W&B run has when it is finished."""
        return dict(storable(self._summary_of(result, self._table_metric, self._tables)))

    def row(self, epoch: Record) -> dict[str, float]:
        """Return the history row of an epoch."""
        return row_of(epoch, self._tables)

    @_never_fatal
    def log(self, record: Record) -> None:
        """Log the start of a segment, an epoch, or the summary of the finished run."""
        if self._is_off or (self._offline and record["kind"] != "result"):
            return
        if self._run is None:
            self._begin()
        if record["kind"] == "segment":
            self._run.config.update(storable(ran_on(record)), allow_val_change=True)
        elif record["kind"] == "epoch":
            self._catch_up(until=record["epoch"])
            self._send_epoch(record)
        elif record["kind"] == "result":
            self._catch_up()
            self._run.summary.update(self.summary(record))
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
        environment = self._metrics_path.with_name("environment.json")
        commit = _commit(environment)
        with own_identity() as sweep, unasked():
            settings = wandb.Settings(
                silent=True,
                console="off",
                save_code=False,  # it would send the diff of the repository around the working directory
                disable_git=commit is None,
                git_commit=commit,
                git_root=str(ROOT),
                use_dot_wandb=False,
                sweep_id=sweep,
                init_timeout=PATIENCE_SECONDS if self.strict else INIT_TIMEOUT_SECONDS,
                finish_timeout=PATIENCE_SECONDS if self.strict else FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=self.strict,
            )
            self._run = wandb.init(settings=settings, **self._arguments)
        self._run.define_metric(EPOCH)
        self._run.define_metric("*", step_metric=EPOCH)
        if self._known_sent is not None:
            self._sent = self._known_sent
        elif self._run.resumed:
            self._sent = int(self._run.summary.get(EPOCH) or 0)
        if _is_file(environment):  # has what the config does not: the command, the host, the diff
            copy = shutil.copy(environment, self._run.dir)  # a copy, because W&B prints a message if it makes a link
            self._run.save(copy, base_path=self._run.dir, policy="now", glob=False)

    def _remove_unfinished(self) -> None:
        """Remove what a process left behind that died while replaying this run; ``metrics.jsonl`` has all of it.

        A folder with anything that is not W&B's is left alone.
        """
        parent = self._metrics_path.parent / "wandb"
        theirs = {"files", "logs", "tmp", f"run-{self.id}.wandb"}
        for folder in () if parent.is_symlink() else parent.glob(f"offline-run-*-{glob.escape(self.id)}"):
            if folder in self._keep or folder.is_symlink() or not folder.is_dir():
                continue
            if {path.name for path in folder.iterdir()} <= theirs:
                shutil.rmtree(folder)

    def _catch_up(self, until: int | None = None) -> None:
        """Send epochs of ``metrics.jsonl`` before ``until`` that W&B lacks: all if offline, some after an outage."""
        end = math.inf if until is None else until
        if end <= self._sent + 1:
            return
        for line in self._metrics_path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["kind"] == "segment" and (self._offline or self.strict):
                self._run.config.update(storable(ran_on(record)), allow_val_change=True)
            elif record["kind"] == "epoch" and self._sent < record["epoch"] < end:
                self._send_epoch(record)

    def _send_epoch(self, record: Record) -> None:
        """Send the row of an epoch.

        If a resumed run repeats an epoch, W&B has two rows of it, and readers use the later one.
        """
        self._run.log(self.row(record))
        self._sent = record["epoch"]


def _commit(environment: Path) -> str | None:
    """Return the revision of the code that trained, which need not be the one that sends the run."""
    with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        commit = json.loads(environment.read_bytes())["git_revision"] if _is_file(environment) else None
        return commit if isinstance(commit, str) and re.fullmatch("[0-9a-f]{40,64}", commit) else None
    return None


def _is_file(path: Path) -> bool:
    """Return whether this is a file of moderate size, and no link to one, which might lead out of the run's folder."""
    return not path.is_symlink() and path.is_file() and path.stat().st_size <= FILE_BYTES
