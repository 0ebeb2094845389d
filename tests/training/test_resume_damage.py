"""Resumption when a checkpoint or the metrics are damaged, unreadable, or belong to another run or version."""

import errno
import json

import pytest
from interrupted_runs import STEPS_PER_EPOCH, assert_same, settings, steps_of_segments, stopped_after

from isda_repro import torch_files
from isda_repro.training import checkpoint
from isda_repro.training.checkpoint import CheckpointError
from isda_repro.training.run import run


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize(
    ("how", "both"), [("truncated", False), ("emptied", False), ("one bit flipped", False), ("one bit flipped", True)]
)
def test_damaged_checkpoint_costs_steps_and_is_set_aside(tmp_path, monkeypatch, capsys, undisturbed, how, both):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    files = sorted(folder.glob("checkpoint-*.pt"))
    assert [file.name for file in files] == ["checkpoint-000000005.pt", "checkpoint-000000006.pt"]
    for file in files if both else files[1:]:
        damage(file, how)
    result = run(cfg)
    assert "checkpoint-000000006.pt" in capsys.readouterr().err
    assert steps_of_segments(result) == ([0] if both else [0, 5])
    assert_same(folder, undisturbed)
    aside = {path.name for path in folder.glob("*.damaged-1")}
    lost = {"checkpoint-000000005.pt.damaged-1", "metrics.jsonl.damaged-1"} if both else set()
    assert aside == {"checkpoint-000000006.pt.damaged-1"} | lost, "nothing is thrown away"


def test_half_a_line_and_lines_too_many_in_metrics_are_written_again(tmp_path, monkeypatch, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines, lines[-1], lines[-1][:40]]))
    run(cfg)
    assert_same(tmp_path / cfg.run_id, undisturbed)


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_weights_are_kept_when_metrics_are_lost(tmp_path, monkeypatch, undisturbed, checkpoints):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    folder = tmp_path / cfg.run_id
    for older in sorted(folder.glob("checkpoint-*.pt"))[:-checkpoints]:
        older.unlink()
    metrics = folder / "metrics.jsonl"
    content = metrics.read_text()
    metrics.write_text(content.replace("{", "?", 1))
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1"):
        run(cfg)
    assert {path.name for path in folder.iterdir()} == before | {"ended.json"}
    metrics.unlink()
    with pytest.raises(ValueError, match=r"metrics.jsonl"):
        run(cfg)
    metrics.write_text(content)
    run(cfg)
    assert_same(folder, undisturbed)


def test_lost_lines_of_metrics_send_the_run_back_to_where_they_are_whole(tmp_path, monkeypatch, capsys, undisturbed):
    cfg = settings(tmp_path)
    stopped_after(cfg, 9, monkeypatch)
    metrics = tmp_path / cfg.run_id / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))
    assert steps_of_segments(run(cfg)) == [0, STEPS_PER_EPOCH]
    assert "checkpoint-000000008.pt.damaged-1" in capsys.readouterr().err
    assert_same(tmp_path / cfg.run_id, undisturbed)


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize("trouble", [MemoryError(), NO_MEMORY, OSError(5, "Input/output error")])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, undisturbed, trouble):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def failing(*arguments, **options):
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(torch_files, "open_regular", failing)
        with pytest.raises(OSError if isinstance(trouble, OSError) else MemoryError, match=r"checkpoint-000000006\.pt"):
            run(cfg)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert "checkpoint-000000006.pt" in json.loads(after.pop("ended.json"))["said"]
    assert after == before
    run(cfg)
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", [1], {"something": 1}, OSError(errno.EINVAL, "x")])
def test_damaged_checkpoint_names_the_file(tmp_path, monkeypatch, content):
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        checkpoint.torch.save({"epoch": 1, "network": {}} if isinstance(content, OSError) else content, path)
    if isinstance(content, OSError):  # zipfile raises it for some damaged archives

        def failing(*arguments, **options):
            raise content

        monkeypatch.setattr(torch_files, "open_regular", failing)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def rewrite(path, change):
    state = checkpoint.load(path)
    change(state)
    checkpoint.save(path, state)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda state, key=key: state.pop(key) for key in ("ranks", "metrics_bytes")),
        lambda state: state.update(run_id="another"),
    ],
    ids=["ranks", "metrics_bytes", "another"],
)
def test_checkpoint_of_another_version_or_run_is_set_aside(tmp_path, monkeypatch, capsys, undisturbed, request, change):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    rewrite(max((tmp_path / cfg.run_id).glob("checkpoint-*.pt")), change)
    assert steps_of_segments(run(cfg)) == [0, 5]
    said = capsys.readouterr().err
    assert "checkpoint-000000006.pt" in said
    assert request.node.callspec.id in said
    assert_same(tmp_path / cfg.run_id, undisturbed)


def test_whole_checkpoint_that_does_not_fit_is_left_for_the_user(tmp_path, monkeypatch):
    cfg = settings(tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 6, monkeypatch)
    folder = tmp_path / cfg.run_id
    whole = {path: path.read_bytes() for path in folder.glob("checkpoint-*.pt")}
    before = {path.name for path in folder.iterdir()}
    for part in ("network", "criterion", "optimizer"):
        for path, content in whole.items():
            path.write_bytes(content)
            rewrite(path, lambda state, part=part: state[part].pop(next(iter(state[part]))))
        with pytest.raises(ValueError, match=r"checkpoint-000000006\.pt") as caught:
            run(cfg)
        assert "\n" not in str(caught.value)
        assert {path.name for path in folder.iterdir()} == before | {"ended.json"}
