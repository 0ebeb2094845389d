"""W&B. Whatever goes wrong with it is one warning: a run never waits for it long, and never fails because of it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from isda_repro.console import warn
from isda_repro.tracking.tracker import Record

INIT_TIMEOUT_SECONDS = 7.0  # with W&B's own start, a run waits for less than 10 s
Arguments = ParamSpec("Arguments")


def _never_fatal(method: Callable[Concatenate[WandbTracker, Arguments], None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: WandbTracker, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # the network, a full disk, W&B's own: none is worth a training run
            self.give_up()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warn(f"W&B is off for this run, training goes on: {reason}")

    return guarded


class WandbTracker:
    """One W&B run, named by its ``run_id``.

    Online it is logged live. Offline it is written when the run has finished, by replaying ``metrics.jsonl``: an
    offline run cannot be resumed, and so an interrupted run still appears once and whole.

    Args:
        mode: "online" or "offline".
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        run_id: identifies the run, also when it is resumed.
        config: the frozen configuration, shown as the run's config.
        group: runs to be seen together, for example all seeds of a cell.
        metrics_path: the run's ``metrics.jsonl``.
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
    ) -> None:
        self._metrics_path = metrics_path
        self._offline = mode == "offline"
        self._arguments: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "entity": entity,
            "id": run_id,
            "name": run_id,
            "group": group,
            "config": dict(config),
            "dir": str(metrics_path.parent),
            "resume": None if self._offline else "allow",
        }
        self._run: Any = None
        if not self._offline:
            self._begin()

    @_never_fatal
    def log(self, record: Record) -> None:
        """Log an epoch, or the summary of the finished run."""
        if record["kind"] == "result" and self._offline:
            self._remove_unfinished()
            self._begin()
            if self._run is None:
                return
            for line in self._metrics_path.read_text(encoding="utf-8").splitlines():
                self._send(json.loads(line))
        if self._run is not None:
            self._send(record)

    @_never_fatal
    def close(self) -> None:
        """End the W&B run."""
        if self._run is not None:
            self._run.finish()

    def give_up(self) -> None:
        """Log nothing any more."""
        self._run = None

    @_never_fatal
    def _begin(self) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS)
        self._run = wandb.init(settings=settings, **self._arguments)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def _remove_unfinished(self) -> None:
        """What a process left that died while it replayed this run; all of it is in ``metrics.jsonl``."""
        for folder in (self._metrics_path.parent / "wandb").glob(f"offline-run-*-{self._arguments['id']}"):
            shutil.rmtree(folder)

    def _send(self, record: Record) -> None:
        if record["kind"] == "epoch":
            flat = {key: value for key, value in record.items() if isinstance(value, int | float)}
            timing = {f"timing/{key}": value for key, value in record["timing"].items()}
            self._run.log({**flat, **timing}, step=record["epoch"])  # one that a resumed run logs again is dropped
        elif record["kind"] == "result":
            numbers = {key: value for key, value in record.items() if isinstance(value, int | float | str)}
            self._run.summary.update(numbers)
            self._run.summary.update({f"timing/{key}": value for key, value in record["timing"].items()})
