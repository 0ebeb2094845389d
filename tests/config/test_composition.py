"""Composition of conf/: the paper's recipes, the settings that a model or a data set selects, and their precedence."""

import pytest
import yaml
from omegaconf import OmegaConf

from isda_repro.config import CONF_DIR, build, compose, rescaled, rescaled_milestones
from isda_repro.config.checks import ConfigError
from isda_repro.data import AutoAugment, Crop, PadCropFlip
from isda_repro.training.schedule import MultiStep

REPORTED = yaml.safe_load((CONF_DIR.parent / "isda_repro/experiments/reported.yaml").read_text())
TABLE_6 = {row["family"]: row for row in REPORTED["table6"]["rows"]} | {"ImageNet": REPORTED["table6"]["imagenet"]}
IMAGENET = (
    *("resnet50", "resnet101", "resnet152", "densenet121", "densenet265", "resnext50_32x4d", "resnext101_32x8d"),
)
FAMILY = {
    **dict.fromkeys(["resnet8", "resnet20", "resnet32", "resnet110"], "ResNet"),
    **dict.fromkeys(["wrn16_8", "wrn28_10"], "Wide-ResNet"),
    **dict.fromkeys(["densenet_bc100_12", "densenet_bc190_40"], "DenseNet-BC"),
    **dict.fromkeys(["shake_shake26_2x32d", "shake_shake26_2x112d"], "Shake-Shake"),
    "se_resnet110": "SE-ResNet",
    "resnext29_8x64d": "ResNeXt",
    **dict.fromkeys(IMAGENET, "ImageNet"),
}


def assert_recipe(recipe, row):
    for key in ("epochs", "batch_size", "weight_decay", "lr"):
        assert recipe[key] == row[key], key
    assert (recipe.momentum, recipe.nesterov, recipe.passes) == (0.9, True, None)
    schedule = row["schedule"]
    if schedule["type"] == "cosine":
        assert recipe.schedule["_target_"].endswith(".Cosine")
        assert recipe.schedule.ends_at_zero is False
    else:
        assert (list(recipe.schedule.milestones), recipe.schedule.gamma) == (schedule["milestones"], schedule["gamma"])


@pytest.mark.parametrize("model", sorted(FAMILY))
def test_each_network_of_the_paper_brings_its_recipe_of_table_6_and_its_dropout(composed, model):
    cfg = composed(f"model={model}" + (" dataset=imagenet" if model in IMAGENET else ""))
    assert_recipe(cfg.recipe, TABLE_6[FAMILY[model]])
    assert cfg.model.get("dropout", 0.0) == (0.3 if model.startswith("wrn") else 0.0)


@pytest.mark.parametrize("model", ["wrn28_10", "resnet50"])
@pytest.mark.parametrize("dataset", sorted(path.stem for path in (CONF_DIR / "dataset").glob("[!_]*.yaml")))
def test_of_all_data_sets_the_digits_alone_bring_a_recipe_of_their_own(composed, model, dataset):
    cfg = composed(f"model={model} dataset={dataset}")
    if dataset == "digits":
        recipe = (cfg.recipe.epochs, cfg.recipe.batch_size, cfg.recipe.lr, list(cfg.recipe.schedule.milestones))
        assert recipe == (30, 64, 0.05, [16, 24])
    else:
        assert_recipe(cfg.recipe, TABLE_6[FAMILY[model]])
    assert cfg.model.get("dropout", 0.0) == (0.3 if model == "wrn28_10" else 0.0)
    if model == "resnet50":
        assert cfg.model.image_size == cfg.dataset.get("image_size", 8 if dataset == "digits" else 32)


def test_defaults_are_the_papers(composed):
    cfg = composed()
    chosen = {"model": "wrn28_10", "dataset": "cifar10", "loss": "ce", "augmentation": "baseline", "faithful": "paper"}
    assert OmegaConf.to_container(cfg.choice) == chosen
    assert build(cfg.augmentation) == PadCropFlip(padding=4, padding_mode="zeros", flip=True)
    assert (cfg.seed, cfg.force, cfg.runs_dir, cfg.tracking.mode) == (0, False, "runs", "offline")
    assert OmegaConf.to_container(cfg.checkpoint) == {"minutes": 10, "steps": None}
    auto = dict.fromkeys(("device", "precision", "tf32", "channels_last", "compile", "cuda_graph"), "auto")
    rest = {"deterministic": False, "micro_batch": None, "sync_bn": None, "timeout_minutes": 10}
    assert OmegaConf.to_container(cfg.compute) == {**auto, **rest}
    assert composed("loss=isda").loss.lambda_0 == REPORTED["lambda_0"]["cifar_recommended"]


def test_what_is_chosen_on_the_command_line_wins_over_data_set_and_model(composed):
    cfg = composed("model=wrn28_10 dataset=digits recipe=resnext model.dropout=0.1 compute=cpu tracking=none")
    assert (cfg.recipe.epochs, cfg.model.dropout) == (350, 0.1)
    assert (cfg.compute.device, cfg.tracking.mode) == ("cpu", "none")


def test_a_network_of_timm_takes_the_recipe_and_the_arguments_that_it_is_given(composed):
    cfg = composed("model=timm model.name=resnet18 recipe=resnet +model.drop_path_rate=0.1")
    assert (cfg.model.image_size, cfg.model.drop_path_rate, cfg.recipe.epochs) == (32, 0.1, 160)


# ------------------------------------------------------------------------------------- where the authors' code differs

MEANS = {"cifar10": [0.491400, 0.482158, 0.446531], "cifar100": [0.507075, 0.486549, 0.440918]}
STDS = {"cifar10": [0.247032, 0.243485, 0.261588], "cifar100": [0.267334, 0.256438, 0.276150]}


@pytest.mark.parametrize(
    ("overrides", "values"),
    [  # key, value in the paper, value in the authors' code
        (
            "dataset=cifar100 loss=isda augmentation=cutout model=shake_shake26_2x32d",
            {
                "faithful.progress": ("iteration", "epoch"),
                "loss.sync": (None, None),  # theirs is one process
                "model.official_init": (None, True),
                "augmentation.crop_flip.padding_mode": ("zeros", "reflect"),
                "augmentation.cutout.length": (8, 16),
                "augmentation.cutout.fill": ("mean", "black"),
                "dataset.mean": (MEANS["cifar100"], MEANS["cifar10"]),
                "dataset.std": (STDS["cifar100"], STDS["cifar10"]),
                "recipe.schedule.ends_at_zero": (False, True),
                "model.shift": (1, -1),
                "model.stem_bias": (False, True),
            },
        ),
        (
            "dataset=cifar10 augmentation=autoaugment model=densenet_bc190_40 recipe=small_data",
            {
                "augmentation.autoaugment.policy": ("cifar10", "cifar10"),
                "augmentation.autoaugment.fill": (0, 128),
                "augmentation.autoaugment.one_way_rotation": (False, True),
                "augmentation.cutout.length": (16, 16),
                "dataset.mean": (MEANS["cifar10"], MEANS["cifar10"]),
                "dataset.std": (STDS["cifar10"], STDS["cifar10"]),
                "recipe.schedule.ends_at_zero": (False, True),
                "model.first_channels": (None, 24),
            },
        ),
        (
            "dataset=imagenet augmentation=autoaugment model=densenet265 loss=isda",
            {
                "loss.sync": (None, False),
                "model.official_init": (None, True),
                "augmentation.autoaugment.policy": ("imagenet", "imagenet"),
                "augmentation.cutout.length": (0, 0),
                "recipe.schedule.ends_at_zero": (False, False),
                "model.first_channels": (64, 24),
            },
        ),
        ("dataset=imagenet model=resnet50", {"model.official_init": (None, None)}),
        ("dataset=cifar10 augmentation=cutout", {"augmentation.cutout.length": (16, 16)}),
        ("dataset=cifar100 augmentation=autoaugment", {"augmentation.cutout.length": (16, 16)}),
    ],
)
def test_faithful_chooses_the_papers_values_or_those_of_the_authors_code(composed, overrides, values):
    paper, official = (composed(f"{overrides} faithful={name}") for name in ("paper", "official"))
    for key, expected in values.items():
        assert (OmegaConf.select(paper, key), OmegaConf.select(official, key)) == expected, key


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("faithful.crop_padding=reflect", "augmentation.padding_mode", "reflect"),
        ("faithful.channel_statistics=cifar10", "dataset.mean", MEANS["cifar10"]),
        ("faithful.cosine_ends_at_zero=true", "recipe.schedule.ends_at_zero", True),
    ],
)
def test_one_difference_can_be_chosen_alone(composed, override, key, value):
    assert OmegaConf.select(composed(f"model=shake_shake26_2x32d dataset=cifar100 {override}"), key) == value


# --------------------------------------------------------------------------------------------------------- augmentation


FOLDER = "folder data_dir=pets"
DECLARED = {  # image size, padding, flip, Cutout's length, AutoAugment's policy, its Cutout's length
    "cifar10": (32, 4, True, 16, "cifar10", 16),
    "cifar100": (32, 4, True, 8, "cifar10", 16),
    "cifar100 faithful=official": (32, 4, True, 16, "cifar10", 16),
    "digits": (8, 1, False, 4, "cifar10", 4),
    **dict.fromkeys(("imagenet", "imagenet_packed", FOLDER), (224, 0, False, 112, "imagenet", 0)),
    f"{FOLDER} dataset.image_size=32": (32, 0, False, 16, "imagenet", 0),
    "digits dataset.augment.padding=2 dataset.augment.cutout_length=3": (8, 2, False, 3, "cifar10", 4),
}


@pytest.mark.parametrize(("dataset", "values"), DECLARED.items())
def test_a_data_set_declares_what_augmentations_and_networks_ask_of_it(composed, dataset, values):
    base = f"model=resnet50 dataset={dataset}"
    cutout = composed(f"{base} augmentation=cutout")
    steps = cutout.augmentation, composed(f"{base} augmentation=autoaugment").augmentation
    assert steps[0].crop_flip == steps[1].crop_flip == composed(f"dataset={dataset}").augmentation
    crop_flip = build(steps[0].crop_flip)
    lengths = [one.cutout.length for one in steps]
    image_size, policy = cutout.model.image_size, steps[1].autoaugment.policy
    assert (image_size, crop_flip.padding, crop_flip.flip, lengths[0], policy, lengths[1]) == values
    assert "augment" not in cutout.dataset, "what came of it has its place, and is what names a run"


@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        *(("padding", name) for name in ("augmentation=baseline", "augmentation=cutout", "augmentation=autoaugment")),
        ("flip", "augmentation=baseline"),
        ("cutout_length", "augmentation=cutout"),
        ("autoaugment_policy", "augmentation=autoaugment"),
        ("autoaugment_cutout_length", "augmentation=autoaugment"),
        ("image_size", "model=resnet50"),
    ],
)
def test_a_data_set_that_does_not_declare_what_is_asked_of_it_is_refused(key, chosen):
    with pytest.raises(ConfigError) as error:
        compose(["dataset=digits", f"dataset.augment.{key}=null", chosen])
    said = str(error.value)
    assert all(name in said for name in ("dataset=digits", f"dataset.augment.{key}=", chosen, "conf/dataset/"))
    assert "\n" not in said
    compose(["dataset=digits", f"dataset.augment.{key}=null", "model=resnet8", "augmentation=none"])


def test_cutout_and_autoaugment_come_after_the_baseline(composed):
    baseline = composed().augmentation
    for name, steps in (("cutout", ["cutout"]), ("autoaugment", ["autoaugment", "cutout"])):
        augmentation = composed(f"augmentation={name}").augmentation
        assert augmentation.crop_flip == baseline
        assert [key for key in augmentation if key != "_target_"] == ["crop_flip", *steps]
    without = build(composed("augmentation=autoaugment augmentation.cutout=false").augmentation)
    assert [type(step) for step in without.steps] == [PadCropFlip, AutoAugment]


@pytest.mark.parametrize("dataset", ["imagenet", "imagenet_packed"])
def test_imagenet_is_cropped_and_augmented_as_usual(composed, dataset):
    cfg = composed(f"model=resnet50 dataset={dataset} augmentation=autoaugment loss=isda")
    assert build(cfg.dataset.train_crop) == Crop(224, "random_resized", scale=(0.08, 1.0), flip=True)
    assert build(cfg.dataset.test_crop) == Crop(224, "center")
    assert build(cfg.dataset.test_crop).resized == 256
    assert (list(cfg.dataset.mean), list(cfg.dataset.std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crop_flip, policy, cutout = build(cfg.augmentation).steps
    assert (crop_flip.padding, crop_flip.flip) == (0, False)  # the crop of the data set does both
    assert (policy.policy, cutout.length) == ("imagenet", 0)
    assert (cfg.loss.covariance, cfg.loss.lambda_0) == ("diagonal", 7.5)
    assert cfg.dataset.source.num_classes == 1000
    plain = composed(f"model=resnet50 dataset={dataset} augmentation=none").dataset
    assert build(plain.train_crop) == build(plain.test_crop)


def test_a_folder_is_named_after_itself_and_any_model_takes_its_size():
    base = ["dataset=folder", "model=resnet50"]
    cfg = compose([*base, "data_dir=somewhere/Pets/", "dataset.image_size=64"])
    assert cfg.run_id.startswith("resnet50-folder_Pets-baseline-ce-s0-")
    assert cfg.model.image_size == build(cfg.dataset.train_crop).size == build(cfg.dataset.test_crop).size == 64
    assert compose([*base, "data_dir=other/Pets", "dataset.image_size=64", "dataset.workers=3"]).run_id == cfg.run_id
    assert compose([*base, "data_dir=somewhere/Pets"]).run_id != cfg.run_id
    named = compose([*base, "data_dir=other/Pets", "dataset.name=Dogs"])
    assert named.run_id.startswith("resnet50-folder_Dogs-")


# ------------------------------------------------------------------------------------------------------------ schedule


def test_epochs_alone_rescale_the_milestones(composed):
    for overrides, milestones in (
        ("recipe.epochs=16", [8, 12]),
        ("recipe.epochs=1", []),
        ("recipe.epochs=16 recipe.schedule.milestones=[3,5]", [3, 5]),
    ):
        assert list(composed(f"model=resnet32 {overrides}").recipe.schedule.milestones) == milestones
    assert rescaled([80, 120], 160, 160) == [80, 120]
    assert rescaled([1, 5, 9], 10, 5) == [2, 3, 5]  # no milestone before epoch 2; halves are rounded up
    assert rescaled([10], 10, 3) == [3]


@pytest.mark.parametrize(("epochs", "is_told"), [(16, True), (160, False)])
def test_the_user_is_told_of_milestones_that_followed_the_epochs(epochs, is_told):
    schedule = {"milestones": "${rescale:[80,120],160,${recipe.epochs}}"}
    notice = rescaled_milestones(OmegaConf.create({"recipe": {"epochs": epochs, "schedule": schedule}}))
    assert (notice is not None) == is_told
    assert not is_told or "recipe.epochs=16" in notice
    own = {"recipe": {"epochs": epochs, "schedule": {"milestones": [3]}}}
    assert rescaled_milestones(OmegaConf.create(own)) is None


def test_the_composed_recipe_drops_the_rate_in_the_stated_epoch(composed):
    recipe = composed("model=wrn28_10").recipe
    schedule = MultiStep(list(recipe.schedule.milestones), recipe.schedule.gamma)
    rates = [recipe.lr * schedule.factor(epoch, recipe.epochs) for epoch in (59, 60, 119, 120, 200, 240)]
    assert rates == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.00016, 0.00016])
