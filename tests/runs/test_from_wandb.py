"""Results from W&B: through its own client from a stand-in server, and from the files that `wandb sync` sends."""

import inspect
import io
import itertools
import json
import os
import pty
import re
import subprocess
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from wandb_runs import epoch, result
from wandb_server import ENTITY, Stored, WandbServer

from isda_repro.errors import UserError
from isda_repro.runs import from_wandb
from isda_repro.runs.from_wandb import OURS, connect, results_from_wandb, results_offline
from isda_repro.runs.offline_runs import OfflineRun, read_offline
from isda_repro.runs.records import RecordError, Result
from isda_repro.runs.sources import Found
from isda_repro.tracking.wandb_record import config_of, row_of, summary_of

EPOCHS = [epoch(1, 20.0), epoch(2, 100 / 7), epoch(3, 8.0)]


@pytest.fixture(scope="module")
def api():
    """Yield W&B's own client, connected to a server in this process."""
    with WandbServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        api = connect()
        api.server = server
        yield api
        assert not server.unknown


@pytest.fixture
def project(api, request):
    """Return ``store(name, ...)``, which puts a finished run into a project of this test alone."""
    name = request.node.name.replace("[", "-").rstrip("]")

    def store(run_id, epochs=EPOCHS, state="finished", **changed):
        rows = [{**row_of(record), "_step": step} for step, record in enumerate(epochs)]
        config = {key: {"value": value} for key, value in config_of({"seed": 0}).items()}
        summary = summary_of(result([*{record["epoch"]: record for record in epochs}.values()], run_id))
        fields = dict(attributes={"jobType": "train"}, config=config, summary=summary, rows=rows, state=state)
        api.server.runs[run_id] = Stored(run_id, name, **{**fields, **changed})

    store.name = name
    store.read = lambda **changed: list(results_from_wandb(ENTITY, name, api=api, **changed))
    return store


def expected(run_id, epochs=EPOCHS):
    return Result.from_json(result(epochs, run_id))


def test_each_finished_run_is_found_whole_over_several_pages(project, api, monkeypatch):
    monkeypatch.setattr(from_wandb, "RUNS_PER_PAGE", 3)
    names = [f"run-{number}" for number in range(8)]
    for name in names:
        project(name)
    asked = len(api.server.asked)
    found = project.read()
    assert [finding.result for finding in found] == [expected(name) for name in names]
    assert f"{ENTITY}/{project.name}/run-0" in found[0].origin
    assert api.server.asked[asked:].count("Runs") == 4, "one page of the others, three of these"


def test_runs_that_cannot_be_used_are_named_and_the_others_count(project):
    project("good")
    for state in ("running", "crashed", "failed", "killed"):
        project(state, state=state)
    project("shorter", rows=[row_of(EPOCHS[0]) | {"_step": 0}])
    project("without", summary={"test_error": 3.0})
    project("another", summary=summary_of(result(EPOCHS, "good")))
    project("other-rows", rows=[{**row_of(epoch(n + 1, 9.0)), "_step": n} for n in range(3)])
    project("foreign", attributes={"jobType": "eval"})
    project("unmarked", config={})
    findings = project.read()
    assert [finding.result.run_id for finding in findings if isinstance(finding, Found)] == ["good"]
    said = [str(finding).rpartition(f"{project.name}/")[2] for finding in findings if isinstance(finding, RecordError)]
    named = dict(re.fullmatch(r"([\w-]+)\W+(.*)", sentence).groups() for sentence in said)
    assert len(named) == len(said) == 8
    assert named.keys() == {"running", "crashed", "failed", "killed", "shorter", "without", "another", "other-rows"}
    assert all(state in named[state] for state in ("running", "crashed", "failed", "killed"))
    assert re.findall(r"\d+", named["shorter"]) == ["1", "3"]
    assert "good" in named["another"]


def test_run_that_is_deleted_while_they_are_read_is_named(project, api, monkeypatch):
    project("stays")
    project("goes")
    answer = api.server.answer

    def deleting(query, variables):
        answered = answer(query, variables)
        if "finished" in variables.get("filters", "") and "$ne" not in variables["filters"]:
            del api.server.runs["goes"]
        return answered

    monkeypatch.setattr(api.server, "answer", deleting)
    stays, goes = project.read(wait=lambda seconds: None)
    assert stays.result == expected("stays")
    assert f"{project.name}/goes" in str(goes)


def test_epoch_that_was_trained_twice_counts_as_the_later(project):
    project("again", [EPOCHS[0], epoch(2, 99.0), *EPOCHS[1:]])
    (found,) = project.read()
    assert found.result == expected("again")


@pytest.fixture
def failing(api, monkeypatch):
    """Return ``failing(states)``: each query of W&B's client fails with the next HTTP status; None lets it succeed."""
    from wandb.proto.wandb_api_pb2 import ApiErrorResponse
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    send, asked = api._service_api.execute_graphql, []

    def fail(states):
        states = iter(states)

        def flaky(*arguments, **more):
            asked.append(arguments)
            if (status := next(states, None)) is not None:
                raise WandbApiFailedError("not\nnow", ApiErrorResponse(message="not now", http_status=status))
            return send(*arguments, **more)

        monkeypatch.setattr(api._service_api, "execute_graphql", flaky)
        return asked

    return fail


def test_what_fails_for_a_moment_is_asked_again_and_no_run_is_lost(project, failing, monkeypatch):
    """W&B's own iterator would continue after the run at which it failed, and lose it."""
    monkeypatch.setattr(from_wandb, "RUNS_PER_PAGE", 2)
    names = [f"run-{number}" for number in range(5)]
    for name in names:
        project(name)
    failing([None, 429, None, 502, 0, None, 503, None, None, 408])  # 0: no answer at all
    waits = []
    found = project.read(wait=waits.append)
    assert [finding.result.run_id for finding in found] == names
    assert waits == [2.0, 2.0, 10.0, 2.0, 2.0]


@pytest.mark.parametrize(("status", "attempts"), [(500, 3), (403, 1), (404, 1)])
def test_what_fails_for_good_is_one_sentence(project, failing, status, attempts):
    project("run")
    asked = failing(itertools.repeat(status))
    with pytest.raises(UserError, match=f"{ENTITY}/{re.escape(project.name)}") as caught:
        project.read(wait=lambda seconds: None)
    assert len(asked) == attempts
    assert "\n" not in str(caught.value)


def test_project_that_is_not_there_is_one_sentence(api):
    with pytest.raises(UserError, match=f"{ENTITY}/nowhere"):
        list(results_from_wandb(ENTITY, "nowhere", api=api))


def test_filters_are_fields_that_the_api_documents(api):
    """The server would silently ignore a filter that it does not know, or match nothing."""
    documented = inspect.getdoc(type(api).runs)
    for name in [*OURS, "state"]:
        assert f"`{name}`" in documented or (name.startswith("config.") and "`config." in documented), name


class FakeApi:
    """An API that finds all runs; the history of each raises an error, except that of the run X."""

    default_entity = "me"

    def __init__(self, names, error):
        self._names, self._error = names, error

    def runs(self, path, filters, per_page, lazy):
        return [] if "$ne" in str(filters) else [self._run(name) for name in self._names]

    def _run(self, name):
        def history(**_):
            if name != "X":
                raise self._error
            return [row_of(record) for record in EPOCHS]

        return SimpleNamespace(
            id=name, state="finished", summary_metrics=summary_of(result(EPOCHS, name)), scan_history=history
        )


def test_source_that_has_stopped_answering_is_asked_no_more(monkeypatch):
    monkeypatch.setattr(from_wandb, "HISTORIES_AT_ONCE", 2)
    few = list(results_from_wandb(None, "p", FakeApi("ab", TimeoutError("late")), lambda seconds: None))
    assert ["me/p/a" in str(few[0]), "me/p/b" in str(few[1])] == [True, True]
    with pytest.raises(UserError, match="late"):
        list(results_from_wandb(None, "p", FakeApi("abcdefgh", TimeoutError("late")), lambda seconds: None))
    monkeypatch.setattr(from_wandb, "HISTORIES_AT_ONCE", 1)
    between = list(results_from_wandb(None, "p", FakeApi("aXbXcXd", TimeoutError("late")), lambda seconds: None))
    assert [isinstance(one, Found) for one in between] == [*[False, True] * 3, False], "an answer begins the count anew"
    gone = list(results_from_wandb(None, "p", FakeApi("abcdefgh", KeyError("gone")), lambda seconds: None))
    assert len(gone) == 8, "runs that are deleted are no sign of that"


# ----------------------------------------------------------------------------------------------------- without account


def test_client_without_a_key_finds_nobody_to_ask_at_the_terminal(monkeypatch):
    import wandb

    asked = []

    def refuse(timeout):
        asked.append((timeout, sys.stdin.isatty(), sys.stdin.read()))
        raise wandb.errors.UsageError("No API key configured")

    terminal = io.StringIO("a key")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        connect()
    assert [(is_terminal, said) for _, is_terminal, said in asked] == [(False, "")]
    assert sys.stdin is terminal


CONNECT = """
from isda_repro.errors import one_sentence_errors
from isda_repro.runs.from_wandb import connect
with one_sentence_errors():
    connect()
"""


@pytest.mark.slow
def test_wandbs_own_client_asks_no_question_at_a_terminal(tmp_path):
    hidden = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CONNECT],
        env={**hidden, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_DIR": str(tmp_path)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    patience = threading.Timer(60, process.kill)  # ends a client that waits for an answer
    patience.start()
    said = b""
    with suppress(OSError):  # EIO once the other end is closed
        while part := os.read(ours, 10_000):
            said += part
    os.close(ours)
    assert process.wait(timeout=60) == 2
    patience.cancel()
    assert b"WANDB_API_KEY" in said
    assert said.count(b"\n") == 1


@pytest.mark.parametrize("words", ["Failed to verify credentials: no answer", "the key is not known"])
def test_key_that_nobody_takes_is_refused_with_wandbs_reason(monkeypatch, words):
    import wandb

    def refuse(timeout):
        assert timeout <= 10, "a person waits"
        raise wandb.errors.AuthenticationError(f"{words}.\nmore")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(UserError, match=words) as caught:
        connect()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- offline files


def test_offline_files_that_cannot_be_used_are_named(tmp_path):
    folder = tmp_path / "run-1" / "wandb" / "offline-run-20260101_000000-run-1"
    folder.mkdir(parents=True)
    (folder / "run-run-1.wandb").write_bytes(b"not a log of W&B's")
    (finding,) = results_offline(tmp_path)
    assert isinstance(finding, RecordError)
    assert str(folder / "run-run-1.wandb") in str(finding)
    assert list(results_offline(tmp_path / "empty")) == []


def test_offline_file_of_an_unfinished_run_is_named_and_one_of_a_generator_is_passed_over(tmp_path, monkeypatch):
    files, rows = {}, [row_of(record) for record in EPOCHS]
    kinds = {"whole": {}, "cut": {}, "failed": {"job_type": "train"}, "generator": {"job_type": "generator"}}
    for (name, kind), ending in zip(kinds.items(), (0, None, 1, 0), strict=True):
        path = tmp_path / name / "wandb" / "offline-run-1" / f"run-{name}.wandb"
        path.parent.mkdir(parents=True)
        path.touch()
        files[path] = OfflineRun(about=kind, summary=summary_of(result(EPOCHS, name)), rows=rows, exit_code=ending)
    monkeypatch.setattr(from_wandb, "read_offline", files.get)
    *bad, whole = results_offline(tmp_path)
    assert whole.result == expected("whole")
    assert all(isinstance(one, RecordError) for one in bad)
    assert [f"run-{name}.wandb" in str(one) for name, one in zip(("cut", "failed"), bad, strict=True)] == [True, True]


def test_end_of_an_offline_file_tells_whether_its_run_has_finished(tmp_path, monkeypatch):
    (tmp_path / "run-r.wandb").touch()
    for records, code in (([{"type": "exit", "exit": {}}], 0), ([], None)):
        answer = SimpleNamespace(stdout="\n".join(map(json.dumps, records)))
        monkeypatch.setattr(subprocess, "run", lambda *_, answer=answer, **__: answer)
        assert read_offline(tmp_path / "run-r.wandb").exit_code == code
