"""What composes into what: recipes by the model, rules by the choices, precedence."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from isda_repro.checks import ConfigError
from isda_repro.config import CONF_DIR, build, compose
from isda_repro.data import AutoAugment, Crop, PadCropFlip
from isda_repro.training.schedule import MultiStep

REPORTED = yaml.safe_load((CONF_DIR.parent / "isda_repro/tables/reported.yaml").read_text())
FAMILY = {
    "ResNet": "resnet",
    "SE-ResNet": "se_resnet",
    "Wide-ResNet": "wide_resnet",
    "DenseNet-BC": "densenet_bc",
    "ResNeXt": "resnext",
    "Shake-Shake": "shake_shake",
}
MODEL_FAMILY = {
    **dict.fromkeys(["resnet8", "resnet20", "resnet32", "resnet110"], "ResNet"),
    **dict.fromkeys(["wrn16_8", "wrn28_10"], "Wide-ResNet"),
    **dict.fromkeys(["densenet_bc100_12", "densenet_bc190_40"], "DenseNet-BC"),
    **dict.fromkeys(["shake_shake26_2x32d", "shake_shake26_2x112d"], "Shake-Shake"),
    "se_resnet110": "SE-ResNet",
    "resnext29_8x64d": "ResNeXt",
}
IMAGENET = [
    *("resnet50", "resnet101", "resnet152", "densenet121", "densenet265", "resnext50_32x4d", "resnext101_32x8d"),
]
MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (CONF_DIR / "dataset").glob("[!_]*.yaml"))


def assert_recipe(recipe, row):
    for key in ("epochs", "batch_size", "weight_decay", "lr"):
        assert recipe[key] == row[key], key
    assert recipe.momentum == 0.9
    schedule = row["schedule"]
    if schedule["type"] == "cosine":
        assert recipe.schedule["_target_"].endswith(".Cosine")
    else:
        assert list(recipe.schedule.milestones) == schedule["milestones"]
        assert recipe.schedule.gamma == schedule["gamma"]


@pytest.mark.parametrize("row", REPORTED["table6"]["rows"], ids=lambda row: row["family"])
def test_recipes_are_table_6(row):
    recipe = compose([f"recipe={FAMILY[row['family']]}"]).recipe
    assert_recipe(recipe, row)
    assert recipe.nesterov is True


def test_imagenet_recipe_is_appendix_b():
    assert_recipe(compose(["recipe=imagenet"]).recipe, REPORTED["table6"]["imagenet"])


def test_there_are_these_models():
    assert sorted([*MODEL_FAMILY, *IMAGENET, "timm"]) == MODELS


def test_timm_needs_a_name_and_a_recipe():
    with pytest.raises(ConfigError, match="You must specify 'recipe'"):
        compose(["model=timm", "model.name=resnet18"])
    with pytest.raises(ConfigError, match=r"model\.name= has no default: give it a value"):
        compose(["model=timm", "recipe=resnet"])
    cfg = compose(["model=timm", "model.name=resnet18", "recipe=resnet", "+model.drop_path_rate=0.1"])
    assert (cfg.model.image_size, cfg.model.drop_path_rate, cfg.recipe.epochs) == (32, 0.1, 160)


def test_the_authors_networks_where_they_differ():
    """Appendix B is silent; `faithful=official` is their code."""
    for model, paper, official in (
        ("densenet_bc190_40", {"first_channels": None}, {"first_channels": 24}),
        ("densenet265", {"first_channels": 64}, {"first_channels": 24}),
        ("shake_shake26_2x32d", {"shift": 1, "stem_bias": False}, {"shift": -1, "stem_bias": True}),
    ):
        for faithful, expected in (("paper", paper), ("official", official)):
            node = compose([f"model={model}", f"faithful={faithful}"]).model
            assert {key: node[key] for key in expected} == expected


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("model", [*MODEL_FAMILY, *IMAGENET])
def test_each_model_brings_its_recipe_and_dropout_and_digits_its_own(model, dataset):
    cfg = compose([f"model={model}", f"dataset={dataset}"])
    table6 = REPORTED["table6"]["imagenet"]
    if model not in IMAGENET:
        table6 = next(row for row in REPORTED["table6"]["rows"] if row["family"] == MODEL_FAMILY[model])
    if dataset == "digits":
        assert cfg.recipe.epochs == 30
        assert list(cfg.recipe.schedule.milestones) == [16, 24]
    else:
        assert_recipe(cfg.recipe, table6)
    assert cfg.model.get("dropout", 0.0) == (0.3 if model.startswith("wrn") else 0.0)


def test_defaults_are_the_papers():
    cfg = compose([])
    assert (cfg.choice.model, cfg.choice.dataset, cfg.choice.loss) == ("wrn28_10", "cifar10", "ce")
    augmentation = OmegaConf.to_container(cfg.augmentation)
    assert augmentation == {
        "_target_": "isda_repro.data.PadCropFlip",
        "padding": 4,
        "padding_mode": "zeros",
        "flip": True,
    }
    assert compose(["loss=isda"]).loss.lambda_0 == REPORTED["lambda_0"]["cifar_recommended"]


def test_a_choice_on_the_command_line_wins_over_dataset_and_model():
    cfg = compose(["model=wrn28_10", "dataset=digits", "recipe=resnext", "model.dropout=0.1"])
    assert cfg.recipe.epochs == 350
    assert cfg.model.dropout == 0.1


def test_digits_are_shifted_by_one_pixel_and_not_mirrored():
    augmentation = compose(["dataset=digits"]).augmentation
    assert (augmentation.padding, augmentation.flip) == (1, False)


@pytest.mark.parametrize(
    ("choices", "length", "fill"),
    [
        (["dataset=cifar10"], 16, "mean"),  # Cutout's own paper
        (["dataset=cifar100"], 8, "mean"),
        (["dataset=cifar10", "faithful=official"], 16, "black"),
        (["dataset=cifar100", "faithful=official"], 16, "black"),
        (["dataset=digits"], 4, "mean"),
    ],
)
def test_cutout_is_its_papers_or_the_authors(choices, length, fill):
    augmentation = compose([*choices, "augmentation=cutout"]).augmentation
    assert (augmentation.cutout.length, augmentation.cutout.fill) == (length, fill)
    assert augmentation.crop_flip == compose(choices).augmentation  # after the baseline
    assert list(augmentation) == ["crop_flip", "_target_", "cutout"]


def test_autoaugment_ends_with_cutout_16_unless_it_is_left_out():
    for dataset in ("cifar10", "cifar100"):
        paper, official = (
            compose([f"dataset={dataset}", "augmentation=autoaugment", f"faithful={faithful}"]).augmentation
            for faithful in ("paper", "official")
        )
        assert list(paper) == ["crop_flip", "_target_", "autoaugment", "cutout"]
        assert (paper.cutout.length, official.cutout.length) == (16, 16)
        assert paper.autoaugment.policy == official.autoaugment.policy == "cifar10"
        assert (paper.autoaugment.fill, paper.autoaugment.one_way_rotation) == (0, False)
        assert (official.autoaugment.fill, official.autoaugment.one_way_rotation) == (128, True)
    without = build(compose(["augmentation=autoaugment", "augmentation.cutout=false"]).augmentation)
    assert [type(step) for step in without.steps] == [PadCropFlip, AutoAugment]


@pytest.mark.parametrize("dataset", ["imagenet", "imagenet_packed"])
def test_imagenet_is_the_standard_one(dataset):
    cfg = compose(["model=resnet50", f"dataset={dataset}", "augmentation=autoaugment", "loss=isda"])
    assert build(cfg.dataset.train_crop) == Crop(224, "random_resized", scale=(0.08, 1.0), flip=True)
    assert build(cfg.dataset.test_crop) == Crop(224, "center")
    assert build(cfg.dataset.test_crop).resized == 256
    crop_flip, policy, cutout = build(cfg.augmentation).steps
    assert (crop_flip.padding, crop_flip.flip) == (0, False)  # the crop has done both
    assert (policy.policy, cutout.length) == ("imagenet", 0)
    assert (cfg.loss.covariance, cfg.loss.lambda_0) == ("diagonal", 7.5)
    assert cfg.dataset.source.num_classes == 1000
    assert cfg.run_id.startswith(f"resnet50-{dataset}-autoaugment-isda-s0-")


def test_without_augmentation_images_in_files_are_cropped_as_for_evaluation():
    cfg = compose(["model=resnet50", "dataset=imagenet", "augmentation=none"])
    assert build(cfg.dataset.train_crop) == build(cfg.dataset.test_crop)


def test_a_folder_is_named_after_itself_and_any_model_takes_its_size():
    base = ["dataset=folder", "model=resnet50"]
    cfg = compose([*base, "data_dir=somewhere/Pets/", "dataset.image_size=64"])
    assert cfg.run_id.startswith("resnet50-folder_Pets-baseline-ce-s0-")
    assert cfg.model.image_size == build(cfg.dataset.train_crop).size == 64
    assert compose([*base, "data_dir=other/Pets", "dataset.image_size=64", "dataset.workers=3"]).run_id == cfg.run_id
    assert compose([*base, "data_dir=somewhere/Pets"]).run_id != cfg.run_id
    named = compose([*base, "data_dir=other/Pets", "dataset.name=Dogs"])
    assert named.run_id.startswith("resnet50-folder_Dogs-")


def test_epochs_alone_rescale_the_milestones():
    assert list(compose(["model=resnet32", "recipe.epochs=16"]).recipe.schedule.milestones) == [8, 12]
    assert list(compose(["model=resnet32", "recipe.epochs=1"]).recipe.schedule.milestones) == []
    explicit = ["model=resnet32", "recipe.epochs=16", "recipe.schedule.milestones=[3,5]"]
    assert list(compose(explicit).recipe.schedule.milestones) == [3, 5]


def test_official_is_one_switch_and_each_of_its_keys_is_used():
    groups = {name: OmegaConf.load(CONF_DIR / f"faithful/{name}.yaml") for name in ("paper", "official")}
    assert list(groups["paper"]) == list(groups["official"])
    assert all(groups["paper"][key] != groups["official"][key] for key in groups["paper"])
    sources = [*CONF_DIR.rglob("*.yaml"), *(CONF_DIR.parent / "isda_repro/training").glob("*.py")]
    text = "\n".join(path.read_text() for path in sources if path.parent.name != "faithful")
    for key in groups["paper"]:
        assert f"faithful.{key}" in text, f"faithful.{key} is read by nothing"


def test_official_reaches_the_values():
    cfg = compose(["dataset=cifar100", "faithful=official", "loss=isda"])
    assert cfg.augmentation.padding_mode == "reflect"
    assert list(cfg.dataset.mean) == list(compose(["dataset=cifar10"]).dataset.mean)
    assert cfg.faithful.progress == "epoch"
    assert compose(["dataset=cifar100", "faithful.crop_padding=reflect"]).augmentation.padding_mode == "reflect"


def test_schedule_of_the_composed_recipe_drops_in_the_stated_epoch():
    recipe = compose(["model=wrn28_10"]).recipe
    schedule = MultiStep(list(recipe.schedule.milestones), recipe.schedule.gamma)
    rates = [recipe.lr * schedule.factor(epoch, recipe.epochs) for epoch in (59, 60, 119, 120, 200, 240)]
    assert rates == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.00016, 0.00016])


def test_every_model_yaml_opens_with_its_command():
    for path in (CONF_DIR / "model").glob("*.yaml"):
        assert path.read_text().startswith(f"# python train.py model={path.stem} "), Path(path).name
