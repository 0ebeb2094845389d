"""The scripts of Appendix C from the command line, on small finished runs of digits."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gan_runs import settings
from PIL import Image
from toys import FEATURES, LABELS, MEAN, NOISE, STD, mosaic, network, pixels_at_random, reversal

from isda_repro.config import compose
from isda_repro.data import Split
from isda_repro.errors import UserError
from isda_repro.gan.run import train_generator
from isda_repro.gan.sampling import pixels
from isda_repro.inversion import STEP_ONE, STEP_TWO, FeatureMap, Reversal, augmented, step_one, step_two
from isda_repro.inversion.directions import neighbours
from isda_repro.inversion.loading import load_reversal
from isda_repro.inversion.report import titled
from isda_repro.inversion.reversal import start_of
from isda_repro.sheets import arrange
from isda_repro.training.builders import build_loaders
from isda_repro.training.run import run

SMALL = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=100", "dataset.test_limit=50"),
    *("recipe.epochs=1", "recipe.batch_size=50", "tracking=none"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of a WGAN of classes 7 and 1, and of classifiers with ISDA and with cross-entropy."""
    folder = tmp_path_factory.mktemp("runs")
    generator = settings("wgan", folder, "gan.epochs=1")
    train_generator(generator)
    found = {"generator": folder / generator.run_id}
    for loss in ("isda", "ce"):
        cfg = compose([*SMALL, f"loss={loss}", f"runs_dir={folder}"])
        run(cfg)
        found[loss] = folder / cfg.run_id
    return found


@pytest.fixture(scope="module")
def loaded(runs):
    """Return the reversal of the WGAN and the ISDA classifier, and that classifier."""
    return load_reversal(runs["generator"], runs["isda"])


def both(runs, loss="isda"):
    return [f"generator={runs['generator']}", f"classifier={runs[loss]}"]


def images_in(path, row_count, column_count):
    """Return the part of a titled picture that holds the images, uint8 [3, H, W]."""
    with Image.open(path) as image:
        picture = torch.from_numpy(np.array(image.convert("RGB")))
    plain = arrange(torch.zeros(row_count, column_count, 3, 8, 8, dtype=torch.uint8))
    return picture.permute(2, 0, 1)[:, -plain.shape[1] :, -plain.shape[2] :]


def test_invert_uses_the_trained_covariances_and_the_settings_given(runs, loaded, load_script, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    more = ["count=3", "augmentations=2", "iterations=8", "eta=0.5", "lambda=3", "seed=4", f"output={output}"]
    load_script("invert").main([*both(runs), *more])
    record = json.loads((output / "inversion.json").read_text())
    assert (record["eta"], record["lambda"], record["seed"], record["part"]) == (0.5, 3, 4, "train")
    assert (record["generator"], record["classifier"]) == (runs["generator"].name, runs["isda"].name)
    for step, rate in (("step_one", 10), ("step_two", 1)):
        assert (record[step]["lr"], record[step]["iterations"]) == (rate, 8)
    case, classifier = loaded
    assert record["error"] == classifier.result.test_error_final
    numbers = torch.tensor([one["index"] for one in record["images"]])
    split = classifier.source.train
    features, labels = case.features.of_pixels(split.images[numbers]), split.targets[numbers]
    assert [one["class"] for one in record["images"]] == [str(label) for label in labels.tolist()]
    assert {*labels.tolist()} == {1, 7}
    moved = augmented(features, labels, classifier.isda.class_covariance, 3.0, draws=2, seed=4, numbers=numbers)
    expected = (moved - features[:, None]).square().sum(2)
    found = torch.tensor([one["step_two"]["moved"] for one in record["images"]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    picture = images_in(output / "inversion.png", 3, 4)
    assert torch.equal(picture, arrange(mosaic(picture, 8, 4)))
    assert torch.equal(mosaic(picture, 8, 4)[:, 0], split.images[numbers]), "originals first"
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1 ", "| 7 "))]
    assert len(rows) == 3
    assert set(rows) <= set((output / "inversion.md").read_text().splitlines())


def test_invert_is_repeatable_and_without_options_beside_the_classifier_with_its_own_lambda(runs, load_script):
    script, pictures = load_script("invert"), []
    for _ in range(2):
        script.main([*both(runs), "part=test", "count=2", "augmentations=1", "iterations=4"])
        pictures.append((runs["isda"] / "inversion.png").read_bytes())
    assert pictures[0] == pictures[1]
    found = json.loads((runs["isda"] / "inversion.json").read_text())
    assert (found["lambda"], found["part"], found["eta"]) == (0.5, "test", 0.01), "lambda_0 of its configuration"


@pytest.mark.parametrize(
    ("script", "wrongs"),
    [
        (
            "invert",
            "images=[100000] images=[7 part=holdout eta=-1 lambda=-1 iterations=2 at_once=0 augmentations=0 device=tpu "
            "generator=nowhere classifier=nowhere etta=1",
        ),
        ("inversion_grid", "at_once=0 seed=-1 eta=0.3 lambdas=[] lambdas=[-1]"),
        (
            "directions",
            "directions=0 directions=65 steps=[] steps=[nan,1] steps=[1,1] steps=[1001] lambda=-1 lambda=nan "
            "classes=[10] classes=[1,1] count=1000",
        ),
    ],
)
def test_option_that_cannot_be_is_named_and_nothing_is_written(runs, script, wrongs, load_script, tmp_path):
    main = load_script(script).main
    for wrong in wrongs.split():
        key, _, value = wrong.partition("=")
        folders = both(runs) if script != "directions" else both(runs)[1:]
        arguments = [one for one in folders if not one.startswith(f"{key}=")]
        with pytest.raises(
            UserError, match="lambda=-1" if wrong == "lambdas=[-1]" else value if value == "nowhere" else f"{key}="
        ):
            main([*arguments, f"output={tmp_path / 'none'}", wrong])
        assert not list(tmp_path.glob("none/*")), wrong


def test_runs_that_do_not_fit_each_other_are_named(runs, loaded, load_script, tmp_path):
    targets = loaded[1].source.train.targets
    other = next(index for index in range(100) if int(targets[index]) not in (1, 7))
    unfinished, of_others = tmp_path / "unfinished", tmp_path / "of_others"
    for folder, like in ((unfinished, "isda"), (of_others, "generator")):
        folder.mkdir()
        (folder / "config.yaml").write_bytes((runs[like] / "config.yaml").read_bytes())
    state = torch.load(runs["generator"] / "checkpoint.pt", weights_only=True)
    state["shape"]["num_classes"] = 9
    torch.save(state, of_others / "checkpoint.pt")
    for changed, named in (
        ([f"classifier={runs['ce']}"], "loss=ce"),
        ([f"generator={runs['isda']}"], runs["isda"].name),
        ([f"images=[{other}]"], rf"images=.*{other}.*class {targets[other]}"),
        ([f"classifier={unfinished}"], r"unfinished.checkpoint\.pt"),
        ([f"generator={of_others}"], "of_others"),
    ):
        kept = [one for one in both(runs) if not changed[0].startswith(one.partition("=")[0])]
        with pytest.raises(UserError, match=named):
            load_script("invert").main([*kept, *changed])


def test_grid_is_written_and_said(runs, load_script, tmp_path, capsys):
    more = ["etas=[0,0.1]", "lambdas=[0.5,1,2]", "eta=0.1", "count=2", "iterations=8", f"output={tmp_path}"]
    load_script("inversion_grid").main([*both(runs), *more])
    assert (tmp_path / "grid.md").read_text().startswith(capsys.readouterr().out)
    etas, lambdas = (
        mosaic(images_in(tmp_path / f"{name}.png", 2, n), 8, n) for name, n in (("etas", 3), ("lambdas", 5))
    )
    assert torch.equal(etas[:, 0], lambdas[:, 0]), "both begin with the originals"
    assert torch.equal(etas[:, 2], lambdas[:, 1]), "what was found with eta="


def close(one, other):
    """Return True if the pixels differ by rounding at most."""
    return (one.int() - other.int()).abs().max() <= 2


def test_grid_is_what_each_pair_gives_alone(load_script):
    script = load_script("inversion_grid")
    options = script.GridOptions("", "", "", etas=[0.0, 0.5, 2.0], lambdas=[1.0, 4.0], eta=0.5, iterations=8, seed=2)
    case, images, numbers = reversal(), pixels_at_random(4), torch.tensor([5, 6, 7, 8])
    covariances = {label: (1 + label) * torch.eye(FEATURES) / 10 for label in range(3)}
    how = {"at_once": 64, "advance": lambda *_: None}
    isda = SimpleNamespace(class_covariance=covariances.__getitem__)
    case.generator.generators = [one.float() for one in case.generator.generators]
    case = Reversal(case.generator, FeatureMap(network().float(), MEAN, STD))
    few = script.Few(case, images, LABELS, numbers, options, how["advance"])
    eta_lines, reconstructions, found = script.of_etas(few)
    lambda_lines, augmentations = script.of_lambdas(few, isda, found)
    start, features = start_of(numbers, NOISE, 2), case.features.of_pixels(images)
    for column, eta in enumerate(options.etas):
        z = step_one(case, images, LABELS, start, eta=eta, descent=replace(STEP_ONE, iterations=8), **how)
        assert close(reconstructions[:, column], pixels(case.images(z, LABELS)))
        distances = case.distances(z, LABELS, features, images / 127.5 - 1)
        means = [float(one.mean()) for one in distances]
        assert cells(eta_lines[2 + column]) == pytest.approx([eta, *means], rel=0.01)
        if eta == 0.5:
            torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-3)
    for column, strength in enumerate(options.lambdas):
        which = {"draws": 1, "seed": 2, "numbers": numbers}
        moved = augmented(features, LABELS, covariances.__getitem__, strength, **which)[:, 0]
        z = step_two(case, moved, LABELS, found, descent=replace(STEP_TWO, iterations=8), **how)
        assert close(augmentations[:, column], pixels(case.images(z, LABELS)))
        left = [float(case.second_objective(one, LABELS, moved).mean()) for one in (found, z)]
        far = float((moved - features).square().sum(1).mean())
        assert cells(lambda_lines[2 + column]) == pytest.approx([strength, far, *left], rel=0.01)


def cells(line):
    return [float(cell) for cell in line.strip("| ").split(" | ")]


def test_features_are_the_classifiers_and_both_networks_are_fixed(loaded):
    case, classifier = loaded
    _, batches = build_loaders(classifier.cfg, classifier.source, classifier.compute)
    images, _ = next(iter(batches.epoch(0)))
    with torch.no_grad():
        expected = classifier.network.eval()(images).features
    torch.testing.assert_close(case.features.of_pixels(classifier.source.test.images), expected, rtol=1e-4, atol=1e-5)
    networks = [classifier.network, *case.generator.generators]
    assert not any(weight.requires_grad for one in networks for weight in one.parameters())


def test_directions_are_those_of_the_images_class(runs, loaded, load_script, tmp_path, capsys):
    """Every row of a record equals ``neighbours`` for its image and the covariance of its class."""
    more = ["count=3", "classes=[1,4,7]", "directions=2", "steps=[2,-1,1]", f"output={tmp_path}"]
    load_script("directions").main([f"classifier={runs['isda']}", *more])
    record = json.loads((tmp_path / "directions.json").read_text())
    assert (record["lambda"], record["steps"], record["candidates"]) == (0.5, [-1, 1, 2], 100), "its lambda_0"
    case, classifier = loaded
    split = classifier.source.train
    features = case.features.of_pixels(split.images)
    assert [row["direction"] for row in record["rows"]] == 3 * [1, 2]
    assert {row["class"] for row in record["rows"]} == {"1", "4", "7"}
    for number, row in enumerate(record["rows"]):
        label, place = int(split.targets[row["index"]]), number % 2
        covariance = classifier.isda.class_covariance(label)
        how = {"directions": 2, "steps": [-1, 1, 2], "strength": 0.5}
        expected = neighbours(row["index"], features, covariance, **how)
        assert row["class"] == str(label)
        assert row["nearest"] == expected.indices[place].tolist()
        assert row["classes"] == [str(int(split.targets[one])) for one in row["nearest"]]
        assert row["share_of_variance"] == pytest.approx(float(expected.directions.share[place]))
        assert row["distance"] == pytest.approx(expected.distances[place].tolist(), rel=1e-4)
        assert row["moved"] == pytest.approx(expected.moved[place].tolist(), rel=1e-4)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1 ", "| 4 ", "| 7 "))]
    assert len(rows) == 6
    assert set(rows) <= set((tmp_path / "directions.md").read_text().splitlines())
    assert (tmp_path / "directions.png").exists()


def test_image_is_in_the_middle_and_framed_are_those_of_another_class(load_script):
    images = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    images[0] = 100
    split = Split(images, torch.tensor([0, 0, 1, 0]))
    row = {"index": 0, "nearest": [1, 2], "class": "a", "direction": 1}
    shown = load_script("directions").picture(split, [row], [-1.0, 1.0])
    framed = torch.tensor([[0, 0, 1]])
    expected = titled(images[None, [1, 0, 2]], ["-1", "image", "+1"], ["a 0, direction 1"], framed)
    wide = expected.shape[2] - arrange(images[None, :3]).shape[2]
    assert torch.equal(shown[:, :, -(expected.shape[2] - wide) :], expected[:, :, wide:])


def test_benchmark_measures_each_way_and_its_bar_can_be_missed(load_script, monkeypatch):
    script = load_script("benchmarks/gan/inversions")
    compute = script.resolve_compute(
        {**script.compose(["model=resnet32", "dataset=cifar10"]).compute, "precision": "fp32"}
    )
    monkeypatch.setattr(script, "LEAST_FACTOR", 1000)
    lines, (missed,) = script.report(compute, sizes=(1, 2), iterations=4, turns=1)
    rows = [line.split(" | ")[:2] for line in lines if line.startswith(("| 1 ", "| 2 "))]
    assert rows == [["| 1", "1"], ["| 2", "1"], ["| 2", "2"]]
    assert "1000" in missed
