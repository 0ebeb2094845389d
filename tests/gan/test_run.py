"""Generator runs from the frozen configuration to their folder."""

import json

import pytest
import torch
from gan_runs import KINDS, assert_same, killed_at, settings
from PIL import Image

from isda_repro.config import build
from isda_repro.data import Source, Split
from isda_repro.errors import UserError
from isda_repro.gan import load_generator, trained_generator
from isda_repro.gan.run import build_gan_trainer, train_generator
from isda_repro.runs.from_wandb import results_offline
from isda_repro.runs.generator_records import read_generator_result
from isda_repro.runs.offline_runs import offline_files, read_offline
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_of_runs
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS

CPU = torch.device("cpu")
CURVES = {"discriminator_loss", "generator_loss", "real_score", "fake_score"}
MORE_CURVES = {"acgan": {"real_class_loss", "fake_class_loss"}, "infogan": {"code_loss"}}


def learner_of(cfg, source=None):
    return build_gan_trainer(cfg, source or build(cfg.dataset.source), resolve_compute(cfg.compute), SINGLE_PROCESS)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_finished_run_has_its_result_its_pictures_and_generators_that_can_be_loaded(kind, undisturbed):
    folder, wgan = undisturbed(kind), kind == "wgan"
    result = read_generator_result(folder / "result.json")
    assert (result.epochs, result.train_images, result.generators) == ((2, 20, 2) if wgan else (2, 100, 1))
    # WGAN: batches of 5 of each class's 10 images; its critics take 3, then 2 of their 4 steps. Others: batches of 10.
    assert (result.steps, result.generator_steps) == ((8, 2) if wgan else (20, 20))
    assert set(result.curves) == CURVES | MORE_CURVES.get(kind, set())
    assert all(len(curve) == 2 for curve in result.curves.values())
    assert {path.name for path in (folder / "samples").iterdir()} == {"epoch-00001.png", "epoch-00002.png"}
    with Image.open(folder / "samples" / "epoch-00002.png") as picture:
        assert round(picture.width / picture.height) == (5 if wgan else 1), "rows of ten images"
    assert {path.name for path in folder.iterdir()} >= {"losses.png", "losses.svg", "environment.json", "config.yaml"}
    assert not list(folder.glob("checkpoint-*"))
    gathered = index_results(results_of_runs(folder.parent))
    assert (gathered.records, gathered.problems) == ({}, []), "tables take no notice of generators"

    game = build(settings(kind, folder.parent).gan.game)
    generator = load_generator(game, folder / "checkpoint.pt", CPU)
    assert generator.classes == ((7, 1) if wgan else tuple(range(10)))
    images = generator.sample(torch.tensor([1, 7]), torch.Generator().manual_seed(0))
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.uint8)
    assert result.parameters == sum(one.numel() for network in generator.generators for one in network.parameters())


@pytest.mark.parametrize(
    ("kind", "step"), [("wgan", 1), ("wgan", 2), ("wgan", 3), ("wgan", 8), ("acgan", 2), ("acgan", 13), ("infogan", 20)]
)
def test_run_that_was_killed_ends_as_if_it_had_not_been(kind, step, tmp_path, monkeypatch, undisturbed):
    cfg = settings(kind, tmp_path, f"checkpoint.steps={max(1, step - 1)}")
    killed_at(cfg, step, monkeypatch)
    result = train_generator(cfg)
    assert [segment["step"] for segment in result.segments] == [0, *([step - 1] if step > 1 else [])]
    assert_same(tmp_path / cfg.run_id, undisturbed(kind))


def test_finished_run_is_not_trained_again(undisturbed):
    folder = undisturbed("cgan")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = train_generator(settings("cgan", folder.parent))
    assert result == read_generator_result(folder / "result.json")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_generators_of_some_classes_or_of_no_class_serve_no_classifier(undisturbed, tmp_path):
    with pytest.raises(UserError, match=r"gan\.classes="):
        trained_generator(undisturbed("wgan"), CPU, {"kind": "wgan"})
    all_in_one = ["gan.classes=null", "gan.game.one_for_all=true", "gan.epochs=1", "gan.batch_size=20"]
    cfg = settings("wgan", tmp_path, *all_in_one)
    result = train_generator(cfg)
    assert (result.generators, result.train_images, result.steps) == (1, 100, 5)
    with pytest.raises(UserError, match="one_for_all="):
        trained_generator(tmp_path / cfg.run_id, CPU, {"kind": "wgan"})


@pytest.mark.parametrize("key", ["kind", "dataset", "train_limit", "holdout", "imbalance"])
def test_generators_of_another_kind_or_other_images_than_are_wanted_are_refused(undisturbed, key):
    here = {"kind": "cgan", "dataset": "digits", "train_limit": 100, "holdout": None, "imbalance": None}
    assert trained_generator(undisturbed("cgan"), CPU, here).num_classes == 10
    with pytest.raises(UserError, match=f"{undisturbed('cgan').name}.*{key}.*other"):
        trained_generator(undisturbed("cgan"), CPU, {**here, key: "other"})


def numbered(images_of_each):
    """Return ten interleaved classes whose pixels are the image's index in its class; the right half is white."""
    count = 10 * images_of_each
    images = (torch.arange(count, dtype=torch.uint8) // 10)[:, None, None, None].repeat(1, 3, 8, 8)
    images[..., 4:] = 255
    split = Split(images, torch.arange(count) % 10)
    return Source("digits", split, split, 10, tuple("0123456789"))


def test_each_class_is_learnt_from_its_own_images_in_an_order_of_its_own(tmp_path):
    learner = learner_of(settings("wgan", tmp_path, "gan.classes=null"), numbered(20))
    orders = []
    for label, loader in enumerate(learner.loaders):
        images, targets = (torch.cat(parts) for parts in zip(*loader.epoch(1), strict=True))
        assert (targets == label).all()
        assert (images[..., 4:] == 1).all(), "white is 1, and nothing is mirrored"
        orders.append(tuple(((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()))
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({*orders}) == 10
    weights = [pair.generator.layers[0].weight.detach() for pair in learner.pairs]
    assert len({float(one.sum()) for one in weights}) == 10, "each begins elsewhere"
    (seven,) = learner_of(settings("wgan", tmp_path, "gan.classes=[7]"), numbered(20)).pairs
    assert torch.equal(seven.generator.layers[0].weight, weights[7])
    other = learner_of(settings("wgan", tmp_path, "seed=1"), numbered(20)).pairs[0]
    assert not torch.equal(other.generator.layers[0].weight, weights[7])


def test_flip_mirrors_half_of_the_images(tmp_path):
    (loader,) = learner_of(settings("cgan", tmp_path, "gan.flip=true"), numbered(20)).loaders
    mirrored = torch.cat([images[:, 0, 0, 0] == 1 for images, _ in loader.epoch(1)])
    assert 60 < mirrored.sum() < 140, "of 200"


def test_images_done_count_what_batches_held(tmp_path):
    """Seven images of each class in batches of five, so that every second batch has two."""
    learner = learner_of(settings("wgan", tmp_path, "gan.classes=null"), numbered(7))
    sizes = [len(targets) for epoch in (1, 2) for loader in learner.loaders for _, targets in loader.epoch(epoch)]
    assert learner.steps_per_epoch == 20
    for learner.step in range(len(sizes) + 1):
        assert learner.images_done == sum(sizes[: learner.step])


def test_training_sees_the_training_images_and_not_those_that_are_held_out(tmp_path):
    cfg = settings("cgan", tmp_path, "dataset.holdout=300")
    source = build(cfg.dataset.source)
    assert (source.evaluated_on, len(source.train)) == ("holdout", 100)

    def rows(images):
        return {tuple(row.tolist()) for row in images.flatten(1).round(decimals=4)}

    (loader,) = learner_of(cfg, source).loaders
    trained = rows(torch.cat([images for images, _ in loader.epoch(1)]))
    assert trained == rows(source.train.images / 127.5 - 1)
    assert len(trained & rows(source.test.images / 127.5 - 1)) <= 1, "but for images that are there twice"


@pytest.mark.parametrize("classes", [[1, 10], [10]])
def test_class_that_the_data_does_not_have_is_named(tmp_path, classes):
    cfg = settings("wgan", tmp_path, f"gan.classes={classes}")
    with pytest.raises(UserError, match=r"gan\.classes=.*10.*digits"):
        train_generator(cfg)
    assert not (tmp_path / cfg.run_id).exists()


def test_loss_that_is_not_finite_stops_the_run_at_once_and_writes_no_weights(tmp_path):
    cfg = settings("cgan", tmp_path, "gan.optimizer.lr=1e38")
    with pytest.raises(UserError, match=r"step [1-3] .*gan\.optimizer\.lr"):
        train_generator(cfg)
    lines = (tmp_path / cfg.run_id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["segment"]
    assert not list((tmp_path / cfg.run_id).glob("checkpoint*"))


def test_optimizer_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gan\.optimizer"):
        train_generator(settings("cgan", tmp_path, "gan.optimizer.betas=[0.5]"))


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_state_with_a_weight_that_is_not_finite_is_not_saved(tmp_path, which):
    learner = learner_of(settings("wgan", tmp_path))
    assert learner.state_dict()["epoch"] == 0
    next(getattr(learner.pairs[1], which).parameters()).data[0] = torch.inf
    with pytest.raises(UserError, match=r"gan\.optimizer\.lr"):
        learner.state_dict()


def test_wandb_has_the_curves_and_no_table_takes_a_generator_from_it(tmp_path):
    result = train_generator(settings("acgan", tmp_path, "tracking=offline", "gan.epochs=1"))
    (path,) = offline_files(tmp_path)
    run = read_offline(path)
    assert (run.about["job_type"], run.about["run_group"], run.exit_code) == ("generator", "acgan-digits", 0)
    assert [row["generator_loss"] for row in run.rows] == pytest.approx(result.curves["generator_loss"])
    assert run.summary["generator_steps"] == result.generator_steps
    assert run.summary["total/train"] == pytest.approx(result.timing["train"])
    assert list(results_offline(tmp_path)) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "of other classes"])
def test_checkpoint_that_is_damaged_or_of_something_else_is_named(undisturbed, tmp_path, damage):
    whole, path = undisturbed("cgan") / "checkpoint.pt", tmp_path / "checkpoint.pt"
    if damage == "cut":
        path.write_bytes(whole.read_bytes()[:-100])
    else:
        state = torch.load(whole, weights_only=True)
        shape = {**state["shape"], "num_classes": 9}
        torch.save({"epoch": 1, "network": {}} if damage == "empty" else {**state, "shape": shape}, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        load_generator(build(settings("cgan", tmp_path).gan.game), path, CPU)
