"""The scripts from the command line, on small finished runs of digits."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gan_runs import settings
from PIL import Image
from toys import FEATURES, LABELS, MEAN, NOISE, STD, network, pixels_at_random, reversal

from isda_repro.config import compose
from isda_repro.data import Split
from isda_repro.errors import UserError
from isda_repro.gan.run import train_generator
from isda_repro.gan.sampling import pixels
from isda_repro.inversion import STEP_ONE, STEP_TWO, FeatureMap, Reversal, augmented, step_one, step_two
from isda_repro.inversion.directions import neighbours
from isda_repro.inversion.loading import load_reversal
from isda_repro.inversion.pictures import titled
from isda_repro.inversion.reversal import start_of
from isda_repro.training.parts import build_loaders
from isda_repro.training.run import run

SMALL = [
    *("model=resnet20", "model.depth=8", "dataset=digits", "dataset.train_limit=200", "dataset.test_limit=50"),
    *("recipe.epochs=1", "tracking=none"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A WGAN of classes 1 and 7, and classifiers with ISDA, with diagonal covariances and with cross-entropy."""
    folder = tmp_path_factory.mktemp("runs")
    generator = settings("wgan", folder, "gan.classes=[7,1]", "gan.epochs=1")
    train_generator(generator)
    losses = {"isda": ["loss=isda"], "diagonal": ["loss=isda", "loss.covariance=diagonal"], "ce": ["loss=ce"]}
    found = {"generator": folder / generator.run_id}
    for name, loss in losses.items():
        cfg = compose([*SMALL, *loss, f"runs_dir={folder}"])
        run(cfg)
        found[name] = folder / cfg.run_id
    return found


def both(runs, loss="isda"):
    return [f"generator={runs['generator']}", f"classifier={runs[loss]}"]


def picture_size(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("loss", ["isda", "diagonal"])
def test_invert(runs, loss, load_script, tmp_path, capsys):
    script, output = load_script("invert"), tmp_path / "new" / "folder"
    more = ["count=3", "augmentations=2", "iterations=8", "eta=0.5", "lambda=2", f"output={output}"]
    script.main([*both(runs, loss), *more])
    said = capsys.readouterr().out
    found = json.loads((output / "inversion.json").read_text())
    assert (found["eta"], found["lambda"], found["generator"]) == (0.5, 2, runs["generator"].name)
    assert found["classifier"] == runs[loss].name
    assert sorted({one["class"] for one in found["images"]}) == ["1", "7"]
    for image in found["images"]:
        assert f"| {image['class']} {image['index']} | " in said, "how far both objectives fell, image by image"
        assert set(image["step_one"]["start"]) == {"features", "pixels", "objective"}
        assert len(image["step_two"]["after"]) == 2
    width, height = picture_size(output / "inversion.png")
    assert width > 4 * 64
    assert height > 3 * 64
    page = (output / "inversion.md").read_text()
    assert "8 iterations of each step, rates 10 and 1" in page
    assert said.splitlines()[2] in page


def test_invert_puts_it_beside_the_classifier_with_its_own_lambda(runs, load_script):
    load_script("invert").main([*both(runs), f"images=[{first_of(runs)}]", "augmentations=1", "iterations=4"])
    found = json.loads((runs["isda"] / "inversion.json").read_text())
    assert found["lambda"] == 0.5, "lambda_0 of its configuration"
    assert found["part"] == "train"


def label_of(runs, index):
    _, classifier = load_reversal(runs["generator"], runs["isda"])
    return int(classifier.source.train.targets[index])


def first_of(runs):
    """The first training image that is a 1 or a 7."""
    return next(index for index in range(200) if label_of(runs, index) in (1, 7))


def test_the_same_command_gives_the_same_picture(runs, load_script, tmp_path):
    script, pictures = load_script("invert"), []
    for name in ("one", "other"):
        script.main([*both(runs), "count=2", "augmentations=1", "iterations=8", f"output={tmp_path / name}"])
        pictures.append((tmp_path / name / "inversion.png").read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("images=[100000]", "images= has 100000, and there are images 0 to 199"),
        ("part=holdout", "part=holdout must be one of train, test"),
        ("eta=-1", "eta=-1.0 must be a number from 0 on"),
        ("lambda=-1", "lambda=-1.0 must be a number from 0 on"),
        ("iterations=2", "iterations=2 must be a whole number from 4 on"),
        ("at_once=0", "at_once=0 must be a whole number from 1 on"),
        ("augmentations=0", "augmentations=0 must be a whole number from 1 on"),
        ("device=tpu", "device=tpu must be one of auto, cpu, gpu"),
        ("generator=nowhere", "nowhere.config.yaml cannot be read"),
        ("classifier=nowhere", r"nowhere is not a run's folder \(it has no config.yaml\)"),
        ("etta=1", "unknown option etta="),
        ("images=[7", r"images= takes a list: images=\[1,2\]"),
    ],
)
def test_a_mistake_is_one_sentence(runs, wrong, sentence, load_script, tmp_path):
    key = wrong.partition("=")[0]
    arguments = [one for one in both(runs) if not one.startswith(f"{key}=")]
    with pytest.raises(UserError, match=sentence):
        load_script("invert").main([*arguments, f"output={tmp_path / 'none'}", wrong])
    assert not list(tmp_path.glob("none/*"))


def test_what_does_not_fit_each_other(runs, load_script, tmp_path):
    script = load_script("invert")
    with pytest.raises(UserError, match="has loss=ce, and this needs the covariances of loss=isda"):
        script.main(both(runs, "ce"))
    with pytest.raises(UserError, match="is not a frozen run of generators"):
        script.main([f"generator={runs['isda']}", f"classifier={runs['isda']}"])
    other = next(index for index in range(200) if label_of(runs, index) not in (1, 7))
    with pytest.raises(UserError, match=r"images= has \d+, of class \d: this is for images of classes \[7, 1\]"):
        script.main([*both(runs), f"images=[{other}]"])
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((runs["isda"] / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"checkpoint.pt does not exist: has the run finished"):
        script.main([f"generator={runs['generator']}", f"classifier={unfinished}"])


def test_the_grid_of_eta_and_lambda(runs, load_script, tmp_path, capsys):
    more = ["etas=[0,0.1]", "lambdas=[0.5,1,2]", "eta=0.1", "count=2", "iterations=8", f"output={tmp_path}"]
    load_script("inversion_grid").main([*both(runs), *more])
    said = capsys.readouterr().out
    assert said == (tmp_path / "grid.md").read_text()
    rows = [line.split(" | ")[0] for line in said.splitlines() if line.startswith("| ")]
    assert rows == ["| η", "| ---:", "| 0", "| 0.1", "| λ", "| ---:", "| 0.5", "| 1", "| 2"]
    assert picture_size(tmp_path / "etas.png") != picture_size(tmp_path / "lambdas.png")


def test_the_grid_is_what_each_pair_gives_alone(load_script):
    script = load_script("inversion_grid")
    options = script.GridOptions("", "", "", etas=[0.0, 0.5, 2.0], lambdas=[1.0, 4.0], eta=0.5, iterations=8, seed=2)
    case, images, numbers = reversal(), pixels_at_random(4), torch.tensor([5, 6, 7, 8])
    covariances = {label: (1 + label) * torch.eye(FEATURES) / 10 for label in range(3)}
    how = {"at_once": 64, "advance": lambda *_: None}
    isda = SimpleNamespace(class_covariance=covariances.__getitem__)
    case.generator.generators = [one.float() for one in case.generator.generators]
    case = Reversal(case.generator, FeatureMap(network().float(), MEAN, STD))
    few = script.Few(case, images, LABELS, numbers, options, how["advance"])
    _, reconstructions, found = script.of_etas(few)
    _, augmentations = script.of_lambdas(few, isda, found)
    start = start_of(numbers, NOISE, 2)
    for column, eta in enumerate(options.etas):
        z = step_one(case, images, LABELS, start, eta=eta, descent=replace(STEP_ONE, iterations=8), **how)
        assert close(reconstructions[:, column], pixels(case.images(z, LABELS)))
        if eta == 0.5:
            torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-3)
    features = case.features.of_pixels(images)
    for column, strength in enumerate(options.lambdas):
        which = {"draws": 1, "seed": 2, "numbers": numbers}
        moved = augmented(features, LABELS, covariances.__getitem__, strength, **which)[:, 0]
        z = step_two(case, moved, LABELS, found, descent=replace(STEP_TWO, iterations=8), **how)
        assert close(augmentations[:, column], pixels(case.images(z, LABELS)))


def close(one, other):
    """But for rounding."""
    return (one.int() - other.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("at_once=0", "at_once=0 must be a whole number from 1 on"),
        ("seed=-1", "seed=-1 must be a whole number from 0 on"),
        ("eta=0.3", r"eta=0.3 must be one of etas="),
        ("lambdas=[]", "lambdas= must have some"),
        ("lambdas=[-1]", "from 0 on"),
    ],
)
def test_a_grid_that_cannot_be(runs, wrong, sentence, load_script, tmp_path):
    with pytest.raises(UserError, match=sentence):
        load_script("inversion_grid").main([*both(runs), f"output={tmp_path}", wrong])


def test_f_is_the_classifiers_and_both_networks_are_fixed(runs):
    case, classifier = load_reversal(runs["generator"], runs["isda"])
    _, batches = build_loaders(classifier.cfg, classifier.source, classifier.compute)
    images, _ = next(iter(batches.epoch(0)))
    with torch.no_grad():
        expected = classifier.network.eval()(images).features
    torch.testing.assert_close(case.features.of_pixels(classifier.source.test.images), expected, rtol=1e-4, atol=1e-5)
    networks = [classifier.network, *case.generator.generators]
    assert not any(weight.requires_grad for one in networks for weight in one.parameters())


def test_invert_uses_the_trained_covariances_and_the_settings_given(runs, load_script, tmp_path):
    more = ["count=2", "augmentations=2", "iterations=8", "lambda=3", "seed=4", f"output={tmp_path}"]
    load_script("invert").main([*both(runs), *more])
    record = json.loads((tmp_path / "inversion.json").read_text())
    assert (record["step_one"]["lr"], record["step_two"]["lr"], record["seed"]) == (10, 1, 4)
    case, classifier = load_reversal(runs["generator"], runs["isda"])
    numbers = torch.tensor([one["index"] for one in record["images"]])
    split = classifier.source.train
    features, labels = case.features.of_pixels(split.images[numbers]), split.targets[numbers]
    covariance = classifier.isda.class_covariance
    moved = augmented(features, labels, covariance, 3.0, draws=2, seed=4, numbers=numbers)
    expected = (moved - features[:, None]).square().sum(2)
    found = torch.tensor([one["step_two"]["moved"] for one in record["images"]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_generators_of_other_images(runs, tmp_path):
    for name in ("config.yaml", "result.json"):
        (tmp_path / name).write_bytes((runs["generator"] / name).read_bytes())
    state = torch.load(runs["generator"] / "checkpoint.pt", weights_only=True)
    state["shape"]["num_classes"] = 9
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="makes images of another kind than those of digits: train one on these"):
        load_reversal(tmp_path, runs["isda"])


def test_directions_are_those_of_the_images_class(runs, load_script, tmp_path):
    more = ["count=3", "classes=[1,4,7]", "directions=2", f"output={tmp_path}"]
    load_script("directions").main([f"classifier={runs['isda']}", *more])
    record = json.loads((tmp_path / "directions.json").read_text())
    assert record["lambda"] == 0.5, "its lambda_0"
    case, classifier = load_reversal(runs["generator"], runs["isda"])
    split = classifier.source.train
    features = case.features.of_pixels(split.images)
    for row in record["rows"][::2]:
        label = int(split.targets[row["index"]])
        covariance = classifier.isda.class_covariance(label)
        expected = neighbours(
            row["index"], features, covariance, directions=2, steps=[-3, -2, -1, 1, 2, 3], strength=0.5
        )
        assert row["nearest"] == expected.indices[0].tolist()
        assert row["share_of_variance"] == pytest.approx(float(expected.directions.share[0]))


def test_framed_are_those_of_another_class(load_script):
    images = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 0, 1, 0]))
    row = {"index": 0, "nearest": [1, 2], "class": "a", "direction": 1}
    shown = load_script("directions").picture(split, [row], [-1.0, 1.0])
    assert torch.equal(
        shown, titled(images[None, :3], ["-1", "image", "+1"], ["a 0, direction 1"], torch.tensor([[0, 0, 1]]))
    )


@pytest.mark.parametrize("loss", ["isda", "diagonal"])
def test_directions(runs, loss, load_script, tmp_path, capsys):
    more = ["count=2", "classes=[4]", "directions=2", "steps=[2,-1,1]", "lambda=3", f"output={tmp_path}"]
    load_script("directions").main([f"classifier={runs[loss]}", *more])
    found = json.loads((tmp_path / "directions.json").read_text())
    assert found["steps"] == [-1, 1, 2]
    assert [(row["class"], row["direction"]) for row in found["rows"]] == [("4", 1), ("4", 2), ("4", 1), ("4", 2)]
    for row in found["rows"]:
        assert row["index"] not in row["nearest"]
        near, mid, far = row["moved"]
        assert near == pytest.approx(mid)
        assert far == pytest.approx(2 * mid)
    assert found["rows"][0]["share_of_variance"] > found["rows"][1]["share_of_variance"]
    said = capsys.readouterr().out
    assert said.count("| 4 ") == 4
    assert picture_size(tmp_path / "directions.png")[1] > 4 * 64
    assert "among all 200 images of its train set; λ = 3" in (tmp_path / "directions.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("directions=0", "directions=0 must be a whole number from 1 to 64"),
        ("directions=65", "directions=65 must be a whole number from 1 to 64"),
        ("steps=[]", r"steps=\[\] must be some numbers from -1000 to 1000, each once"),
        ("steps=[nan,1]", "must be some numbers from -1000 to 1000, each once"),
        ("steps=[1,1]", "must be some numbers from -1000 to 1000, each once"),
        ("lambda=-1", "lambda=-1.0 must be a number from 0 to"),
        ("lambda=nan", "lambda=nan must be a number from 0 to"),
        ("classes=[10]", r"classes=\[10\] must be some of 0 to 9, each once"),
        ("classes=[1,1]", r"classes=\[1, 1\] must be some of 0 to 9, each once"),
        ("count=1000", "count=1000, but there are 200 images"),
    ],
)
def test_directions_that_cannot_be(runs, wrong, sentence, load_script, tmp_path):
    with pytest.raises(UserError, match=sentence):
        load_script("directions").main([f"classifier={runs['isda']}", f"output={tmp_path}", wrong])


def test_the_benchmark_measures_and_its_bar_can_be_missed(load_script):
    script = load_script("benchmark_inversion")
    compute = script.resolve({**script.compose(["model=resnet32", "dataset=cifar10"]).compute, "precision": "fp32"})
    lines, _ = script.report(compute, sizes=(1, 2), iterations=4, turns=1)
    rows = [line.split(" | ")[:2] for line in lines if line.startswith(("| 1 ", "| 2 "))]
    assert rows == [["| 1", "1"], ["| 2", "1"], ["| 2", "2"]]
    assert any("differ by" in line for line in lines)
    script.LEAST_FACTOR = 1000
    _, (missed,) = script.report(compute, sizes=(1,), iterations=4, turns=1)
    assert missed.endswith("times the images a minute, and not 1000")
