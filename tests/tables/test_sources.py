"""Results wherever they are; whatever cannot be used is named, in one sentence, and stops nothing."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from isda_repro.tables.gathered import gather
from isda_repro.tables.records import RecordError, read_result
from isda_repro.tables.sources import Found, kept_results, results_in, results_of_runs, results_on_disk


@pytest.fixture
def run(demo):
    return next(iter(demo[1].values()))[0]


@pytest.fixture
def good(demo, finish):
    """A good result beside the bad ones, of another run."""
    return finish(next(iter(demo[1].values()))[1], 2.0)


def body_of(path):
    return json.loads(path.read_text())


DAMAGES = {
    "cut": (lambda text: text[:100].encode(), "not JSON (Unterminated string starting at, column"),
    "cut at the end": (lambda text: text[:-3].encode(), "not JSON (Expecting ',' delimiter, column"),
    "empty": (lambda text: b"", "empty"),
    "spaces": (lambda text: b" \n\n", "empty"),
    "zeros": (lambda text: bytes(1000), "not JSON (Expecting value, column 1)"),
    "binary": (lambda text: bytes(range(256)), "not text in UTF-8"),
    "UTF-16": (lambda text: text.encode("utf-16"), "not text in UTF-8"),
    "latin-1": (lambda text: text.replace("2.0", '"\xe4"').encode("latin-1"), "not text in UTF-8"),
    "a list": (lambda text: f"[{text}]".encode(), "not a JSON object"),
    "a number": (lambda text: b"3", "not a JSON object"),
    "deep": (lambda text: b"[" * 200_000, "recursion"),
    "HTML": (lambda text: b"<html></html>", "not JSON (Expecting value, column 1)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_passed_over(run, finish, good, there, damage):
    spoil, reason = DAMAGES[damage]
    path = finish(run, 2.0)
    path.write_bytes(spoil(path.read_text()))
    gathered = there()
    assert [record.path for record in gathered.records.values()] == [str(good)]
    (problem,) = gathered.problems
    assert problem.startswith(f"passed over: {path}: ")
    assert reason in problem
    assert "\n" not in problem


CHANGES = {
    "no curves": ({"curves": {}}, "no 'test_error'"),
    "curves null": ({"curves": None}, "'NoneType' object is not subscriptable"),
    "curve of text": ({"curves": {"test_error": ["a"]}}, ""),
    "short curve": ({"epochs": 30}, "its curve lr has 1 entries for 30 epochs"),
    "no epochs": ({"epochs": 0, "curves": {"test_error": []}}, "not as a result must be"),
    "other numbers": ({"test_error_last10": 1.9}, "its test errors are not those of its curve"),
    "infinite": ({"test_error_best": 1e999}, "its test_error_best is inf"),
    "not a number": ({"test_error_last10": float("nan")}, "its test_error_last10 is nan"),
    "text": ({"test_error_final": "2.0"}, "not as a result must be (TypeError"),
    "request": ({"request": 3}, "not as a result must be"),
    "choices": ({"choices": {}}, "not as a result must be (KeyError: 'model')"),
    "no segment": ({"segments": []}, "it has no segment"),
    "strange segment": ({"segments": [3]}, "not as a result must be"),
    "evaluated": ({"evaluated_on": "train"}, "it was evaluated on 'train'"),
    "schema": ({"schema": 99}, "schema 99, this code reads 1"),
    "another kind": ({"colour": "red"}, "not a Result: missing fields [], unknown fields ['colour']"),
    "run id": ({"run_id": "resnet20-digits-none-ce-s0-0123456789"}, "it is the result of resnet20-digits"),
    "numerics": ({"request": {"seed": 0}}, ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_result_that_is_none_is_named_and_passed_over(run, finish, good, there, change):
    changed, reason = CHANGES[change]
    path = finish(run, 2.0)
    path.write_text(json.dumps({**body_of(path), **changed}))
    gathered = there()
    assert [record.path for record in gathered.records.values()] == [str(good)]
    (problem,) = gathered.problems
    assert problem.startswith(f"passed over: {path}: {reason}")
    assert "\n" not in problem


def test_nothing_in_place_of_a_field_is_fatal(run, finish, there):
    """It is named; but for the kind, which nobody reads, and what may well be in a mapping or a count."""
    path = finish(run, 2.0)
    body = body_of(path)
    odd = [None, False, -1, 1e300, "x", [], [3], [None], ["x"], {}, {"a": None}, {"seed": 0}, {"seed": []}, [[1], "x"]]
    counts = {"steps", "parameters", "feature_dim", "train_images", "test_images"}
    for name in body:
        for value in odd:
            path.write_text(json.dumps({**body, name: value}))
            gathered = there()
            assert len(gathered.records) + len(gathered.problems) == 1, (name, value)
            may_be = (
                name == "kind"
                or (type(value) is int and name in counts)
                or (isinstance(value, dict) and name in ("timing", "environment"))
            )
            assert bool(gathered.records) == may_be, (name, value)


@pytest.mark.parametrize("name", ["train_loss", "test_loss", "test_error"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_has_diverged_never_enters(run, finish, good, there, name, value):
    path = finish(run, 5.0, 4.0, 2.0)
    body = body_of(path)
    body["curves"][name][1] = value
    path.write_text(json.dumps(body))
    assert len(there().records) == 1
    assert "not finite" in there().problems[0]


def test_a_result_from_elsewhere_is_checked_like_a_file(run, finish):
    result = read_result(finish(run, 2.0))
    spoilt = dataclasses.replace(result, curves={**result.curves, "train_loss": [float("nan")]})
    gathered = gather([RecordError("one that crashed"), Found("there", spoilt), Found("here", result)])
    assert gathered.problems == [
        "passed over: one that crashed",
        "passed over: there: its curve train_loss is not finite",
    ]
    assert [record.origin for record in gathered.records.values()] == ["here"]


def test_what_is_no_file_is_named(good, there, tmp_path):
    kept = tmp_path / "results" / "demo" / "cell"
    (kept / "0.json").mkdir(parents=True)
    (kept / "1.json").symlink_to(kept / "1.json")
    (kept / "2.json").symlink_to(tmp_path / "nowhere")
    (kept / "notes.md").write_text("not a result, and not taken for one")
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "runs" / "directory" / "result.json").mkdir(parents=True)
    (tmp_path / "runs" / "demo.png").write_text("a figure")
    gathered = there()
    assert [record.path for record in gathered.records.values()] == [str(good)]
    assert gathered.problems == [
        f"passed over: {tmp_path}/runs/directory/result.json: Is a directory",
        f"passed over: {kept}/0.json: Is a directory",
        f"passed over: {kept}/1.json: Too many levels of symbolic links",
        f"passed over: {kept}/2.json: No such file or directory",
    ]


def test_what_may_not_be_read_is_named(run, finish, good, there, tmp_path, monkeypatch):
    """Root may read everything, so the system's refusal is made here."""
    closed = finish(run, 2.0)
    (tmp_path / "results" / "secret").mkdir(parents=True)

    def refused(path):
        raise PermissionError(13, os.strerror(13), str(path))

    read, listed = Path.read_bytes, Path.iterdir
    monkeypatch.setattr(Path, "read_bytes", lambda path: refused(path) if path == closed else read(path))
    monkeypatch.setattr(Path, "iterdir", lambda path: refused(path) if path.name == "secret" else listed(path))
    gathered = there()
    assert [record.path for record in gathered.records.values()] == [str(good)]
    assert gathered.problems == [
        f"passed over: {closed}: Permission denied",
        f"passed over: {tmp_path}/results/secret: Permission denied",
    ]


def test_folders_that_are_not_there_hold_nothing(tmp_path):
    assert list(results_on_disk(tmp_path / "a", tmp_path / "b")) == []
    assert list(results_in(tmp_path / "a")) == []


def test_another_runs_result_in_a_runs_folder_is_named(demo, finish, there, tmp_path):
    mine, other = (runs[0] for runs in demo[1].values())
    path = finish(other, 1.0, path=tmp_path / "runs" / mine.run_id / "result.json")
    assert there().records == {}
    assert there().problems == [f"passed over: {path}: it is the result of {other.run_id}"]


def test_a_checkout_is_read_in_its_two_folders(demo, finish, tmp_path):
    runs = next(iter(demo[1].values()))
    ran = finish(runs[0], 3.0)
    kept = finish(runs[1], 2.0, path=tmp_path / "results/demo/cell/1.json")
    (tmp_path / "costs.json").write_text("{}")
    assert [found.path for found in results_in(tmp_path)] == [ran, kept]
    assert [found.path for found in results_of_runs(tmp_path / "runs")] == [ran]
    assert [(found.path, found.kept_for) for found in kept_results(tmp_path / "results")] == [(kept, "demo")]
    for part, path in (("runs", ran), ("results", kept)):
        assert [found.path for found in results_in(tmp_path / part)] == [path]


def test_a_heap_of_files_is_read_however_deep(demo, finish, tmp_path):
    runs = next(iter(demo[1].values()))
    paths = [
        finish(runs[0], 1.0, path=tmp_path / "a.json"),
        finish(runs[1], 2.0, path=tmp_path / "b/c/1.json"),
        finish(runs[2], 3.0, path=tmp_path / "d/a run/result.json"),
    ]
    (paths[2].parent / "config.yaml").write_text("a: 1")
    for name in ("environment.json", "wandb/offline-run/files/wandb-summary.json"):
        (paths[2].parent / name).parent.mkdir(parents=True, exist_ok=True)
        (paths[2].parent / name).write_text("{}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.json").write_text("{}")
    assert [found.path for found in results_in(tmp_path)] == paths
