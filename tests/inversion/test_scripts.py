"""The scripts from the command line, on small finished runs of digits."""

import json

import pytest
from gan_runs import settings
from PIL import Image

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.gan.run import train_generator
from isda_repro.inversion.loading import load_reversal
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


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("eta=0.3", r"eta=0.3 must be one of etas="),
        ("lambdas=[]", "lambdas= must have some"),
        ("lambdas=[-1]", "from 0 on"),
    ],
)
def test_a_grid_that_cannot_be(runs, wrong, sentence, load_script, tmp_path):
    with pytest.raises(UserError, match=sentence):
        load_script("inversion_grid").main([*both(runs), f"output={tmp_path}", wrong])


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
    assert "among all 200 train images; λ = 3" in (tmp_path / "directions.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("directions=0", "directions=0 must be a whole number from 1 to 64"),
        ("directions=65", "directions=65 must be a whole number from 1 to 64"),
        ("steps=[]", "has no step"),
        ("lambda=-1", "lambda=-1.0 must be a number from 0 on"),
        ("classes=[10]", r"classes=\[10\]: there are classes 0 to 9"),
        ("count=1000", "count=1000, but there are 200 images"),
    ],
)
def test_directions_that_cannot_be(runs, wrong, sentence, load_script, tmp_path):
    with pytest.raises(UserError, match=sentence):
        load_script("directions").main([f"classifier={runs['isda']}", f"output={tmp_path}", wrong])


def test_the_benchmark_measures_and_its_bar_can_be_missed(load_script, capsys):
    script = load_script("benchmark_inversion")
    compute = script.resolve({**script.compose(["model=resnet32", "dataset=cifar10"]).compute, "precision": "fp32"})
    lines, _ = script.report(script.Options(sizes=[1, 2], iterations=4, turns=1), compute)
    rows = [line for line in lines if line.startswith(("| 1 ", "| 2 "))]
    assert len(rows) == 2
    assert float(rows[0].split("|")[4]) == 1
    _, missed = script.report(script.Options(sizes=[1], iterations=4, turns=1), compute)
    assert missed == ["1.00 times the images a minute, and not 1.5"]
