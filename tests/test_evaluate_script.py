"""``scripts/evaluate.py`` on a finished run and on a file of weights, and on images without labels."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import make_folder, picture
from PIL import Image
from sklearn import metrics
from torchvision.transforms.v2 import functional

from isda_repro.config import build, compose
from isda_repro.data import Source, Split
from isda_repro.errors import UserError
from isda_repro.evaluation import finished_run_config, load_classifier, predict_images
from isda_repro.evaluation.outputs import FILES
from isda_repro.files import CSV_MARKS
from isda_repro.training import builders
from isda_repro.training.evaluate import evaluate
from isda_repro.training.run import run

SETTINGS = ["model=resnet8", "dataset=digits", "dataset.test_limit=90"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    runs_dir = tmp_path_factory.mktemp("runs")
    cfg = compose([*SETTINGS, "dataset.imbalance=10", "recipe.epochs=1", "tracking=none", f"runs_dir={runs_dir}"])
    run(cfg)
    return runs_dir / cfg.run_id


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """Return the folders of a run on image files, and of these files; one of them is damaged."""
    place = tmp_path_factory.mktemp("files")
    data = make_folder(place / "pets", classes=("=ant", "bee", "cat"))
    (data / "val/bee/1.jpg").write_bytes(b"\xff\xd8\xff no image")
    cfg = compose(
        [
            *("model=resnet20", "model.depth=8", "dataset=folder", "dataset.image_size=16", f"data_dir={data}"),
            *("recipe=digits", "recipe.batch_size=12", "recipe.epochs=1", "dataset.workers=0", "tracking=none"),
            *("dataset.unreadable=skip", f"runs_dir={place / 'runs'}"),
        ]
    )
    run(cfg)
    return place / "runs" / cfg.run_id, data


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory, load_script):
    """Return the folder of the files that an evaluation of the run has written."""
    output = tmp_path_factory.mktemp("evaluated")
    load_script("evaluate").main([f"run={folder}", "device=cpu", f"output={output}"])
    return output


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Read image files in several batches."""
    monkeypatch.setattr(builders, "STREAMED_TEST_BATCH_SIZE", 3)


@pytest.fixture
def main(load_script):
    return load_script("evaluate").main


def numbers(text):
    """Return every number with decimals in a text: the loss, the error, and others."""
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_and_the_file_of_its_weights_have_the_loss_and_error_of_the_result(main, folder, capsys):
    result = json.loads((folder / "result.json").read_text())
    expected = [result["curves"]["test_loss"][-1], result["test_error_final"]]
    capsys.readouterr()
    main([f"run={folder}", "device=cpu"])
    said = capsys.readouterr().out
    assert " 90 " in said
    of_run = numbers(said)
    assert of_run[:2] == pytest.approx(expected, abs=0.005)
    assert of_run[-1] == pytest.approx(expected[1], abs=0.005)
    main([*SETTINGS, f"model.weights={folder / 'checkpoint.pt'}", "compute=cpu"])
    assert numbers(capsys.readouterr().out)[:2] == pytest.approx(expected, abs=0.005)


def test_weights_that_are_not_named_are_an_error(main):
    with pytest.raises(UserError, match=r"model\.weights"):
        main(SETTINGS)


def test_measures_are_those_of_the_predictions_and_of_training(folder, evaluated):
    result = json.loads((folder / "result.json").read_text())
    assert sorted(one.name for one in evaluated.iterdir()) == sorted(FILES)
    found = json.loads((evaluated / "summary.json").read_text())
    assert found["error"] == result["test_error_final"]
    assert found["top5_error"] == result["test_top5_error_final"]
    classifier = load_classifier(*finished_run_config(folder, "cpu"), of_run=True)
    _, batches = builders.build_loaders(classifier.cfg, classifier.source, classifier.compute)
    in_training = evaluate(classifier.network, batches.epoch(0), classifier.compute)
    assert (found["error"], found["top5_error"]) == in_training[1:3]
    assert found["negative_log_likelihood"] == pytest.approx(in_training.loss, rel=1e-12)
    lines = table(evaluated / "predictions.csv")
    assert [line["image"] for line in lines] == [str(number) for number in range(90)]
    assert [line["true_class"] for line in lines] == [str(one) for one in classifier.source.test.targets.tolist()]
    truth, predicted = (np.array([int(line[key]) for line in lines]) for key in ("true_class", "predicted_class"))
    confusion = metrics.confusion_matrix(truth, predicted)
    counts = np.genfromtxt(evaluated / "confusion.csv", delimiter=",", skip_header=1)[:, 1:]
    np.testing.assert_array_equal(counts, confusion)
    errors = [float(line["error_of_class"]) for line in table(evaluated / "per_class.csv")]
    assert errors == pytest.approx(100 - 100 * metrics.recall_score(truth, predicted, average=None))
    assert found["mean_error_of_classes"] == result["test_class_error_final"] == pytest.approx(np.mean(errors))
    groups = {name: found.get(f"{name}_error") for name in ("many_shot", "medium_shot", "few_shot")}
    assert groups == {name: result.get(f"test_{name}_error_final") for name in groups}
    assert None not in groups.values()
    assert len({*groups.values()}) > 1
    likely = np.array([float(line["probability"]) for line in lines])
    bins = np.ceil(likely * 15).astype(int)
    gaps = [(likely[bins == one] - (truth == predicted)[bins == one]).sum() for one in range(1, 16)]
    assert found["expected_calibration_error"] == pytest.approx(100 * np.abs(gaps).sum() / 90, abs=1e-3)


def test_images_of_the_data_set_as_files_have_its_predictions(main, folder, evaluated, tmp_path, capsys):
    images = build(compose(SETTINGS).dataset.source).test.images
    for number in range(8):
        Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    capsys.readouterr()
    main([f"run={folder}", "device=cpu", f"images={tmp_path}", f"output={tmp_path / 'files'}"])
    printed = [line for line in capsys.readouterr().out.splitlines() if ".png: " in line]
    predicted, expected = table(tmp_path / "files/predictions.csv"), table(evaluated / "predictions.csv")[:8]
    assert [line["image"] for line in predicted] == [f"{tmp_path}/{number}.png" for number in range(8)]
    assert [line["predicted_class"] for line in predicted] == [line["predicted_class"] for line in expected]
    likely = [[float(line["probability"]) for line in lines] for lines in (predicted, expected)]
    assert likely[0] == pytest.approx(likely[1], abs=1e-3)  # in bfloat16, batches of another size round differently
    assert {line["true_class"] for line in predicted} == {""}
    first = expected[0]
    assert f"/0.png: {first['predicted_class']} {float(first['probability']):.1%}, {first['class_2']} " in printed[0]
    assert len(printed) == 8


def test_image_of_any_size_is_scaled_to_that_of_the_data_set(main, folder, tmp_path, capsys):
    wide = torch.from_numpy(picture(1)).permute(2, 0, 1)[:1].repeat(3, 1, 1)  # 40 x 56 pixels, grey
    Image.fromarray(wide[0].numpy()).save(tmp_path / "wide.png")
    small = functional.center_crop(functional.resize(wide, [8]), [8])
    Image.fromarray(small.permute(1, 2, 0).numpy()).save(tmp_path / "small.png")
    main([f"run={folder}", "device=cpu", f"images=[{tmp_path / 'wide.png'},{tmp_path / 'small.png'}]"])
    printed = capsys.readouterr().out
    assert "8 x 8" in printed
    first, second = printed.splitlines()[-2:]
    assert first == second.replace("small", "wide")


def test_image_files_are_predicted_as_they_are_evaluated(main, of_files, tmp_path, capsys):
    run_folder, data = of_files
    main([f"run={run_folder}", "device=cpu", f"output={tmp_path / 'val'}"])
    result = json.loads((run_folder / "result.json").read_text())
    found = json.loads((tmp_path / "val/summary.json").read_text())
    assert (found["error"], found["unreadable_images"]) == (result["test_error_final"], 1)
    assert "top5_error" not in found
    expected = table(tmp_path / "val/predictions.csv")
    assert [line["image"] for line in expected] == [
        f"{data}/val/{name}/{number}.jpg"
        for name in ("=ant", "bee", "cat")
        for number in range(4)
        if (name, number) != ("bee", 1)
    ]
    names = [line["image"].split("/")[-2] for line in expected]
    assert [line["true_class"] for line in expected] == [name.replace("=", "'=") for name in names]
    with pytest.raises(UserError, match="1 of 12"):
        main([f"run={run_folder}", "device=cpu", f"images={data / 'val'}", f"output={tmp_path / 'images'}"])
    predicted = table(tmp_path / "images/predictions.csv")
    assert predicted == [{**line, "true_class": ""} for line in expected]
    assert "val/bee/1.jpg" in capsys.readouterr().err


def test_weights_of_image_files_predict_them_too(main, of_files, tmp_path, capsys):
    run_folder, data = of_files
    image = f"images={data / 'val/cat/2.jpg'}"
    main([f"run={run_folder}", "device=cpu", image])
    expected = capsys.readouterr().out.splitlines()[-1]
    settings = ["model=resnet20", "model.depth=8", "dataset=folder", "dataset.image_size=16", f"data_dir={data}"]
    main([*settings, f"model.weights={run_folder / 'checkpoint.pt'}", "compute=cpu", image, f"output={tmp_path}"])
    assert capsys.readouterr().out.splitlines()[-2] == expected
    assert [line["image"] for line in table(tmp_path / "predictions.csv")] == [str(data / "val/cat/2.jpg")]


@pytest.mark.parametrize("is_recorded", [True, False])
def test_images_are_normalised_as_in_training_after_the_training_images_have_changed(of_files, tmp_path, is_recorded):
    folder, data = of_files
    cfg, weights = finished_run_config(folder, "cpu")
    constants = builders.normalisation_constants(cfg, build(cfg.dataset.source))
    about = json.loads((folder / "environment.json").read_text())["data"]
    assert (about["mean"], about["std"]) == tuple(map(list, constants))
    if not is_recorded:  # of an older version
        state = torch.load(weights, weights_only=True)
        del state["data"]["mean"], state["data"]["std"]
        torch.save(state, weights := tmp_path / "checkpoint.pt")
    shutil.copytree(data, tmp_path / "pets")
    for file in (tmp_path / "pets/train").glob("*/*.jpg"):
        Image.new("RGB", (20, 20), "white").save(file)
    cfg.dataset.source.root = str(tmp_path / "pets")
    found = load_classifier(cfg, weights, of_run=True)
    now = builders.normalisation_constants(found.cfg, found.source)
    assert (tuple(map(tuple, now)) == tuple(map(tuple, constants))) == is_recorded


@pytest.mark.parametrize("images", ["nowhere.png", "[]", "[null]", "texts", "[a.png,[b]]", "empty.png"])
def test_images_that_are_none_are_an_error_and_nothing_is_written(main, folder, tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").touch()
    for name in ("empty.png", "a.png"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        main([f"run={folder}", "device=cpu", f"images={images}", "output=results"])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 10)])
def test_images_need_a_data_set_of_square_colour_images(folder, shape):
    classifier = load_classifier(*finished_run_config(folder, "cpu"), of_run=True)
    split = Split(torch.zeros(2, *shape, dtype=torch.uint8), torch.tensor([0, 1]))
    other = replace(classifier, source=Source("scans", split, split, 2, ("a", "b")))
    with pytest.raises(UserError, match="scans"):
        predict_images(other, ["a.png"])


@pytest.mark.parametrize("name", FILES)
def test_file_of_somebody_else_is_kept_and_nothing_is_written(main, folder, tmp_path, name):
    (tmp_path / name).write_text("image,class\n")
    with pytest.raises(UserError, match=re.escape(name)):
        main([f"run={folder}", "device=cpu", f"output={tmp_path}"])
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_files_of_an_evaluation_are_replaced_by_the_next(main, folder, evaluated):
    before = {one.name: one.read_bytes() for one in evaluated.iterdir()}
    main([f"run={folder}", "device=cpu", f"output={evaluated}"])
    assert {one.name: one.read_bytes() for one in evaluated.iterdir()} == before
    assert sum(content.startswith(CSV_MARKS) for content in before.values()) == 3
