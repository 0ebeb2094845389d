"""Trained generators: a classifier of real digits recognises the classes of generated ones."""

import json

import pytest

from isda_repro.config import compose, compose_generator
from isda_repro.gan.run import train_generator
from isda_repro.training.run import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return the folder of a classifier with less than 4% error on real digits."""
    folder = tmp_path_factory.mktemp("classifier")
    cfg = compose(["model=resnet20", "dataset=digits", "recipe.epochs=12", f"runs_dir={folder}", "tracking=none"])
    assert run(cfg).test_error_final < 4
    return folder / cfg.run_id


@pytest.mark.parametrize("kind", ["acgan", "cgan"])
def test_classifier_tells_the_classes_of_generated_digits(kind, classifier, load_script, tmp_path):
    """An accuracy above 60% is required; chance is 10%."""
    cfg = compose_generator([f"gan={kind}", "dataset=digits", "gan.epochs=30", f"runs_dir={tmp_path}", "tracking=none"])
    train_generator(cfg)
    folder = tmp_path / cfg.run_id
    load_script("gan_quality").main([f"generator={folder}", f"classifier={classifier}", "images=1000"])
    found = json.loads((folder / "quality.json").read_text())
    assert found["accuracy"] > 60
    assert min(found["accuracy_by_class"].values()) > 20
    assert found["frechet_distance_in_own_features"] > found["frechet_distance_of_training_images"] >= 0
