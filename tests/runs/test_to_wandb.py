"""Finished runs are sent to W&B later: once, as training would have sent them, and only if they are whole."""

import json
import shutil
from unittest.mock import Mock

import pytest
import wandb
from wandb_runs import SEGMENT, epoch, finished_run, write_metrics
from wandb_server import ENTITY, WandbServer

from isda_repro.config import compose_generator, read_frozen_run, request, write_frozen
from isda_repro.config.checks import ConfigError
from isda_repro.errors import UserError
from isda_repro.runs.from_wandb import connect, record_of, result_from
from isda_repro.runs.generator_records import GeneratorEpoch, GeneratorResult
from isda_repro.runs.offline_runs import offline_files, read_offline
from isda_repro.runs.records import as_json, read_result
from isda_repro.runs.to_wandb import Destination, send_run, wandb_trackers
from isda_repro.tracking.wandb_record import ran_on
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.session import prepare

OFFLINE, ONLINE = Destination("offline"), Destination("online")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run that was not tracked, to be copied."""
    return finished_run(tmp_path_factory.mktemp("made"), "tracking=none")


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "wandb"
    }


# ------------------------------------------------------------------------------------------------------ what is refused


def _truncated(folder):
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _another_curve(folder):
    lines = [epoch(number, 21.0 / number, rate=0.1 / number) for number in (1, 2, 3)]
    write_metrics(folder / "metrics.jsonl", [SEGMENT, *lines])


def _infinite_time(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"train": 2.0', '"train": 1e999'))


def _another_result(folder):
    whole = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**whole, "run_id": "another"}))


DAMAGES = {
    "config.yaml": lambda folder: (folder / "config.yaml").unlink(),
    "not finished": lambda folder: (folder / "result.json").unlink(),
    "epochs are not known": lambda folder: (folder / "metrics.jsonl").unlink(),
    "3 epochs": _truncated,
    "test_error": _another_curve,
    "finite": _infinite_time,
    "another": _another_result,
    "edited": lambda folder: (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("epochs: 3", "epochs: 4", 1)
    ),
}


@pytest.mark.parametrize("word", DAMAGES)
def test_only_a_whole_run_is_sent(folder, word):
    DAMAGES[word](folder)
    before = contents(folder)
    with pytest.raises(UserError, match=word):
        send_run(folder, OFFLINE)
    assert contents(folder) == before
    assert not (folder / "wandb").exists()


def test_names_that_wandb_refuses_are_refused_before_anything_is_written(folder):
    with pytest.raises(UserError, match=r"tracking\.entity=team"):
        send_run(folder, Destination("offline", project="team/proj"))
    assert not (folder / "wandb").exists()


def test_a_run_that_was_trained_with_such_names_is_sent_with_others(folder, tmp_path, monkeypatch):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("project: null", "project: team/proj"))
    with pytest.raises(UserError, match=r"tracking\.project=team/proj"):
        send_run(folder, OFFLINE)
    init = Mock(return_value=Mock(dir=str(tmp_path), resumed=False, summary={}))
    monkeypatch.setattr(wandb, "init", init)
    send_run(folder, Destination("offline", project="proj", entity="team"))
    assert (init.call_args.kwargs["entity"], init.call_args.kwargs["project"]) == ("team", "proj")


def test_a_frozen_file_with_such_names_is_refused_when_its_training_starts(folder):
    cfg = read_frozen_run(folder / "config.yaml")
    cfg.tracking.project = "team/proj"
    with pytest.raises(ConfigError, match=r"tracking\.project"):
        prepare(cfg, SINGLE_PROCESS)


def test_a_run_that_was_set_aside_is_not_sent_as_the_one_that_replaces_it(load_script, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "all" / f"{folder.name}.before-1")
    with pytest.raises(UserError, match="no finished run"):
        load_script("dashboard").main(["send", f"runs_dir={tmp_path / 'all'}", "tracking=offline"])


def test_the_command_says_what_is_missing(load_script, tmp_path, capsys):
    send = load_script("dashboard").main
    for arguments, word in (
        (["send"], "run="),
        (["send", "run=x", "tracking=none"], "tracking=none"),
        (["send", "runs_dir=nowhere"], "nowhere"),
        (["send", f"run={tmp_path}/a,[b]", "tracking=offline"], "config.yaml"),
        (["send", f"run={tmp_path}", f"run={tmp_path}/x", "tracking=offline"], "2 of 2"),
    ):
        with pytest.raises(UserError) as error:
            send(arguments)
        assert word in str(error.value)
    first, second = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} is not" in first
    assert f"{tmp_path}/x is not" in second


# -------------------------------------------------------------------------------------------------------------- offline


def of_training(row):
    """Return what training logs, without W&B's own clock."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


@pytest.mark.slow
def test_a_finished_run_is_written_once_and_as_training_writes_it(folder, tmp_path):
    before = contents(folder)
    said = [send_run(folder, OFFLINE) for _ in range(2)]
    (path,) = offline_files(folder.parent)
    assert all(str(path.parent) in one for one in said)
    assert said[0] != said[1]
    assert contents(folder) == before
    trained = shutil.copytree(folder, tmp_path / "trained" / folder.name, ignore=shutil.ignore_patterns("wandb"))
    cfg = read_frozen_run(folder / "config.yaml")
    cfg.tracking.mode, cfg.tracking.project = "offline", "isda_repro"
    (tracker,) = wandb_trackers(cfg, trained / "metrics.jsonl")
    tracker.log(json.loads((folder / "result.json").read_text()))
    tracker.close()
    ours, theirs = (read_offline(*offline_files(one.parent)) for one in (folder, trained))
    assert of_training(ours.summary) == of_training(theirs.summary)
    assert (ours.config, ours.exit_code) == (theirs.config, 0)
    names = ("run_id", "project", "run_group", "job_type", "tags", "display_name")
    assert [ours.about.get(name) for name in names] == [theirs.about.get(name) for name in names]
    assert [*map(of_training, ours.rows)] == [*map(of_training, theirs.rows)]
    assert result_from(record_of(ours.summary), ours.rows) == read_result(folder / "result.json")
    assert send_run(trained, OFFLINE).startswith("is already"), "training has written it"
    send_run(folder, Destination("offline", project="other"))
    assert len(offline_files(folder.parent)) == 2, "the one of the first project stays"


def generators_run(runs_dir):
    cfg = compose_generator(["gan=acgan", "dataset=digits", "gan.epochs=2", "tracking=none", f"runs_dir={runs_dir}"])
    timing = {"train": 1.0, "images_per_s": 3.0}
    scores = {"discriminator_loss": 0.5, "real_score": 0.5, "fake_score": 0.25}
    lines = [
        GeneratorEpoch(epoch=n, step=n, generator_steps=n - 1, generator_loss=loss, timing=timing, **scores)
        for n, loss in ((1, None), (2, 0.75))
    ]
    whole = GeneratorResult(
        run_id=cfg.run_id,
        request={"numerics_version": cfg.numerics_version, **request(cfg)},
        choices=dict(cfg.choice),
        **dict.fromkeys(("epochs", "steps", "generator_steps", "generators", "parameters", "train_images"), 2),
        curves={"generator_loss": [None, 0.75], **{name: [value, value] for name, value in scores.items()}},
        timing=timing,
        segments=[{"precision": "fp32"}],
        environment={},
    )
    folder = runs_dir / str(cfg.run_id)
    folder.mkdir()
    write_frozen(cfg, folder / "config.yaml")
    write_metrics(folder / "metrics.jsonl", [SEGMENT, *map(as_json, lines)])
    (folder / "result.json").write_text(json.dumps(as_json(whole)))
    return folder


@pytest.mark.slow
def test_a_run_of_generators_is_sent_too(tmp_path):
    folder = generators_run(tmp_path)
    said = [send_run(folder, OFFLINE) for _ in range(2)]
    (path,) = offline_files(tmp_path)
    run = read_offline(path)
    assert said[1].startswith("is already")
    assert (run.about["job_type"], run.summary["epochs"], len(run.rows)) == ("generator", 2, 2)


# --------------------------------------------------------------------------------------------------------------- online


@pytest.fixture(scope="module")
def wandb_api():
    with WandbServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment, "WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "random"}.items():
            patch.setenv(name, value)
        wandb.teardown()  # W&B reads the variables once in a process, which another test may have made it do
        yield server, connect()
        wandb.teardown()
        assert not server.unknown


@pytest.mark.slow
def test_epochs_without_a_generator_step_are_known_to_be_there(tmp_path, wandb_api):
    _, api = wandb_api
    folder = generators_run(tmp_path)
    send_run(folder, ONLINE, api)
    assert send_run(folder, ONLINE, api).startswith("is already")


@pytest.mark.slow
def test_a_run_is_sent_once_and_what_is_missing_is_added(folder, wandb_api):
    server, api = wandb_api
    said = send_run(folder, ONLINE, api)
    assert f"{ENTITY}/isda_repro/{folder.name}" in said
    run = server.runs[folder.name]
    assert (run.state, run.name, run.attributes["jobType"]) == ("finished", folder.name, "train")
    assert run.config["ran_on"]["value"]["hardware"] == ran_on({**SEGMENT, "hardware": "y"})["ran_on"]["hardware"]
    assert result_from(record_of(run.summary), run.rows) == read_result(folder / "result.json")
    asked = len(server.asked)
    assert send_run(folder, ONLINE, api).startswith("is already")
    assert "UpsertBucket" not in server.asked[asked:], "only questions"
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]

    del run.rows[1:]  # as if training had been cut off from W&B after its first epoch
    run.summary, run.state = {}, "failed"  # W&B writes the last row into the summary, sometimes late
    send_run(folder, ONLINE, api)
    assert [row["epoch"] for row in run.rows] == [1, 2, 3]
    assert (run.state, result_from(record_of(run.summary), run.rows)) == (
        "finished",
        read_result(folder / "result.json"),
    )

    run.summary["total/train"] = 99.0
    kept = json.dumps([run.rows, run.summary])
    with pytest.raises(UserError, match="another result"):
        send_run(folder, ONLINE, api)
    assert json.dumps([run.rows, run.summary]) == kept
