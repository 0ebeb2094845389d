"""The scripts of generators: training, quality, and the page that shows them all."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from gan_runs import SHORT, settings

from isda_repro.config import build, compose, compose_generator
from isda_repro.errors import UserError
from isda_repro.evaluation import load_finished_run
from isda_repro.gan import load_generator
from isda_repro.gan.quality import judge_by, judged
from isda_repro.training.builders import build_loaders
from isda_repro.training.run import run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return the folder of a classifier that was trained for one epoch on 100 digits."""
    folder = tmp_path_factory.mktemp("classifier")
    digits = ["dataset=digits", "dataset.train_limit=100", "dataset.test_limit=50"]
    cfg = compose(
        ["model=resnet20", "model.depth=8", *digits, "recipe.epochs=1", "tracking=none", f"runs_dir={folder}"]
    )
    run(cfg)
    return folder / cfg.run_id


def test_quality_is_judged_by_the_classifier_on_its_images_of_the_generators_classes(
    classifier, undisturbed, load_script
):
    folder = undisturbed("wgan")  # has classes 7 and 1
    load_script("gan_quality").main([f"generator={folder}", f"classifier={classifier}", "images=20"])
    found = json.loads((folder / "quality.json").read_text())
    assert (found["generator"], found["classifier"], found["images"]) == (folder.name, classifier.name, 20)
    finished = load_finished_run(classifier)
    _, loader = build_loaders(finished.cfg, finished.source, finished.compute)
    ((images, targets),) = loader.epoch(0)
    ours = torch.isin(targets, torch.tensor([1, 7]))
    of_real = judged(judge_by(finished.network, lambda images: images), iter([(images[ours], targets[ours])]), 10)
    assert found["real_images"] == "test"
    of_classes = {one: of_real.accuracy_by_class[int(one)] for one in "71"}
    assert found["accuracy_of_real_by_class"] == pytest.approx(of_classes)
    assert found["frechet_distance_in_own_features"] > found["frechet_distance_of_training_images"] >= 0


@pytest.mark.parametrize(
    ("override", "named"),
    [("images=1", "images=1"), ("classifier=nowhere", "nowhere"), ("generator=nowhere", "nowhere")],
)
def test_quality_names_what_it_cannot_use(classifier, undisturbed, load_script, override, named):
    key = override.partition("=")[0]
    folders = {"generator": undisturbed("cgan"), "classifier": classifier}
    arguments = [f"{name}={folder}" for name, folder in folders.items() if name != key]
    with pytest.raises(UserError, match=named):
        load_script("gan_quality").main([*arguments, override])


def test_gallery_has_each_generators_picture_its_figures_and_the_command_that_trains_it(
    classifier, undisturbed, load_script, tmp_path
):
    folders = [undisturbed(kind) for kind in ("acgan", "cgan")]
    for folder in folders:
        load_script("gan_quality").main([f"generator={folder}", f"classifier={classifier}", "images=20"])
    output = tmp_path / "new" / "page.md"
    load_script("gan_gallery").main([f"runs=[{folders[0]},{folders[1]}]", f"output={output}"])
    page = output.read_text()
    for kind, folder in zip(("acgan", "cgan"), folders, strict=True):
        quality = json.loads((folder / "quality.json").read_text())
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {kind} |"))
        for name in ("frechet_distance_in_own_features", "frechet_distance_of_training_images"):
            assert f"{quality[name]:.3f}" in row
        copy = output.with_name(f"page_{kind}.png")
        assert copy.read_bytes() == (folder / "samples" / "epoch-00002.png").read_bytes()
        assert copy.name in page
    commands = [shlex.split(line.strip("`")) for line in page.splitlines() if "train_gan.py" in line]
    assert [compose_generator(words[2:]).run_id for words in commands] == [folder.name for folder in folders]


def test_gallery_names_what_is_missing_or_double(undisturbed, load_script, tmp_path):
    script, folder = load_script("gan_gallery"), tmp_path / "a"
    folder.mkdir()
    (folder / "result.json").write_bytes((undisturbed("cgan") / "result.json").read_bytes())
    with pytest.raises(UserError, match=r"quality\.json"):
        script.main([f"runs=[{folder}]", f"output={tmp_path / 'page.md'}"])
    with pytest.raises(UserError, match="runs="):
        script.main(["runs=[]", f"output={tmp_path / 'page.md'}"])


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("quality.json", b'"accuracy": 1', b'"accuracy": "1"'),
        ("quality.json", b"_of_training_images", b"_of_others"),
        ("quality.json", b'"images": 20', b'"images": NaN'),
        ("quality.json", b"{", b"[" * 20_000),
        ("result.json", b'"gan": "cgan"', b'"gan": "../cgan"'),
    ],
)
def test_gallery_names_a_damaged_file(undisturbed, load_script, tmp_path, name, old, new):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "result.json").write_bytes((undisturbed("cgan") / "result.json").read_bytes())
    quality = {"images": 20, "classifier": "x", "accuracy": 1, "accuracy_of_real": 1}
    distances = {"frechet_distance_in_own_features": 1, "frechet_distance_of_training_images": 1}
    (folder / "quality.json").write_text(json.dumps({**quality, **distances}))
    content = (folder / name).read_bytes()
    assert old in content
    (folder / name).write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=name):
        load_script("gan_gallery").main([f"runs=[{folder}]", f"output={tmp_path / 'page.md'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_train_gan_trains_what_is_typed_and_again_what_was_frozen(root, tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "scripts/train_gan.py", *arguments], cwd=root, capture_output=True, text=True, check=False
        )

    typed = ["gan=cgan", *SHORT, "gan.epochs=1", f"runs_dir={tmp_path}"]
    cfg = settings("cgan", tmp_path, "gan.epochs=1")
    folder = tmp_path / cfg.run_id
    done = command(*typed)
    assert done.returncode == 0, done.stderr
    assert load_generator(build(cfg.gan.game), folder / "checkpoint.pt", torch.device("cpu")).num_classes == 10
    first = (folder / "result.json").read_bytes()
    again = command(str(folder / "config.yaml"))
    assert again.returncode == 0, again.stderr
    assert (folder / "result.json").read_bytes() == first
    wrong = command("gan=gann", f"runs_dir={tmp_path}")
    assert wrong.returncode != 0
    assert "gann" in wrong.stderr
    assert "Traceback" not in wrong.stderr
