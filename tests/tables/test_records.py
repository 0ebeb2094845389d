import dataclasses
import json

import pytest

from isda_repro.tables.records import (
    EpochRecord,
    RecordError,
    SegmentRecord,
    as_json,
    mean_of_last,
    read_metrics,
    read_result,
    write_result,
)

SEGMENT = SegmentRecord(
    step=0, device="cpu", hardware="a processor", precision="fp32", tf32=False, channels_last=True,
    compile=False, deterministic=False, world_size=1, threads=2, git_revision=None, git_clean=None,
)  # fmt: skip
EPOCH = EpochRecord(
    epoch=1, step=23, lr=0.05, train_loss=1.5, train_error=50.0, test_loss=0.7, test_error=21.25, timing={"train": 0.4}
)


def write_lines(path, *records):
    path.write_text("".join(json.dumps(as_json(record)) + "\n" for record in records))
    return path


def test_metrics_come_back_as_they_were_written(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", SEGMENT, EPOCH)
    assert list(read_metrics(path)) == [SEGMENT, EPOCH]


def test_a_damaged_line_is_named_with_its_number_after_the_good_ones(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", SEGMENT, EPOCH)
    path.write_text(path.read_text() + '{"kind": "epoch", "sch')
    records = read_metrics(path)
    assert [next(records), next(records)] == [SEGMENT, EPOCH]
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 3: not JSON"):
        next(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 999}, "line 1: schema 999"),
        ({"kind": "novel"}, "line 1: no 'novel'"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
    ],
)
def test_a_foreign_line_says_what_is_foreign(tmp_path, change, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({**as_json(EPOCH), **change}) + "\n")
    with pytest.raises(RecordError, match=message):
        list(read_metrics(path))


def test_a_missing_field_is_no_silent_default(tmp_path):
    body = as_json(EPOCH)
    del body["lr"]
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(body) + "\n")
    with pytest.raises(RecordError, match=r"missing fields \['lr'\]"):
        list(read_metrics(path))


def test_a_result_comes_back_as_it_was_written(demo, finish, tmp_path):
    run = next(iter(demo[1].values()))[0]
    path = finish(run, 3.0, 2.0)
    result = read_result(path)
    assert result.test_error_last10 == 2.5
    write_result(tmp_path / "again.json", result)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert list(json.loads(path.read_text())) == sorted(json.loads(path.read_text()))
    assert not list(path.parent.glob("*.tmp"))


def test_nan_is_never_written_and_never_read(demo, finish):
    run = next(iter(demo[1].values()))[0]
    path = finish(run, 3.0)
    result = read_result(path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(path, dataclasses.replace(result, curves={**result.curves, "test_error": [float("nan")]}))
    assert read_result(path) == result, "a refused write must leave the old file whole"
    body = json.loads(path.read_text())
    body["curves"]["test_error"] = [float("nan")]
    path.write_text(json.dumps(body))
    with pytest.raises(RecordError, match="not finite"):
        read_result(path)


def test_a_result_of_another_schema_is_refused(demo, finish):
    path = finish(next(iter(demo[1].values()))[0], 3.0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 3}))
    with pytest.raises(RecordError, match=r"result\.json: schema 3, this code reads 1 and 2"):
        read_result(path)


def test_a_top_5_error_is_kept_where_there_is_one_and_not_written_where_there_is_none(demo, finish, tmp_path):
    ranked = dataclasses.replace(EPOCH, test_top5_error=1.5)
    path = write_lines(tmp_path / "metrics.jsonl", EPOCH, ranked)
    assert ["test_top5_error" in line for line in path.read_text().splitlines()] == [False, True]
    assert list(read_metrics(path)) == [EPOCH, ranked]
    result = finish(next(iter(demo[1].values()))[0], 3.0, test_top5_error_final=0.25)
    assert read_result(result).test_top5_error_final == 0.25


def test_files_older_than_the_top_5_error_are_read(demo, finish, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({**as_json(record), "schema": 2}) + "\n" for record in (SEGMENT, EPOCH)))
    assert list(read_metrics(path)) == [SEGMENT, EPOCH]
    path = finish(next(iter(demo[1].values()))[0], 3.0)
    new = read_result(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    assert read_result(path) == new
    assert new.test_top5_error_final is None


def test_the_committed_results_are_read(root):
    paths = sorted((root / "results").glob("*/*/*.json"))
    assert paths
    assert {read_result(path).epochs for path in paths} >= {5, 12}


def test_the_mean_is_of_the_last_ten_epochs():
    assert mean_of_last([100.0] * 5 + [float(i) for i in range(10)]) == 4.5
    assert mean_of_last([1.0, 2.0]) == 1.5
    with pytest.raises(ValueError, match="without epochs"):
        mean_of_last([])
