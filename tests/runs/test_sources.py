"""Results from all sources; a result that cannot be used is reported and does not stop the rest."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import pytest

from isda_repro.runs.offline_runs import offline_files
from isda_repro.runs.records import METRICS, RecordError, read_result
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import Found, kept_results, results_in, results_of_runs, results_on_disk


@pytest.fixture
def run(demo):
    return next(iter(demo[1].values()))[0]


@pytest.fixture
def good(demo, finish):
    """Write a good result of another run beside the bad ones."""
    return finish(next(iter(demo[1].values()))[1], 2.0)


def body_of(path):
    return json.loads(path.read_text())


DAMAGES = {
    "cut": lambda text: text[:100].encode(),
    "empty": lambda text: b"",
    "zeros": lambda text: bytes(1000),
    "binary": lambda text: bytes(range(256)),
    "latin-1": lambda text: text.replace("2.0", '"\xe4"').encode("latin-1"),
    "a list": lambda text: f"[{text}]".encode(),
    "deep": lambda text: b"[" * 200_000,
}


def test_damaged_file_is_named_and_passed_over(run, finish, good, there):
    path = finish(run, 2.0)
    whole = path.read_text()
    for damage, spoil in DAMAGES.items():
        path.write_bytes(spoil(whole))
        gathered = there()
        assert [record.path for record in gathered.records.values()] == [str(good)], damage
        (problem,) = gathered.problems
        assert str(path) in problem, damage
        assert "\n" not in problem, damage


CHANGES = [
    ({"curves": {}}, "test_error"),
    ({"curves": None}, ""),
    ({"curves": {"test_error": ["a"]}}, ""),
    ({"epochs": 30}, "30"),
    ({"epochs": 0, "curves": {"test_error": []}}, ""),
    ({"test_error_last10": 1.9}, ""),
    ({"test_error_final": 1.9}, ""),
    ({"test_error_best": 1.9}, ""),
    ({"test_top5_error_final": 1.0}, ""),
    ({"test_error_best": 1e999}, "test_error_best"),
    ({"test_error_last10": float("nan")}, "test_error_last10"),
    ({"test_error_final": "2.0"}, ""),
    ({"request": 3}, ""),
    ({"choices": {}}, "model"),
    ({"segments": []}, "segment"),
    ({"segments": [3]}, ""),
    ({"evaluated_on": "train"}, "evaluated_on"),
    ({"schema": 99}, "99"),
    ({"kind": "generator"}, ""),
    ({"colour": "red"}, "colour"),
    ({"run_id": "resnet20-digits-none-ce-s0-0123456789"}, "resnet20-digits"),
    (lambda body: body["request"]["recipe"].update(lr=3.0), "resnet20-digits"),
    (lambda body: body["curves"].update(train_loss=[float("nan")]), "train_loss"),
    (lambda body: body["curves"].update(test_error=[float("inf")]), ""),
]


SURROGATE = "\ud800"
CHANGES += [
    (lambda body: body["timing"].update(train=float("nan")), "timing.train"),
    (lambda body: body["timing"].update(train="12"), "timing.train"),
    (lambda body: body["timing"].update(train=None), "timing.train"),
    (lambda body: body["curves"].update(train_loss=None), "curves.train_loss"),
    (lambda body: body["curves"].update(train_loss=["0.5"]), "curves.train_loss"),
    (lambda body: body["curves"].update(test_error=[True]), "curves.test_error"),
    (lambda body: body["curves"].update(more=[float("-inf")]), "curves.more"),
    (lambda body: body["curves"].update(train_error=[-1.0]), "train_error"),
    (lambda body: body["curves"].update(train_error=[101.0]), "train_error"),
    (lambda body: body["curves"].update(train_loss=[10**400]), "curves.train_loss"),
    (lambda body: body["curves"].pop("lr"), "lr"),
    ({"test_images": 0}, "test_images"),
    ({"train_images": -5}, "train_images"),
    ({"parameters": 10**30}, "parameters"),
    ({"steps": 2**60}, "steps"),
    ({"epochs": True}, "epochs"),
    ({"run_id": SURROGATE}, "run_id"),
    ({"choices": {"model": "resnet20", "loss": "a\nb"}}, "choices.loss"),
    ({"choices": {"model": "resnet20", "loss": 3}}, "choices.loss"),
    (lambda body: body["choices"].pop("augmentation"), "augmentation"),
    (lambda body: body["request"].update(synthetic="x"), "synthetic"),
    (lambda body: body["request"].update(model=[1]), "model"),
    (lambda body: body["request"]["recipe"].update(epochs="30"), "recipe.epochs"),
    (lambda body: body["request"]["recipe"].update(epochs=0), "recipe.epochs"),
    (lambda body: body["request"]["recipe"].update(passes="4"), "recipe.passes"),
    (lambda body: body["request"]["recipe"].update({SURROGATE: 1}), "request"),
    (lambda body: body["request"]["recipe"].update(lr=float("nan")), "request"),
    (lambda body: body["request"]["recipe"].update(lr=2**64), "settings"),
    (lambda body: body["request"].update(seed=2**70), "seed"),
    (lambda body: body["request"].update(seed=True), "seed"),
    (lambda body: body["environment"].update(system="\x1b[2J"), "environment"),
    (lambda body: body["environment"].update(number=2**63), "environment"),
    (
        lambda body: body["environment"].update(deep=functools.reduce(lambda node, _: [node], range(500), 0)),
        "environment",
    ),
    (lambda body: body["segments"][0].update(hardware="\u2028"), "segments.0"),
    (lambda body: body["segments"][0].update(precision=None), "segment"),
    ({"x" * 10**6: 1}, "xxx"),
    ({"kind": "novel"}, "novel"),
    ({"kind": None}, "kind"),
    ({"schema": [1]}, "schema"),
]


@pytest.mark.parametrize(("change", "token"), CHANGES)
def test_result_that_contradicts_itself_is_named_and_passed_over(run, finish, good, tmp_path, change, token):
    path = finish(run, 2.0, path=tmp_path / "results" / "demo" / "cell" / "0.json")
    body = body_of(path)
    change(body) if callable(change) else body.update(change)
    path.write_text(json.dumps(body))
    gathered = index_results(results_on_disk(tmp_path / "runs", tmp_path / "results"))
    assert [record.path for record in gathered.records.values()] == [str(good)]
    (problem,) = gathered.problems
    assert str(path) in problem
    assert token in problem.replace(str(path), "")
    assert problem.isprintable()
    assert len(problem) < 2000


def fifo(path, _):
    os.mkfifo(path)


def huge(path, _):
    with path.open("wb") as file:
        file.truncate(2**40)


ODD_FILES = {
    "pipe": fifo,
    "folder": lambda path, _: path.mkdir(),
    "endless device": lambda path, _: path.symlink_to("/dev/zero"),
    "link to itself": lambda path, _: path.symlink_to(path),
    "link to nowhere": lambda path, _: path.symlink_to("nowhere"),
    "huge": huge,
    "many digits": lambda path, text: path.write_text(text.replace("2.0", "2" * 10**6)),
    "deep": lambda path, _: path.write_text('{"a":' * 10**6),
    "cut in a surrogate": lambda path, text: path.write_text(text.replace("resnet20", "\\ud8")),
}


@pytest.mark.parametrize("where", ["runs/run/result.json", "results/demo/cell/0.json", "heap/0.json"])
@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_file_or_too_large_is_named_and_never_waited_for(run, finish, tmp_path, kind, where):
    path = tmp_path / where
    text = finish(run, 2.0, path=path).read_text()
    path.unlink()
    ODD_FILES[kind](path, text)
    found = list(results_in(tmp_path / "heap" if "heap" in where else tmp_path))
    if (kind, where) == ("folder", "heap/0.json"):  # which is searched
        assert found == []
        return
    (problem,) = found
    assert isinstance(problem, RecordError)
    assert str(path) in str(problem)


@pytest.mark.parametrize(
    "name", [b"line\nbreak", b"\x1b[2J", b"\xff\xfe", "\u2028".encode(), "имя 名 😀 %s #&_{}".encode()]
)
def test_names_of_files_are_shown_in_one_line_that_can_be_encoded(run, finish, tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    (folder / "bad.json").write_text("{")
    finish(run, 2.0, path=folder / "good.json")
    gathered = index_results(results_in(tmp_path))
    (record,) = gathered.records.values()
    assert record.read().run_id == run.run_id
    for text in (record.origin, *gathered.problems):
        assert "\n" not in text
        assert "\x1b" not in text
        text.encode()


def test_nothing_in_place_of_a_field_is_fatal(run, finish, there):
    """An odd value is reported, or accepted where a field may hold anything, as in a mapping."""
    path = finish(run, 2.0)
    body = body_of(path)
    odd = [None, False, -1, 1e300, "x", [], [3], [None], ["x"], {}, {"a": None}, {"seed": 0}, {"seed": []}, [[1], "x"]]
    harmless = {"timing", "environment"}
    for name in body:
        for value in odd:
            path.write_text(json.dumps({**body, name: value}))
            gathered = there()
            assert len(gathered.records) + len(gathered.problems) == 1, (name, value)
            assert name in harmless or not gathered.records, (name, value)


def test_result_from_elsewhere_is_checked_like_a_file(run, finish):
    result = read_result(finish(run, 2.0))
    spoilt = dataclasses.replace(result, request={**result.request, "seed": result.request["seed"] + 1})
    gathered = index_results([RecordError("one that crashed"), Found("there", spoilt), Found("here", result)])
    crashed, other_seed = gathered.problems
    assert "one that crashed" in crashed
    assert "there" in other_seed
    assert result.run_id in other_seed
    (record,) = gathered.records.values()
    assert (record.origin, record.path, record.read()) == ("here", None, result)


def test_first_of_two_results_of_a_run_counts_and_one_with_other_numbers_is_named(run, finish, there, tmp_path):
    ran = finish(run, 2.0)
    kept = finish(run, 2.0, path=tmp_path / "results" / "demo" / "cell" / "0.json")
    assert there().problems == []
    finish(run, 3.0, path=kept)
    gathered = there()
    assert [record.path for record in gathered.records.values()] == [str(ran)]
    assert gathered.kept == {"demo": [(run.run_id, str(kept))]}
    (problem,) = gathered.problems
    assert str(kept) in problem
    assert str(ran) in problem


def test_record_has_the_numbers_seed_and_precisions_of_its_result(demo, finish, there):
    runs = next(iter(demo[1].values()))
    segments = [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp32"}]
    path = finish(runs[2], 4.0, 1.0, 3.0, segments=segments)
    record = there().records[runs[2].run_id]
    of_curve = {"test_error_last10": pytest.approx(8 / 3), "test_error_final": 3.0, "test_error_best": 1.0}
    assert record.numbers == {**dict.fromkeys(METRICS), **of_curve}
    assert (record.seed, record.evaluated_on, record.precisions) == (2, "test", ("bf16", "fp32"))
    assert record.read() == read_result(path)
    finish(runs[1], 1.0, path=path)
    with pytest.raises(RecordError, match=runs[1].run_id):
        record.read()


def test_records_that_differ_in_their_seed_alone_have_one_request(demo, finish, there):
    for runs in demo[1].values():
        for run in runs:
            finish(run, 2.0)
    groups = there().by_request.values()
    assert sorted(sorted(record.run_id for record in group) for group in groups) == sorted(
        sorted(run.run_id for run in runs) for runs in demo[1].values()
    )


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
    bad = [tmp_path / "runs/directory/result.json", *(kept / f"{seed}.json" for seed in range(3))]
    assert [str(path) in problem for path, problem in zip(bad, gathered.problems, strict=True)] == [True] * 4


def test_what_may_not_be_read_is_named(run, finish, good, there, tmp_path, monkeypatch):
    """Root may read everything, so that the PermissionError is raised by a stub."""
    closed = finish(run, 2.0)
    (tmp_path / "results" / "secret").mkdir(parents=True)

    def refused(path):
        raise PermissionError(13, os.strerror(13), str(path))

    opened, listed = os.open, Path.iterdir
    monkeypatch.setattr(os, "open", lambda path, *how: refused(path) if path == closed else opened(path, *how))
    monkeypatch.setattr(Path, "iterdir", lambda path: refused(path) if path.name == "secret" else listed(path))
    gathered = there()
    assert [record.path for record in gathered.records.values()] == [str(good)]
    bad = (closed, tmp_path / "results/secret")
    assert [str(path) in problem for path, problem in zip(bad, gathered.problems, strict=True)] == [True, True]


def test_another_runs_result_in_a_runs_folder_is_named(demo, finish, there, tmp_path):
    mine, other = (runs[0] for runs in demo[1].values())
    path = finish(other, 1.0, path=tmp_path / "runs" / mine.run_id / "result.json")
    assert there().records == {}
    (problem,) = there().problems
    assert (str(path) in problem, other.run_id in problem) == (True, True)


def test_run_that_was_set_aside_is_passed_over_in_silence(demo, finish, there, tmp_path):
    run = next(iter(demo[1].values()))[0]
    aside = finish(run, 1.0, path=tmp_path / "runs" / f"{run.run_id}.before-12" / "result.json")
    (aside.parent / "wandb" / "offline-run-1").mkdir(parents=True)
    (aside.parent / "wandb" / "offline-run-1" / "run-1.wandb").touch()
    assert (there().records, there().problems) == ({}, [])
    assert offline_files(tmp_path / "runs") == []


def test_checkout_is_read_in_its_two_folders(demo, finish, tmp_path):
    runs = next(iter(demo[1].values()))
    ran = finish(runs[0], 3.0)
    kept = finish(runs[1], 2.0, path=tmp_path / "results/demo/cell/1.json")
    (tmp_path / "costs.json").write_text("{}")
    assert [found.path for found in results_in(tmp_path)] == [ran, kept]
    assert list(results_in(tmp_path / "nowhere")) == []
    assert [found.path for found in results_of_runs(tmp_path / "runs")] == [ran]
    assert [(found.path, found.kept_for) for found in kept_results(tmp_path / "results")] == [(kept, "demo")]
    for part, path in (("runs", ran), ("results", kept)):
        assert [found.path for found in results_in(tmp_path / part)] == [path]


def test_heap_of_files_is_read_however_deep(demo, finish, tmp_path):
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
