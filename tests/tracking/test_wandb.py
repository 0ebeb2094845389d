"""Logging to W&B, live and by replay; runs continue when W&B fails."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock, call

import pytest
import wandb
from wandb_runs import SEGMENT, epoch, result, say, write_metrics
from wandb_server import WandbServer

from isda_repro.runs.from_wandb import record_of, result_from
from isda_repro.runs.offline_runs import offline_files, read_offline
from isda_repro.runs.records import Result
from isda_repro.tracking import WandbTracker
from isda_repro.tracking.wandb_record import (
    ID_BYTES,
    config_of,
    group_of,
    id_of,
    ran_on,
    row_of,
    storable,
    summary_of,
)

EPOCHS = [epoch(1, 20.0, rate=0.1), epoch(2, 100 / 7, rate=5e-05), epoch(3, 8.0, rate=5e-06)]


def tracker(folder, **changes):
    arguments = dict(mode="offline", project="p", entity=None, run_id="run-1", config={"seed": 0}, group="g")
    return WandbTracker(**{**arguments, **changes}, metrics_path=folder / "metrics.jsonl")


# --------------------------------------------------------------------------------------------------------------- names


def test_no_name_of_the_summary_is_one_of_the_history():
    """W&B would overwrite the summary's value with the last one of the history."""
    assert not set(summary_of(result(EPOCHS), tables=["table2"])) & set(row_of(EPOCHS[0], tables=["table2"]))


def test_row_of_isda_has_the_figures_of_its_covariances_without_the_lists():
    row = row_of({**EPOCHS[0], "covariances": {"ratio": 0.5, "class_ratio": [0.5, 0.5]}})
    assert row == {**row_of(EPOCHS[0]), "covariances/ratio": 0.5}


def test_a_run_of_tables_has_its_error_and_its_number_once_more_for_each():
    """Panels of different tables in a W&B workspace differ in the name of their metric only."""
    row = row_of(EPOCHS[2], tables=["table2", "table4+dropout"])
    assert {name: value for name, value in row.items() if name.startswith("table")} == {
        "table2/test_error": 8.0,
        "table4_dropout/test_error": 8.0,
    }
    assert summary_of(result(EPOCHS), "test_error_best", ["figure2"])["figure2/table_value"] == 8.0


def test_the_number_of_the_table_has_one_name_whichever_field_it_is():
    whole = result(EPOCHS, test_top5_error_final=None)
    last10, final, absent = (summary_of(whole, name) for name in (None, "test_error_final", "test_top5_error_final"))
    assert (final["table_value"], final["table_metric"]) == (8.0, "test_error_final")
    for summary in (last10, absent):
        assert (summary["table_value"], summary["table_metric"]) == (whole["test_error_last10"], "test_error_last10")


@pytest.mark.parametrize(
    "run_id",
    ["a/b-s0-1", "it's-s0-1", "50%-s0-1", "a b", "a#b?c:d;e,f", "caf\udce9-s0-1", 200 * "x", 100 * "ф", "a\nb"],
)
def test_a_run_id_that_wandb_would_refuse_becomes_one_that_it_takes(run_id):
    other = id_of(run_id)
    assert len(other.encode()) <= ID_BYTES
    wandb.Settings(run_id=other)
    assert other != id_of(f"{run_id}2")
    assert other.isprintable()


def test_usual_names_stay_as_they_are():
    assert id_of("resnet20-folder_фото-baseline-isda-s0-0123456789").endswith("фото-baseline-isda-s0-0123456789")
    assert group_of("table2/resnet, isda") == "table2/resnet, isda"
    value = {"a": [1, 2.5, None, "ф"], "b": {"c": True}}
    assert storable(value) == value
    assert storable({"caf\udce9": ["\ud800"]}) == {"caf\\udce9": ["\\ud800"]}
    assert len(group_of(300 * "x")) == 128


# ------------------------------------------------------------------------------------------------------------- offline


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Return the folder of an interrupted and resumed run: two segments, replayed to W&B after the result."""
    folder = tmp_path_factory.mktemp("runs") / "run-1"
    folder.mkdir()
    resumed = {**SEGMENT, "step": 4, "hardware": "y"}
    lines = [SEGMENT, EPOCHS[0], resumed, *EPOCHS[1:]]
    write_metrics(folder / "metrics.jsonl", lines)
    (folder / "environment.json").write_text('{"git_diff": "+1", "host": "h"}')
    torn = folder / "wandb" / "offline-run-20260101_000000-run-1"  # left by a process that died while writing
    torn.mkdir(parents=True)
    one = tracker(folder, tags=["table2", "table2/cell"], table_metric="test_error_final")
    for line in [resumed, *EPOCHS[1:]]:
        one.log(line)
    assert not list(folder.glob("wandb/*/*")), "nothing before the run has finished"
    one.log(result(EPOCHS))
    one.close()
    assert not torn.exists()
    return folder


@pytest.fixture(scope="module")
def replayed(offline):
    """Return the offline file, and the records that W&B's own program reads from it."""
    (path,) = offline_files(offline.parent)
    return path, read_offline(path)


def test_an_offline_run_is_whole_and_can_be_found(replayed):
    path, run = replayed
    assert run.exit_code == 0
    about = (run.about["run_id"], run.about["run_group"], run.about["job_type"], run.about["tags"])
    assert about == ("run-1", "g", "train", ["table2", "table2/cell"])
    assert run.config["seed"] == 0
    assert run.config["isda_repro_schema"] == 1
    assert run.config["ran_on"]["hardware"] == "y", "of the last segment"
    assert run.summary["table_value"] == 8.0
    assert run.summary["total/train"] == 12.3, "of the run, not of the last epoch"
    assert run.summary["timing/train"] == 2.0
    environment = path.parent / "files" / "environment.json"
    assert environment.read_text() == '{"git_diff": "+1", "host": "h"}'
    assert not environment.is_symlink(), "the folder of a run can be moved"


def test_code_and_diffs_of_the_working_directory_are_not_sent(replayed):
    path, _ = replayed
    files = {one.name for one in (path.parent / "files").rglob("*") if one.is_file()}
    assert files <= {"environment.json", "requirements.txt", "config.yaml", "wandb-metadata.json", "wandb-summary.json"}


def test_the_result_is_made_again_from_an_offline_run(replayed):
    _, run = replayed
    assert result_from(record_of(run.summary), run.rows) == Result.from_json(result(EPOCHS))


@pytest.mark.slow
def test_wandb_sync_takes_the_folder(replayed):
    """The option --dry-run of `wandb sync` needs no account."""
    path, _ = replayed
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(path.parent)]
    shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert "run-1" in shown.stdout + shown.stderr


def test_an_unfinished_offline_run_leaves_nothing(tmp_path):
    one = tracker(tmp_path)
    one.log(epoch(1, 20.0))
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_only_torn_records_of_this_run_are_removed(tmp_path, begun):
    begun()
    write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS])
    beside = tmp_path / "wandb"
    torn, users, others, kept = (
        beside / f"offline-run-20260101_00000{number}-{name}"
        for number, name in enumerate(("run-1", "run-1", "run-10", "run-1"))
    )
    for folder in (torn, users, others, kept):
        (folder / "files").mkdir(parents=True)
    (users / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (beside / "offline-run-20260101_000009-run-1").symlink_to(tmp_path / "elsewhere")
    one = tracker(tmp_path, keep=[kept])
    one.log(result(EPOCHS))
    assert (torn.exists(), users.exists(), others.exists(), kept.exists()) == (False, True, True, True)
    assert (tmp_path / "elsewhere").exists()


def test_nothing_is_removed_where_a_link_leads(tmp_path, begun):
    begun()
    folder = tmp_path / "run-1"
    folder.mkdir()
    write_metrics(folder / "metrics.jsonl", [SEGMENT, *EPOCHS])
    torn = tmp_path / "elsewhere" / "offline-run-20260101_000000-run-1"
    torn.mkdir(parents=True)
    (folder / "wandb").symlink_to(torn.parent)
    tracker(folder).log(result(EPOCHS))
    assert torn.exists()


# -------------------------------------------------------------------------------------------------------------- online


@pytest.fixture
def server():
    with WandbServer() as one:
        yield one
        assert not one.unknown


@pytest.mark.slow
def test_a_live_run_goes_on_under_its_name_and_sends_what_an_outage_kept_back(tmp_path, server):
    again = [epoch(2, 14.5), epoch(3, 8.0), epoch(4, 7.0), epoch(5, 6.0)]  # epoch 2 twice; 3 and 4 not sent
    whole = result([EPOCHS[0], *again])
    metrics = write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS[:2]])
    (tmp_path / "environment.json").write_text("{}")
    environment = {**server.environment, "WANDB_SERVICE": f"3-1-unix-{tmp_path}/gone"}  # left by a submitting host
    first = say(metrics, [SEGMENT, *EPOCHS[:2]], environment, tags=["table2"])
    assert (first.returncode, "warning" in first.stderr) == (0, False), first.stderr
    assert "environment.json" in server.runs["run-1"].files
    run = server.runs["run-1"]
    assert (run.state, run.attributes["tags"]) == ("failed", ["table2"]), "it has no result yet"
    write_metrics(metrics, [SEGMENT, EPOCHS[0], {**SEGMENT, "step": 4}, *again])
    say(metrics, [{**SEGMENT, "step": 4}, again[0], again[3], whole], environment, tags=["table2"])
    assert [row["epoch"] for row in run.rows] == [1, 2, 2, 3, 4, 5]
    assert run.state == "finished"
    assert result_from(record_of(run.summary), run.rows) == Result.from_json(whole)


@pytest.mark.slow
def test_an_agents_run_can_be_resumed(tmp_path, server):
    environment = {**server.environment, "WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "first"}
    metrics = write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS[:2]])
    assert "warning" not in say(metrics, [SEGMENT, *EPOCHS[:2]], environment).stderr
    write_metrics(metrics, [SEGMENT, *EPOCHS])
    again = {**environment, "WANDB_RUN_ID": "second"}
    assert "warning" not in say(metrics, [{**SEGMENT, "step": 8}, EPOCHS[2], result(EPOCHS)], again).stderr
    (run,) = server.runs.values()
    assert (run.name, run.attributes["sweep"], run.state) == ("run-1", "abc", "finished")
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]


@pytest.mark.slow
def test_a_live_run_without_a_server_ends_with_one_warning(tmp_path):
    """The port is bound but nobody listens; W&B itself would retry for a minute and a half."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = WandbServer.environment_of(f"http://127.0.0.1:{taken.getsockname()[1]}")
        metrics = write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS])
        shown = say(metrics, [SEGMENT, *EPOCHS, result(EPOCHS)], nowhere)
    assert shown.returncode == 0
    assert len([line for line in shown.stderr.splitlines() if line.startswith("warning")]) == 1


# --------------------------------------------------------------------------------------------------- without W&B itself


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Return ``begun(...)``, which replaces W&B's run by a mock; ``fails`` names the method that raises."""

    def begin(resumed=False, fails=None):
        run = Mock(dir=str(tmp_path / "files"), resumed=resumed, summary={"epoch": 2})
        init = Mock(return_value=run)
        if fails is not None:
            failing = init if fails == "init" else getattr(run, fails)
            failing.side_effect = RuntimeError() if fails == "finish" else OSError("no disk, no network\nand more")
        monkeypatch.setattr(wandb, "init", init)
        return run, init

    return begin


def epochs_of(run):
    return [call.args[0]["epoch"] for call in run.log.mock_calls]


def test_a_live_run_is_named_grouped_and_waited_for_briefly(tmp_path, begun):
    run, init = begun()
    write_metrics(tmp_path / "metrics.jsonl", [SEGMENT])
    more = {"tags": ["table2"], "entity": "us", "tables": ["table2"], "table_metric": "test_error_final"}
    one = tracker(tmp_path, mode="online", **more)
    for record in (SEGMENT, *EPOCHS, result(EPOCHS)):
        one.log(record)
    one.close()
    given = init.call_args.kwargs
    assert given["settings"].init_timeout <= 10
    assert given["settings"].finish_timeout <= 30
    expected = {"mode": "online", "project": "p", "entity": "us", "id": "run-1", "name": "run-1", "group": "g"}
    expected |= {"tags": ["table2"], "job_type": "train", "dir": str(tmp_path), "resume": "allow"}
    assert expected.items() <= given.items()
    assert (given["config"]["seed"], given["config"]["isda_repro_schema"]) == (0, 1)
    run.config.update.assert_called_once_with(ran_on(SEGMENT), allow_val_change=True)
    assert run.define_metric.mock_calls == [call("epoch"), call("*", step_metric="epoch")]
    assert run.log.mock_calls == [call(row_of(record, ["table2"])) for record in EPOCHS]
    assert run.summary == {"epoch": 2, **summary_of(result(EPOCHS), "test_error_final", ["table2"])}
    run.finish.assert_called_once_with(exit_code=0)


def test_a_resumed_live_run_sends_what_is_missing_and_is_unfinished_without_a_result(tmp_path, begun):
    run, _ = begun(resumed=True)  # W&B already has two epochs
    records = [SEGMENT, *(epoch(number, 20.0) for number in range(1, 7))]
    write_metrics(tmp_path / "metrics.jsonl", records)
    one = tracker(tmp_path, mode="online")
    one.log({**SEGMENT, "step": 8})
    one.log(records[5])
    assert epochs_of(run) == [3, 4, 5]
    one.log(records[6])
    one.log(records[6])  # the epoch was trained twice
    assert epochs_of(run) == [3, 4, 5, 6, 6]
    one.close()
    run.finish.assert_called_once_with(exit_code=1)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_sweep_of_wandb_agent_gets_the_run_under_its_own_name(tmp_path, begun, monkeypatch, mode):
    """W&B would ignore the id that it is given, so that each resumption would be another W&B run."""
    agents = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "random", "WANDB_RESUME": "must", "WANDB_LAUNCH": "true"}
    for name, value in agents.items():
        monkeypatch.setenv(name, value)
    seen = {}
    _, init = begun()
    init.side_effect = lambda **given: seen.update(given, environment=dict(os.environ)) or init.return_value
    write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS])
    tracker(tmp_path, mode=mode).log(result(EPOCHS))
    assert (seen["id"], seen["project"], seen["settings"].sweep_id) == ("run-1", "p", "abc")
    assert not agents.keys() & seen["environment"].keys()
    assert agents.items() <= dict(os.environ).items(), "the next run of this process belongs to the sweep too"


def test_names_of_files_that_wandb_would_refuse_do_not_switch_it_off(tmp_path, begun):
    _, init = begun()
    write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS])
    named = {"run_id": "resnet8-folder_it's 50%\udce9-s0-1", "group": 200 * "\udce9", "config": {"name": "caf\udce9"}}
    tracker(tmp_path, **named, tags=["\udce9"]).log(result(EPOCHS))
    given = init.call_args.kwargs
    wandb.Settings(run_id=given["id"], run_name=given["name"], run_group=given["group"], run_tags=given["tags"])
    assert len(given["group"]) <= 128
    json.dumps([given["config"], given["group"], given["tags"]], ensure_ascii=False).encode()


def test_wandb_has_a_home_directory_and_no_terminal_while_it_starts(tmp_path, begun, monkeypatch):
    """Without a home it does not start, or prints its log and makes a folder. On a terminal it would ask for a key."""
    monkeypatch.setattr("sys.stdin", io.StringIO("an answer"))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError("uid not found: 54321")))
    seen = []
    _, init = begun()
    init.side_effect = lambda **_: seen.extend([Path(os.environ["HOME"]).is_dir(), sys.stdin.read()]) or Mock()
    write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS])
    tracker(tmp_path).log(result(EPOCHS))
    assert (seen, sys.stdin.read()) == ([True, ""], "an answer")


def test_no_file_from_outside_of_the_runs_folder_is_sent(tmp_path, begun):
    run, init = begun()
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"git_revision": 40 * "a"}))
    folder = tmp_path / "run-1"
    folder.mkdir()
    (folder / "environment.json").symlink_to(secret)
    write_metrics(folder / "metrics.jsonl", [SEGMENT, *EPOCHS])
    tracker(folder).log(result(EPOCHS))
    assert run.summary["table_value"]
    assert not run.save.called
    settings = init.call_args.kwargs["settings"]
    assert (settings.disable_git, settings.save_code) == (True, False)


def test_the_commit_is_the_one_that_trained(tmp_path, begun):
    _, init = begun()
    (tmp_path / "files").mkdir()
    (tmp_path / "environment.json").write_text(json.dumps({"git_revision": 40 * "a"}))
    write_metrics(tmp_path / "metrics.jsonl", [SEGMENT, *EPOCHS])
    tracker(tmp_path).log(result(EPOCHS))
    assert init.call_args.kwargs["settings"].git_commit == 40 * "a"


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failing_wandb_is_one_warning_and_training_goes_on(tmp_path, begun, capsys, mode, fails):
    run, _ = begun(fails=fails)
    write_metrics(tmp_path / "metrics.jsonl", EPOCHS)
    one = tracker(tmp_path, mode=mode)
    for record in [SEGMENT, *EPOCHS, result(EPOCHS)]:
        one.log(record)
    one.close()
    (warning,) = capsys.readouterr().err.splitlines()
    assert ("RuntimeError" if fails == "finish" else "no disk, no network") in warning
    assert run.finish.called == (fails == "finish")


def test_config_has_only_texts_that_wandb_can_send():
    config = config_of({"data_dir": "/caf\udce9/фото", "dataset": {"source": {"data_dir": "\udce9"}}, "seed": 0})
    assert config["data_dir"] == "/caf\\udce9/фото"
    assert config["dataset"] == {"source": {"data_dir": "\\udce9"}}
    assert config["seed"] == 0
