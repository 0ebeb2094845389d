"""Killed and forced runs that resume: same weights, statistics and curves as an uninterrupted run, bit for bit."""

import json
import os
import shutil
import threading

import pytest
from interrupted_runs import (
    FILES,
    STEPS,
    STEPS_PER_EPOCH,
    Killed,
    assert_same,
    before_call,
    kill,
    killed,
    settings,
    steps_of_segments,
    stopped_after,
)

from isda_repro.config import read_frozen
from isda_repro.runs.exit_status import read_exit_status
from isda_repro.runs.lock import FolderLock
from isda_repro.runs.records import EpochRecord, read_metrics
from isda_repro.training import session
from isda_repro.training.checkpoint import Saver
from isda_repro.training.run import run
from isda_repro.training.trainer import Trainer


@pytest.mark.parametrize("step", [1, 4, 6, STEPS])
@pytest.mark.parametrize("every", [None, 1])
def test_run_killed_at_any_step_equals_uninterrupted_run(tmp_path, monkeypatch, undisturbed, step, every):
    cfg = settings(tmp_path, f"checkpoint.steps={every or 'null'}")
    killed(cfg, monkeypatch, Saver, "step_taken", step)
    folder = tmp_path / cfg.run_id
    written = lines_written(folder)
    result = run(cfg)
    assert_same(folder, undisturbed)
    assert written <= lines_written(folder), "lines of steps that were taken again are kept"
    saved = step - 1 if every else (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    assert steps_of_segments(result) == ([0, saved] if saved else [0])
    epochs = [record.epoch for record in read_metrics(folder / "metrics.jsonl") if isinstance(record, EpochRecord)]
    assert epochs == [1, 2, 3]
    assert {path.name for path in folder.iterdir()} - {"metrics.jsonl.dropped"} == FILES


def lines_written(folder):
    return {line for path in folder.glob("metrics.jsonl*") for line in path.read_text().splitlines()}


@pytest.mark.parametrize("early", [True, False], ids=["before its first line", "at its first step"])
def test_run_that_begins_anew_and_fails_loses_nothing(tmp_path, monkeypatch, undisturbed, early):
    """The user has deleted ``result.json``, to run again."""
    cfg = settings(tmp_path)
    folder = tmp_path / cfg.run_id
    shutil.copytree(undisturbed, folder)
    (folder / "result.json").unlink()
    written = lines_written(folder)
    assert len(written) == 4
    for _ in range(2):
        with monkeypatch.context() as patch:
            fails_early(cfg, patch) if early else killed(cfg, patch, Saver, "step_taken", 1)
        assert written <= lines_written(folder)
        assert (folder / "checkpoint.pt").exists()
    run(cfg)
    assert written <= lines_written(folder)
    assert_same(folder, undisturbed)


def fails_early(cfg, patch):
    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    patch.setattr("isda_repro.training.session.write_environment", fail)
    with pytest.raises(OSError, match="No space"):
        run(cfg)


def test_run_killed_again_and_again_gets_to_its_end(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    for _ in range(5):
        stopped_after(cfg, 2, monkeypatch)
    result = run(cfg)
    assert len(result.segments) == 6
    assert_same(tmp_path / cfg.run_id, undisturbed)
    environment = json.loads((tmp_path / cfg.run_id / "environment.json").read_text())
    assert len(environment["before"]) == 5
    assert [one["git_revision"] for one in [*environment["before"], environment]] == [
        segment["git_revision"] for segment in result.segments
    ]


@pytest.mark.parametrize(
    ("owner", "method"), [(Saver, "stop_if_asked"), (Saver, "epoch_ended"), (Trainer, "state_dict")]
)
def test_run_killed_between_training_and_saving_evaluates_again(tmp_path, monkeypatch, undisturbed, owner, method):
    cfg = settings(tmp_path, "checkpoint.steps=2")
    killed(cfg, monkeypatch, owner, method, 2)
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_process_killed_at_any_file_operation_is_gone_on_from(tmp_path, monkeypatch, epochs):
    """The folder is copied before each file operation, as a killed process would leave it.

    Each copy is resumed, with its lock, and must end like the run itself.
    """
    more = ("checkpoint.steps=1", f"recipe.epochs={epochs}", "dataset.train_limit=100")  # two steps in an epoch
    cfg = settings(tmp_path / "whole", *more)
    folder, copies, one_at_a_time = tmp_path / "whole" / cfg.run_id, {}, threading.RLock()

    def copied(operation):
        def copy_and_do(*arguments, **options):
            with one_at_a_time:
                if folder.exists():
                    files = {path.name: path.read_bytes() for path in folder.iterdir()}
                    names = (name if not name.endswith(".tmp") else "tmp" for name in files)
                    copies.setdefault(tuple(sorted(zip(names, files.values(), strict=True))), files)
                return operation(*arguments, **options)

        return copy_and_do

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "fsync"):
            patch.setattr(os, name, copied(getattr(os, name)))
        run(cfg)
    starts = []
    for number, files in enumerate(copies.values()):
        again = settings(tmp_path / str(number), *more)
        there = tmp_path / str(number) / again.run_id
        there.mkdir(parents=True)
        for name, content in files.items():
            (there / name).write_bytes(content)
        newest = max((int(path.stem.split("-")[1]) for path in there.glob("checkpoint-*.pt")), default=0)
        is_finished = "result.json" in files
        begun = [step for step in steps_of_segments(run(again)) if not is_finished]
        assert begun[-1:] == ([] if is_finished else [newest])
        starts += begun[-1:] or ["finished"]
        assert_same(there, folder)
        only_the_lock_was_left = is_finished and not any(name.startswith("checkpoint-") for name in files)
        left = {"lock", "owner.json"} if only_the_lock_was_left else set()
        unfinished = {path.name for path in there.glob("config.yaml.*.tmp")}  # a sweep may be writing it
        assert {path.name for path in there.iterdir()} - left - unfinished - {"metrics.jsonl.dropped"} == FILES
        shutil.rmtree(there)
    assert {*range(2 * epochs + 1), "finished"} == set(starts)


def test_force_moves_a_finished_run_aside_and_deletes_nothing(tmp_path, capsys):
    cfg, forced = settings(tmp_path), settings(tmp_path, "force=true")
    assert cfg.run_id == forced.run_id
    first = run(cfg)
    before = (tmp_path / cfg.run_id / "result.json").read_bytes()
    metrics = (tmp_path / cfg.run_id / "metrics.jsonl").read_bytes()
    assert run(cfg) == first
    assert (tmp_path / cfg.run_id / "metrics.jsonl").read_bytes() == metrics, "it has not run twice"
    second = run(forced)
    assert (tmp_path / f"{cfg.run_id}.before-1" / "result.json").read_bytes() == before
    assert first.curves == second.curves
    assert first != second
    assert f"{cfg.run_id}.before-1" in capsys.readouterr().out
    frozen = tmp_path / cfg.run_id / "config.yaml"
    assert run(read_frozen(frozen)) == second, "its own file does not force"


def test_forced_run_that_was_killed_goes_on(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path, "force=true")
    stopped_after(cfg, 5, monkeypatch)
    assert steps_of_segments(run(cfg)) == [0, STEPS_PER_EPOCH]
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_finished_run_is_moved_aside_only_once_by_two_that_are_told_to(tmp_path, monkeypatch, undisturbed):
    """The second of two processes finds, once it has the lock, that the first has already started anew."""
    cfg = settings(tmp_path, "force=true")
    run(cfg)

    def come_late():
        (tmp_path / cfg.run_id).rename(tmp_path / f"{cfg.run_id}.before-1")
        (tmp_path / cfg.run_id).mkdir()

    before_call(monkeypatch, FolderLock, "__enter__", 1, come_late)
    run(cfg)
    assert not (tmp_path / f"{cfg.run_id}.before-2").exists()
    assert_same(tmp_path / cfg.run_id, undisturbed)


class Log:
    """A tracker that records the kinds of its records."""

    def __init__(self):
        self.kinds = []

    def log(self, record):
        self.kinds.append(record["kind"])

    def close(self):
        self.kinds.append("closed")


def test_what_was_left_to_do_after_the_result_is_done_by_the_next_command(tmp_path, monkeypatch):
    """The process died after it had written the result and before it told W&B."""
    cfg, logs = settings(tmp_path), []

    def trackers(*arguments):
        logs.append(Log())
        return logs[-1:]

    monkeypatch.setattr(session, "wandb_trackers", trackers)
    with monkeypatch.context() as patch:
        patch.setattr(Log, "log", lambda self, record: kill() if record["kind"] == "result" else None)
        with pytest.raises(Killed):
            run(cfg)
    folder = tmp_path / cfg.run_id
    assert list(folder.glob("checkpoint-*.pt"))
    result = run(cfg)
    assert result.epochs == 3
    assert [log.kinds for log in logs] == [["closed"], ["result", "closed"]]
    assert not list(folder.glob("checkpoint-*.pt"))
    run(cfg)
    assert len(logs) == 2, "once"


def test_how_a_run_ended_is_noted_until_a_process_works_on_it(tmp_path, monkeypatch):
    cfg = settings(tmp_path, "recipe.lr=1e30")
    folder = tmp_path / cfg.run_id
    for defect, noted in ((KeyError("a defect"), (1, "KeyError: 'a defect'")), (OSError(5, "x", "file"), (2, "file"))):

        def failing(*arguments, defect=defect, **options):
            raise defect

        with monkeypatch.context() as patch:
            patch.setattr(Saver, "step_taken", failing)
            patch.setattr(Trainer, "train", failing)
            with pytest.raises(type(defect)):
                run(cfg)
        assert read_exit_status(folder).exit_code == noted[0]
        assert noted[1] in read_exit_status(folder).said
    with FolderLock(folder), pytest.raises(ValueError, match="pid"):
        run(cfg)
    assert read_exit_status(folder).exit_code == 2, "who is refused notes nothing"
    fine = settings(tmp_path)
    stopped_after(fine, 1, monkeypatch)
    (tmp_path / fine.run_id / "ended.json").write_bytes((folder / "ended.json").read_bytes())
    run(fine)
    assert read_exit_status(tmp_path / fine.run_id) is None
