import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
from synthetic import SEGMENT

from isda_repro import config
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.records import (
    CLASS_ERRORS,
    METRICS,
    METRICS_SCHEMAS,
    RESULT_SCHEMAS,
    EpochRecord,
    RecordError,
    as_json,
    mean_of_last,
    read_lines,
    read_metrics,
    read_result,
    write_result,
)
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import kept_results

EPOCH = EpochRecord(
    epoch=1, step=23, lr=0.05, train_loss=1.5, train_error=50.0, test_loss=0.7, test_error=21.25, timing={"train": 0.4}
)


def write_lines(path, *records):
    path.write_text("".join(json.dumps(as_json(record)) + "\n" for record in records))
    return path


def test_metrics_come_back_as_they_were_written(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", SEGMENT, EPOCH)
    assert list(read_metrics(path)) == [SEGMENT, EPOCH]


def test_damaged_line_is_named_with_its_number_after_the_good_ones(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", SEGMENT, EPOCH)
    path.write_text(path.read_text() + '{"kind": "epoch", "sch')
    records = read_metrics(path)
    assert [next(records), next(records)] == [SEGMENT, EPOCH]
    with pytest.raises(RecordError, match=r"metrics\.jsonl.*3"):
        next(records)


@pytest.mark.parametrize(
    ("change", "token"),
    [
        ({"schema": 999}, "999"),
        ({"kind": "novel"}, "novel"),
        ({"extra": 1}, "extra"),
        ({"lr": None}, "lr"),  # left out
    ],
)
def test_foreign_line_is_named_with_what_is_foreign(tmp_path, change, token):
    path = tmp_path / "metrics.jsonl"
    body = {key: value for key, value in {**as_json(EPOCH), **change}.items() if value is not None}
    path.write_text(json.dumps(body) + "\n")
    with pytest.raises(RecordError, match=rf"metrics\.jsonl.*1.*{token}"):
        list(read_metrics(path))


def test_line_longer_than_any_record_is_refused_before_it_is_whole(tmp_path):
    """The reader takes a part of it, which alone would be a valid record."""
    path = write_lines(tmp_path / "metrics.jsonl", SEGMENT, EPOCH)
    path.write_text(path.read_text().rstrip("\n") + " " * 2**21 + "\n")
    records = read_metrics(path)
    assert next(records) == SEGMENT
    with pytest.raises(RecordError, match=r"metrics\.jsonl.*2.*bytes"):
        next(records)


def test_first_bytes_of_a_file_are_read_alone(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", SEGMENT, EPOCH)
    length = path.read_bytes().index(b"\n") + 1
    assert list(read_lines(path, EpochRecord, length)) == [SEGMENT]


def test_result_comes_back_as_it_was_written(demo, finish, tmp_path):
    run = next(iter(demo[1].values()))[0]
    path = finish(run, 3.0, 2.0)
    result = read_result(path)
    assert result.test_error_last10 == 2.5
    write_result(tmp_path / "again.json", result)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert list(json.loads(path.read_text())) == sorted(json.loads(path.read_text()))
    assert not list(path.parent.glob("*.tmp"))


def test_result_that_cannot_be_brought_to_the_disk_leaves_the_old_file(demo, finish, monkeypatch):
    run = next(iter(demo[1].values()))[0]
    path = finish(run, 3.0)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        finish(run, 2.0)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_nan_is_never_written(demo, finish):
    path = finish(next(iter(demo[1].values()))[0], 3.0)
    result = read_result(path)
    with pytest.raises(ValueError, match="float"):
        write_result(path, dataclasses.replace(result, curves={**result.curves, "test_error": [float("nan")]}))
    assert read_result(path) == result, "a refused write must leave the old file whole"


def test_top_5_error_is_kept_where_there_is_one_and_not_written_where_there_is_none(demo, finish, tmp_path):
    ranked = dataclasses.replace(EPOCH, test_top5_error=1.5)
    path = write_lines(tmp_path / "metrics.jsonl", EPOCH, ranked)
    assert ["test_top5_error" in line for line in path.read_text().splitlines()] == [False, True]
    assert list(read_metrics(path)) == [EPOCH, ranked]
    run = next(iter(demo[1].values()))[0]
    curves = {**read_result(finish(run, 3.0)).curves, "test_top5_error": [0.25]}
    result = finish(run, 3.0, test_top5_error_final=0.25, curves=curves)
    assert read_result(result).test_top5_error_final == 0.25


GROUPS = dict(zip(CLASS_ERRORS, (41.5, 20.25, 45.0, 70.5), strict=True))


def test_errors_of_groups_of_classes_are_kept_and_have_to_be_those_of_their_curves(demo, finish, tmp_path):
    grouped = dataclasses.replace(EPOCH, **GROUPS)
    path = write_lines(tmp_path / "metrics.jsonl", EPOCH, grouped)
    assert ["class_error" in line for line in path.read_text().splitlines()] == [False, True]
    assert list(read_metrics(path)) == [EPOCH, grouped]
    run = next(iter(demo[1].values()))[0]
    curves = {**read_result(finish(run, 3.0)).curves, **{name: [value] for name, value in GROUPS.items()}}
    final = {f"{name}_final": value for name, value in GROUPS.items()}
    path = finish(run, 3.0, **final, curves=curves)
    found = read_result(path)
    assert {name: getattr(found, name) for name in final} == final
    assert {*final} < {*METRICS}
    for name in final:
        path.write_text(json.dumps({**json.loads(path.read_text()), **final, name: 1.0}))
        with pytest.raises(RecordError, match=name):
            read_result(path)


@pytest.mark.parametrize("figures", [{"trace": "1"}, {"trace": float("inf")}, {"class_trace": [None]}, [1.0]])
def test_figures_of_covariances_are_numbers_and_lists_of_numbers(figures):
    whole = {**as_json(EPOCH), "covariances": {"trace": 1.0, "class_trace": [1.0, 0.0]}}
    assert EpochRecord.from_json(whole).covariances == whole["covariances"]
    assert "covariances" not in as_json(EPOCH)
    with pytest.raises(RecordError, match="covariances"):
        EpochRecord.from_json({**whole, "covariances": figures})


def test_files_older_than_the_top_5_error_are_read(demo, finish, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({**as_json(record), "schema": 2}) + "\n" for record in (SEGMENT, EPOCH)))
    assert list(read_metrics(path)) == [SEGMENT, EPOCH]
    path = finish(next(iter(demo[1].values()))[0], 3.0)
    new = read_result(path)
    assert as_json(EPOCH)["schema"] == max(METRICS_SCHEMAS)
    assert as_json(new)["schema"] == max(RESULT_SCHEMAS)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    assert read_result(path) == new
    assert new.test_top5_error_final is None


COMMITTED = config.CONF_DIR.parent / "results"
KEPT = list(COMMITTED.glob("*/*/*.json"))
TABLES = sorted({path.parents[1].name for path in KEPT})


@pytest.mark.parametrize("name", TABLES)
def test_every_committed_result_is_still_a_run_of_its_table(name):
    """Each result is complete, its settings give its run id, and its path is that of the table's run."""
    assert len(KEPT) >= 94
    findings = kept_results(COMMITTED)
    gathered = index_results(one for one in findings if isinstance(one, RecordError) or one.kept_for == name)
    paths = {str(path) for path in (COMMITTED / name).glob("*/*")}
    there = {(Path(origin).parent.name, Path(origin).stem): run_id for run_id, origin in gathered.kept[name]}
    assert gathered.problems == []
    assert {origin for _, origin in gathered.kept[name]} == paths
    table = load_table(name)
    cells = tuple(cell for cell in table.cells if cell.slug in {slug for slug, _ in there})
    plan = plan_runs(dataclasses.replace(table, cells=cells), config.compose)
    runs = {(cell.slug, str(run.seed)): run.run_id for cell, its_runs in plan.items() for run in its_runs}
    assert there.items() <= runs.items()
    finished = there.values() - gathered.diverged.keys()
    assert all(gathered.records[run_id].numbers[table.metric] is not None for run_id in finished)


def test_mean_is_of_the_last_ten_epochs():
    assert mean_of_last([100.0] * 5 + [float(i) for i in range(10)]) == 4.5
    assert mean_of_last([1.0, 2.0]) == 1.5
    with pytest.raises(ValueError):  # noqa: PT011
        mean_of_last([])
