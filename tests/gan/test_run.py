"""Generators from the frozen configuration to their folder."""

import json

import numpy as np
import pytest
import torch
from gan_runs import assert_same, killed_at, settings
from PIL import Image

from isda_repro.config import build
from isda_repro.errors import UserError
from isda_repro.gan import load_generator, trained_generator
from isda_repro.gan.run import GeneratorTraining, train_generator
from isda_repro.gan.steps import Steps
from isda_repro.gan.trainer import GanTrainer
from isda_repro.tables.from_wandb import results_offline
from isda_repro.tables.gathered import gather
from isda_repro.tables.generator_records import read_generator_result
from isda_repro.tables.offline_runs import offline_files, read_offline
from isda_repro.tables.sources import results_of_runs
from isda_repro.training.compute import resolve
from isda_repro.training.processes import ALONE


def test_what_is_left_behind(undisturbed):
    kind, folder = undisturbed
    result = read_generator_result(folder / "result.json")
    assert result.generators == (10 if kind == "wgan" else 1)
    assert result.epochs == 2
    steps = {"wgan": 2 * 10 * 2, "cgan": 2 * 20}.get(kind, 40)  # 200 images in batches of ten, or twenty of each class
    assert result.steps == steps
    assert result.generator_steps == (10 if kind == "wgan" else 40)  # its critics need 3 and then 2 of their 4 steps
    expected = {"discriminator_loss", "generator_loss", "real_score", "fake_score"}
    expected |= {"acgan": {"real_class_loss", "fake_class_loss"}, "infogan": {"code_loss"}}.get(kind, set())
    assert set(result.curves) == expected
    assert all(len(curve) == 2 for curve in result.curves.values())
    assert {path.name for path in (folder / "samples").iterdir()} == {"epoch-00001.png", "epoch-00002.png"}
    with Image.open(folder / "samples" / "epoch-00002.png") as picture:
        pixels = np.asarray(picture)
    side = 10 * (8 + 2) + 2
    assert pixels.shape == (8 * side, 8 * side, 3)
    assert {path.name for path in folder.iterdir()} >= {"losses.png", "losses.svg", "environment.json", "config.yaml"}
    assert not list(folder.glob("checkpoint-*"))


def test_tables_take_no_notice_of_generators(undisturbed):
    _, folder = undisturbed
    gathered = gather(results_of_runs(folder.parent))
    assert (gathered.records, gathered.problems) == ({}, [])


@pytest.mark.parametrize("step", [1, 2, 21, 40])
def test_training_that_was_killed_ends_as_if_it_had_not_been(step, tmp_path, monkeypatch, undisturbed):
    cfg = settings(undisturbed[0], tmp_path, "checkpoint.steps=1")
    killed_at(cfg, step, monkeypatch)
    result = train_generator(cfg)
    assert [segment["step"] for segment in result.segments] == [0, *([step - 1] if step > 1 else [])]
    assert_same(tmp_path / cfg.run_id, undisturbed[1])


def test_the_critics_weights_are_clipped_after_each_of_their_steps(tmp_path, monkeypatch):
    seen, original = [], Steps._of_generator

    def look(self, pair, *rest):
        seen.append(max(float(weight.detach().abs().max()) for weight in pair.discriminator.parameters()))
        return original(self, pair, *rest)

    monkeypatch.setattr(Steps, "_of_generator", look)
    cfg = settings("wgan", tmp_path, "gan.epochs=1", "gan.optimizer.lr=0.1", "gan.game.settling_steps=2")
    train_generator(cfg)
    assert len(seen) == 10
    assert max(seen) <= 0.01 + 1e-9
    state = torch.load(tmp_path / cfg.run_id / "checkpoint.pt", weights_only=True)["network"]
    for critic in state["discriminators"]:
        learnt = [value for name, value in critic.items() if "running" not in name and "num_batches" not in name]
        assert max(float(value.abs().max()) for value in learnt) <= 0.01 + 1e-9


def test_each_class_has_an_order_of_its_own(tmp_path):
    cfg = settings("wgan", tmp_path, "compute=cpu")
    learner = GeneratorTraining(cfg, build(cfg.dataset.source), resolve(cfg.compute), ALONE).learner
    assert {loader.num_samples for loader in learner.loaders} == {20}
    assert len({tuple(loader._order(1).tolist()) for loader in learner.loaders}) == 10


def test_some_classes_alone(tmp_path, monkeypatch):
    """In the order they are named; killed, they go on; and nobody trains a classifier on them."""
    some = ["gan.classes=[7,1]", "checkpoint.steps=1"]
    cfg, again = (settings("wgan", tmp_path / name, *some) for name in ("whole", "killed"))
    result = train_generator(cfg)
    assert (result.generators, result.train_images, result.steps) == (2, 40, 8)
    killed_at(again, 4, monkeypatch)
    train_generator(again)
    folder = tmp_path / "whole" / cfg.run_id
    assert_same(tmp_path / "killed" / again.run_id, folder)
    generator = load_generator(build(cfg.gan.game), folder / "checkpoint.pt", torch.device("cpu"))
    assert generator.classes == (7, 1)
    with Image.open(folder / "samples" / "epoch-00002.png") as picture:
        assert picture.height == 8 * (2 * (8 + 2) + 2), "two rows"
    with pytest.raises(UserError, match=r"has no generator for each class: train one without gan.classes="):
        trained_generator(folder, torch.device("cpu"), {"kind": "wgan"})


def test_one_pair_for_all_classes(tmp_path):
    cfg = settings("wgan", tmp_path, "gan.game.one_for_all=true")
    result = train_generator(cfg)
    assert (result.generators, result.train_images, result.steps) == (1, 200, 40)
    with pytest.raises(UserError, match=r"has no generator for each class"):
        trained_generator(tmp_path / cfg.run_id, torch.device("cpu"), {"kind": "wgan"})


def test_a_class_that_the_data_does_not_have(tmp_path):
    with pytest.raises(UserError, match=r"gan.classes=\[1, 10\]: the classes of digits are 0 0, 1 1, 2 2"):
        train_generator(settings("wgan", tmp_path, "gan.classes=[1,10]"))


def test_a_finished_one_is_not_trained_again_and_a_generator_is_no_classifier(undisturbed, capsys):
    kind, folder = undisturbed
    before = (folder / "result.json").stat().st_mtime_ns
    train_generator(settings(kind, folder.parent))
    assert "is already done" in capsys.readouterr().out
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_is_one_sentence_and_writes_nothing(tmp_path):
    cfg = settings("cgan", tmp_path, "gan.optimizer.lr=1e38")
    with pytest.raises(UserError, match=r"no longer finite at step \d+ \(epoch 1\): training stopped"):
        train_generator(cfg)
    lines = (tmp_path / cfg.run_id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["segment"]
    assert not (tmp_path / cfg.run_id / "checkpoint.pt").exists()


def test_training_images_alone_are_seen_and_not_those_that_are_held_out(tmp_path, monkeypatch):
    seen, original = [], GanTrainer._step

    def look(self, pair, images, *rest):
        seen.append(images.clone())
        return original(self, pair, images, *rest)

    monkeypatch.setattr(GanTrainer, "_step", look)
    cfg = settings("cgan", tmp_path, "dataset.holdout=300", "gan.epochs=1")
    train_generator(cfg)
    source = build(cfg.dataset.source)
    assert (source.evaluated_on, len(source.train)) == ("holdout", 200)

    def rows(images):
        return {tuple(row.tolist()) for row in images.flatten(1).round(decimals=4)}

    trained = rows(torch.cat(seen))
    assert trained == rows(source.train.images / 127.5 - 1)
    assert len(trained & rows(source.test.images / 127.5 - 1)) <= 1, "but for images that are there twice"


def test_wandb_has_the_curves_and_no_table_takes_a_generator_from_it(tmp_path):
    cfg = settings("acgan", tmp_path, "tracking=offline")
    result = train_generator(cfg)
    (path,) = offline_files(tmp_path)
    run = read_offline(path)
    assert (run.about["job_type"], run.about["run_group"], run.exit_code) == ("generator", "acgan-digits", 0)
    assert [row["generator_loss"] for row in run.rows] == pytest.approx(result.curves["generator_loss"])
    assert run.summary["generator_steps"] == result.generator_steps
    assert list(results_offline(tmp_path)) == []


def test_generators_are_loaded_again_and_damaged_ones_are_named(undisturbed, tmp_path):
    kind, folder = undisturbed
    cfg = settings(kind, folder.parent)
    generator = load_generator(build(cfg.gan.game), folder / "checkpoint.pt", torch.device("cpu"))
    images = generator.sample(torch.arange(10), torch.Generator().manual_seed(0))
    assert (images.shape, images.dtype) == ((10, 3, 8, 8), torch.uint8)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((folder / "checkpoint.pt").read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        load_generator(build(cfg.gan.game), path, torch.device("cpu"))
    torch.save({"epoch": 1, "network": {}}, path)
    with pytest.raises(UserError, match="holds no generator"):
        load_generator(build(cfg.gan.game), path, torch.device("cpu"))
