"""Runs on a folder of images: bitwise resumption, detection of changed data, and reports of skipped images."""

import dataclasses
import json
import multiprocessing
import os
import shutil
from unittest.mock import Mock

import pytest
import torch
from interrupted_runs import assert_same, stopped_after
from pictures import make_folder

from isda_repro.config import compose
from isda_repro.data import FIXED_DATA, DataError
from isda_repro.errors import UserError
from isda_repro.runs.records import read_result
from isda_repro.runs.run_directory import read_environment
from isda_repro.training import resume
from isda_repro.training.run import CLASSIFIER, UnreadableImages, run

CLASSES = ("ant", "bee", "cat")
STEPS_PER_EPOCH = 6  # 24 training images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pets(tmp_path):
    return make_folder(tmp_path / "pets")


def settings(folder, runs_dir, *more):
    return compose(
        [
            *("model=resnet20", "model.depth=8", "dataset=folder", "dataset.image_size=16", f"data_dir={folder}"),
            *("recipe=digits", "recipe.batch_size=4", "recipe.epochs=2", "loss=isda", "augmentation=autoaugment"),
            *("augmentation.cutout.length=6", "dataset.workers=2", "tracking=none", f"runs_dir={runs_dir}", *more),
        ]
    )


def damage(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"\xff\xd8\xff no image")


def test_run_none_of_whose_evaluated_images_can_be_read_says_so(pets, tmp_path):
    damage(pets, *(path.relative_to(pets) for path in (pets / "val").glob("*/*")))
    cfg = settings(pets, tmp_path / "runs", "dataset.unreadable=skip", "dataset.workers=0", "recipe.epochs=1")
    with pytest.raises(UserError, match=r"unreadable\.txt"):
        run(cfg)
    assert "val/bee/0.jpg" in (tmp_path / "runs" / cfg.run_id / "unreadable.txt").read_text()


def test_killed_run_goes_on_bit_for_bit_with_other_workers(pets, tmp_path, monkeypatch):
    whole = settings(pets, tmp_path / "whole")
    run(whole)
    cfg = settings(pets, tmp_path / "killed", "checkpoint.steps=1")
    stopped_after(cfg, STEPS_PER_EPOCH + 3, monkeypatch)
    fewer = settings(pets, tmp_path / "killed", "dataset.workers=0")
    assert fewer.run_id == cfg.run_id
    run(fewer)
    assert_same(tmp_path / "whole" / whole.run_id, tmp_path / "killed" / cfg.run_id)


def test_workers_have_ended_when_a_run_returns(pets, tmp_path):
    """Otherwise they are killed at the end of the process, which then prints a traceback."""
    before = set(multiprocessing.active_children())
    run(settings(pets, tmp_path))
    assert not set(multiprocessing.active_children()) - before


def test_the_same_folder_elsewhere_is_the_same_run(pets, tmp_path):
    other = shutil.copytree(pets, tmp_path / "elsewhere" / "pets")
    assert settings(pets, tmp_path).run_id == settings(other, tmp_path).run_id


def renamed(pets):
    for part in ("train", "val"):
        (pets / part / "bee").rename(pets / part / "bug")


def one_more(pets):
    shutil.copy(pets / "train/ant/0.jpg", pets / "train/ant/more.jpg")


@pytest.mark.parametrize(("change", "tokens"), [(renamed, ("bee", "bug")), (one_more, ("24", "25"))])
def test_run_does_not_go_on_with_other_data(pets, tmp_path, monkeypatch, change, tokens):
    cfg = settings(pets, tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 3, monkeypatch)
    change(pets)
    with pytest.raises(DataError) as caught:
        run(cfg)
    assert all(token in str(caught.value) for token in (*tokens, "pets"))
    assert not (tmp_path / cfg.run_id / "result.json").exists()


def test_weights_are_not_evaluated_on_other_classes(pets, tmp_path, load_script, capsys):
    cfg = settings(pets, tmp_path, "recipe.epochs=1")
    result = run(cfg)
    evaluate, folder = load_script("evaluate"), f"run={tmp_path / cfg.run_id}"
    more = make_folder(tmp_path / "more", classes=("ant", "bee", "dog"))
    with pytest.raises(DataError, match=r"cat.*dog"):
        evaluate.main([folder, f"data_dir={more}"])
    capsys.readouterr()
    evaluate.main([folder])
    assert capsys.readouterr().out.count(f" {result.test_error_final:.2f}%") == 2, "found again, and reported"


def test_unreadable_image_stops_the_run_and_is_named(pets, tmp_path):
    damage(pets, "train/bee/3.jpg")
    cfg = settings(pets, tmp_path)
    with pytest.raises(DataError, match=r"train/bee/3\.jpg.*dataset\.unreadable"):
        run(cfg)
    assert not (tmp_path / cfg.run_id / "result.json").exists()


def test_skipped_images_are_named_once_and_whole_batches_may_be_missing(pets, tmp_path, monkeypatch, capsys):
    """Two thirds of the images are damaged, so that some batches of two are empty."""
    names = [f"train/{name}/{number}.jpg" for name in CLASSES for number in range(8) if number % 3]
    damage(pets, *names, "val/cat/0.jpg")
    more = ("dataset.unreadable=skip", "recipe.batch_size=2", "dataset.workers=1", "dataset.mean=[0,0,0]")
    cfg = settings(pets, tmp_path, *more, "dataset.std=[1,1,1]")
    folder = tmp_path / cfg.run_id
    stopped_after(cfg, 14, monkeypatch)  # in the second epoch, which must not report the same images again
    run(cfg)
    listed = (folder / "unreadable.txt").read_text().splitlines()
    assert sorted(line.split(": ")[0] for line in listed) == sorted(
        str(pets / name) for name in [*names, "val/cat/0.jpg"]
    )
    assert "16" in capsys.readouterr().out.splitlines()[-3]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


# ------------------------------------------------------------------------------- a finished run and the data it was on


@pytest.fixture
def finished(pets, tmp_path):
    """Return the settings of a finished run, and its result."""
    cfg = on(pets, tmp_path)
    return cfg, run(cfg)


QUICK = ("recipe.epochs=1", "recipe.batch_size=12", "loss=ce", "dataset.workers=0")


def on(folder, tmp_path, *more):
    return settings(folder, tmp_path / "runs", *QUICK, *more)


def other_photographs(pets):
    for number in range(8):
        (pets / f"train/ant/{number}.jpg").write_bytes((pets / f"train/cat/{number}.jpg").read_bytes())


def other_names(pets):
    (pets / "val/ant/0.jpg").rename(pets / "val/ant/00.jpg")


def written(folder):
    """Return each file of a folder with the time at which it was written, and its number."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


@pytest.mark.parametrize("change", [renamed, one_more, other_photographs, other_names])
def test_finished_run_is_not_the_answer_for_other_data(finished, pets, tmp_path, change):
    cfg, result = finished
    change(pets)
    before = written(tmp_path / "runs" / cfg.run_id)
    with pytest.raises(DataError) as caught:
        run(cfg)
    assert written(tmp_path / "runs" / cfg.run_id) == before
    assert all(token in str(caught.value) for token in (cfg.run_id, "runs_dir=", "force=true"))
    again = run(on(pets, tmp_path, "force=true"))
    assert again.run_id == result.run_id
    assert len(list((tmp_path / "runs").iterdir())) == 2, "the finished run is kept under another name"
    assert run(cfg).test_error_final == again.test_error_final, "already done, on this data"


@pytest.mark.parametrize("change", [one_more, other_names])
def test_run_that_another_launch_has_finished_meanwhile_is_not_the_answer_for_other_data(
    finished, pets, tmp_path, monkeypatch, change
):
    cfg, result = finished
    monkeypatch.setattr("isda_repro.training.run.earlier_result", lambda *_: None)  # it looked too early
    assert run(cfg) == result
    change(pets)
    before = written(tmp_path / "runs" / cfg.run_id)
    with pytest.raises(DataError, match="force=true"):
        run(cfg)
    assert written(tmp_path / "runs" / cfg.run_id) == before


def test_result_of_a_finished_run_is_read_once(finished, monkeypatch):
    cfg, result = finished
    reader = Mock(side_effect=read_result)
    monkeypatch.setattr("isda_repro.training.run.CLASSIFIER", dataclasses.replace(CLASSIFIER, read_result=reader))
    assert run(cfg) == result
    reader.assert_called_once()


def test_finished_run_of_another_folder_of_the_same_name_is_refused(finished, pets, tmp_path):
    other = make_folder(tmp_path / "other" / "pets", train=8, val=4, extension="png")
    cfg = on(other, tmp_path)
    assert cfg.run_id == finished[0].run_id
    with pytest.raises(DataError, match="names or sizes"):
        run(cfg)


def test_finished_run_is_done_on_a_copy_elsewhere_and_without_the_data(finished, pets, tmp_path, capsys):
    result = finished[1]
    copy = shutil.copytree(pets, tmp_path / "copy" / "pets", copy_function=shutil.copyfile)  # with other times
    assert run(on(copy, tmp_path)) == result
    assert "comparing" not in capsys.readouterr().err
    for folder in (pets, copy):
        shutil.rmtree(folder)
        assert run(on(folder, tmp_path)) == result
        assert "without comparing its data" in capsys.readouterr().err


def test_finished_run_of_an_older_version_is_compared_by_what_its_result_says(finished, pets, tmp_path):
    cfg, result = finished
    environment = tmp_path / "runs" / cfg.run_id / "environment.json"
    recorded = json.loads(environment.read_text())
    numbers = {"classes", "train_images", "test_images", "train_digest", "test_digest", "mean", "std"}
    assert recorded["data"].keys() == numbers
    for content in (json.dumps({**recorded, "data": None}), "{", "[" * 100_000, '{"data": {"classes": 3}}'):
        environment.write_text(content)
        assert run(cfg) == result
    other_names(pets)
    assert run(cfg) == result
    environment.unlink()
    one_more(pets)
    with pytest.raises(DataError, match=r"24 .* 25"):
        run(cfg)


def test_finished_run_of_data_that_is_the_same_everywhere_does_not_load_it(tmp_path, monkeypatch):
    """For CIFAR, loading may mean a download."""
    digits = ["model=resnet8", "dataset=digits", "dataset.train_limit=64", "dataset.test_limit=20", "compute=cpu"]
    cfg = compose([*digits, "recipe.epochs=1", "recipe.batch_size=32", "tracking=none", f"runs_dir={tmp_path}"])
    result = run(cfg)
    monkeypatch.setattr(resume, "build", None)
    assert run(cfg) == result
    assert set(FIXED_DATA) == {compose([f"dataset={name}"]).dataset.source._target_ for name in FIXED}


FIXED = ("digits", "cifar10", "cifar100")


def test_resumed_run_is_compared_by_names_and_sizes_too(pets, tmp_path, monkeypatch):
    cfg = on(pets, tmp_path, "checkpoint.steps=1")
    stopped_after(cfg, 1, monkeypatch)
    other_photographs(pets)
    with pytest.raises(DataError, match="names or sizes"):
        run(cfg)


def test_run_counts_the_files_that_it_leaves_out(pets, tmp_path, capsys):
    for number in range(3):
        (pets / f"train/ant/{number}.jpg").rename(pets / f"train/ant/{number}.gif")
    run(on(pets, tmp_path))
    assert sum("3 .gif" in line for line in capsys.readouterr().out.splitlines()) == 1


def test_train_alone_is_enough_with_a_holdout(pets, tmp_path):
    shutil.rmtree(pets / "val")
    result = run(on(pets, tmp_path, "dataset.holdout=6"))
    assert (result.evaluated_on, result.train_images, result.test_images) == ("holdout", 18, 6)


@pytest.mark.parametrize("size", [None, 2**32])
def test_files_of_a_run_that_cannot_be_its_own_are_not_read(tmp_path, size):
    """Reading a pipe would wait for ever, and a large file would take all memory."""
    path = tmp_path / "unreadable.txt"
    if size is None:
        path.symlink_to(os.devnull)
    else:
        path.touch()
        os.truncate(path, size)
    for read in (lambda: UnreadableImages(tmp_path, Mock()), lambda: read_environment(path)):
        with pytest.raises(OSError, match=r"unreadable\.txt"):
            read()


def test_unreadable_images_of_any_name_are_listed_once_each_on_one_line(pets, tmp_path, monkeypatch):
    odd = [b"caf\xe9.jpg", b"new\nline.jpg", b"a % #.jpg", "\u2028.jpg".encode(), b"y" * 200 + b".jpg"]
    odd += [b"z.jpg" + number * b".jpg" for number in range(4)]  # one begins with another
    for name in odd:
        (pets / "train/bee" / os.fsdecode(name)).write_bytes(b"no image")
    cfg = settings(pets, tmp_path, "dataset.unreadable=skip", "dataset.workers=0", "checkpoint.steps=1")
    stopped_after(cfg, STEPS_PER_EPOCH + 5, monkeypatch)
    run(cfg)
    listed = (tmp_path / cfg.run_id / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == len(odd)
    assert all(line.startswith(str(pets / "train/bee")) for line in listed)
