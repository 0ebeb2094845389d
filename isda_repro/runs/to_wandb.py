"""The W&B run of a training run: its tracker, and the command that sends a finished run later.

Training and ``send_run`` make the same tracker, so the id, config, history and summary are the same.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from isda_repro.config import cell_name, read_frozen_run, request
from isda_repro.config.checks import check_tracking
from isda_repro.errors import UserError, first_line
from isda_repro.runs.from_wandb import connect
from isda_repro.runs.generator_records import GeneratorEpoch, GeneratorResult, read_generator_result
from isda_repro.runs.lock import FolderLock
from isda_repro.runs.offline_runs import read_offline
from isda_repro.runs.records import AnyRecord, EpochRecord, RecordError, Result, as_json, read_lines, read_result
from isda_repro.runs.run_directory import RESULT
from isda_repro.tracking import Tracker, WandbTracker
from isda_repro.tracking.wandb_record import EPOCH, generator_summary, row_of

if TYPE_CHECKING:
    from wandb import Api

PROJECT = "isda_repro"  # for runs with tracking=none, which name no project


def wandb_trackers(cfg: DictConfig, metrics: Path) -> list[Tracker]:
    """Return a list with the W&B tracker of a run, empty with ``tracking.mode=none``."""
    return [] if cfg.tracking.mode == "none" else [wandb_tracker(cfg, metrics)]


def wandb_tracker(cfg: DictConfig, metrics: Path, **more: Any) -> WandbTracker:
    """Return the W&B tracker of a classifier or a generator, which has a job type of its own that no table reads.

    Args:
        cfg: the run's frozen configuration.
        metrics: the run's ``metrics.jsonl``.
        more: further arguments of ``WandbTracker``.
    """
    tracking = cfg.tracking
    of_kind: dict[str, Any]
    if "gan" in cfg:
        group = cfg.run_id.rpartition("-s")[0]
        of_kind = {"job_type": "generator", "summary_of": generator_summary}
    else:
        group = cell_name(cfg)
        of_kind = {"tables": tracking.get("tables") or (), "table_metric": tracking.get("table_metric")}
    choice = OmegaConf.to_container(cfg.choice)
    return WandbTracker(
        mode=tracking.mode,
        project=tracking.project,
        entity=tracking.entity,
        run_id=cfg.run_id,
        config={**request(cfg), "choice": choice, "numerics_version": cfg.numerics_version},
        group=tracking.get("group") or group,
        tags=tracking.get("tags") or (),
        metrics_path=metrics,
        **of_kind,
        **more,
    )


def tracked_result(result: AnyRecord) -> dict[str, Any]:
    """Return a result as trackers log it: the last record of any run has the kind "result"."""
    return {**as_json(result), "kind": "result"}


# ------------------------------------------------------------------------------------------------------------- sending


@dataclass(frozen=True)
class Destination:
    """W&B mode, project and account for sending finished runs.

    Args:
        mode: "online", or "offline": into the run's folder, for `wandb sync`.
        project: W&B project; None: the one of the run's configuration.
        entity: W&B user or team; None: the one of the run's configuration, or the account's default.
    """

    mode: str
    project: str | None = None
    entity: str | None = None


@dataclass(frozen=True)
class FinishedRecords:
    """Records of a finished run: its configuration, result and epochs, checked against each other."""

    cfg: DictConfig
    metrics: Path
    result: dict[str, Any]  # as trackers log it
    epochs: list[dict[str, Any]]


def finished_records(folder: Path) -> FinishedRecords:
    """Read the folder of a finished run.

    Raises:
        UserError: it is no folder of a run, the run has not finished, or its files are damaged or not of one run.
    """
    config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
    if not config.is_file():
        raise UserError(f"{folder} is not a run's folder (it has no config.yaml): give runs/<run_id>")
    cfg = read_frozen_run(config)
    for path, why in ((folder / RESULT, "the run has not finished"), (metrics, "its epochs are not known")):
        if not path.is_file():
            raise UserError(f"{path} does not exist, so {why}, and nothing can be sent")
    is_generator = "gan" in cfg
    result: Result | GeneratorResult = (read_generator_result if is_generator else read_result)(folder / RESULT)
    if result.run_id != cfg.run_id:
        raise UserError(f"{folder / RESULT} is the result of {result.run_id}, and {config} is that of {cfg.run_id}")
    kind: type[EpochRecord] | type[GeneratorEpoch] = GeneratorEpoch if is_generator else EpochRecord
    epochs = [as_json(line) for line in read_lines(metrics, kind) if isinstance(line, kind)]
    record = tracked_result(result)
    if (reason := _mismatch(record, epochs)) is not None:
        raise UserError(f"{metrics} does not belong to {folder / RESULT}: {reason}")
    return FinishedRecords(cfg, metrics, record, epochs)


def _mismatch(result: Mapping[str, Any], epochs: list[dict[str, Any]]) -> str | None:
    """Return why these are not the epochs of a result; None if they are."""
    if [record["epoch"] for record in epochs] != list(range(1, result["epochs"] + 1)):
        return f"it does not have each of the {result['epochs']} epochs once, in order"
    rows = [row_of(record) for record in epochs]
    for name, curve in result["curves"].items():
        if list(curve) != [row.get(name) for row in rows]:
            return f"it has another {name}"
    return None


def send_run(folder: Path, to: Destination, api: Api | None = None) -> str:
    """Send a finished run to W&B, as training would have, unless W&B or its folder has it already.

    Args:
        folder: the run's folder.
        to: where it is sent.
        api: W&B's API if the mode is online; None: ``connect()``.

    Returns:
        What was done, as a phrase.

    Raises:
        UserError: the run cannot be sent, or W&B does not take it.
    """
    records = finished_records(folder)
    tracking = records.cfg.tracking
    tracking.mode = to.mode
    tracking.project = to.project or tracking.get("project") or PROJECT
    tracking.entity = to.entity or tracking.get("entity")
    check_tracking(OmegaConf.to_container(tracking))  # type: ignore[arg-type]
    with FolderLock(folder):
        try:
            return _send_offline(records) if to.mode == "offline" else _send_online(records, api or connect())
        except (UserError, OSError):
            raise
        except Exception as error:  # W&B's errors have no common base class
            raise UserError(f"W&B does not take {records.cfg.run_id}: {first_line(error)}") from error


def _send_offline(records: FinishedRecords) -> str:
    tracker = wandb_tracker(records.cfg, records.metrics, strict=True)
    before = {*_offline_files(records.metrics.parent, tracker.id)}
    whole = {}
    for path in before:
        with suppress(RecordError):
            run = read_offline(path)
            about = (run.about.get("project"), run.about.get("entity") or None)
            if run.exit_code == 0 and _sent_epochs(tracker, records, run.summary, run.rows) == math.inf:
                whole[about] = path.parent
    wanted = (records.cfg.tracking.project, records.cfg.tracking.entity)
    if wanted in whole:
        return f"is already in {whole[wanted]}, which `wandb sync` sends"
    _write(wandb_tracker(records.cfg, records.metrics, strict=True, keep=tuple(whole.values())), records)
    written = {*_offline_files(records.metrics.parent, tracker.id)} - before
    return f"is now in {' and '.join(str(path.parent) for path in written)}, which `wandb sync` sends"


def _offline_files(folder: Path, wandb_id: str) -> Iterator[Path]:
    name = glob.escape(wandb_id)
    return folder.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")


def _send_online(records: FinishedRecords, api: Api) -> str:
    tracking = records.cfg.tracking
    tracking.entity = tracking.entity or str(api.default_entity)
    tracker = wandb_tracker(records.cfg, records.metrics, strict=True)
    path = f"{tracking.entity}/{tracking.project}/{tracker.id}"
    there = _run_at(api, path)
    sent = 0
    if there is not None:
        summary = dict(there.summary_metrics)
        found = _sent_epochs(tracker, records, summary, there.scan_history(page_size=10_000))
        if found == math.inf and there.state == "finished":
            return f"is already at W&B, as {path}"
        if found is None:
            raise UserError(f"W&B has another result as {path}: send this one to another project=")
        sent = len(records.epochs) if found == math.inf else int(found)
    _write(wandb_tracker(records.cfg, records.metrics, strict=True, sent=sent), records)
    return f"is now at W&B, as {path}"


def _write(tracker: WandbTracker, records: FinishedRecords) -> None:
    """Log the result, before which the tracker replays the run."""
    try:
        tracker.log(records.result)
    finally:
        tracker.close()


def _run_at(api: Api, path: str) -> Any:
    """Return a run of W&B, or None if there is none, or no such project."""
    import wandb

    api.flush()  # it remembers the runs that it has read
    try:
        return api.run(path)
    except (ValueError, wandb.errors.CommError) as error:
        if "not find" in str(error).lower() or "not found" in str(error).lower():
            return None
        raise


def _sent_epochs(
    tracker: WandbTracker,
    records: FinishedRecords,
    summary: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
) -> float | None:
    """Return how much of a run is in a W&B run.

    Returns:
        infinity if all of it is there; otherwise the number of epochs that are, counted from the first one up to one
        that is missing or different; None if the W&B run has another result.
    """
    wanted = tracker.summary(records.result)
    has_result = any(key.startswith("total/") for key in summary)
    if has_result and any(summary[key] != wanted[key] for key in wanted.keys() & summary.keys()):
        return None
    by_epoch = {row.get(EPOCH): row for row in rows}
    known = [(tracker.row(record), by_epoch.get(record["epoch"], {})) for record in records.epochs]
    same = [*takewhile(bool, (ours.items() <= theirs.items() for ours, theirs in known))]
    return math.inf if has_result and len(same) == len(known) else len(same)
