"""Each mistake on the command line is one sentence that says what was wrong, where, and what there is instead."""

import pytest

from isda_repro.checks import ConfigError
from isda_repro.config import build, build_loss, build_model, compose
from isda_repro.errors import UserError


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("recipee=3", "unknown setting 'recipee'; did you mean recipe"),
        ("recipe.epoch=3", "unknown setting 'recipe.epoch'; did you mean recipe.epochs"),
        ("qqqqqq=3", "unknown setting 'qqqqqq'; `python train.py --cfg job` lists all"),
        ("+recipee=3", "adds the key 'recipee', which nothing reads"),
        ("++recipe.warmup=3", "adds the key 'recipe.warmup', which nothing reads"),
        ("~seed", "deletes a setting"),
        ("model=wrn", r"there is no model=wrn; model= can be densenet121, .*resnet110, .*wrn28_10"),
        ("dataset=_streamed", "there is no dataset=_streamed: a file whose name begins with _ is a part of others"),
        ("recipe.passes=0", "recipe.passes=0 must be a whole number from 1 on, or null"),
        ("loss=foo", "there is no loss=foo; loss= can be ce, center, .*isda, "),
        ("recipe.schedule.milestones=[80,500]", "has 500, past the last epoch"),
        ("recipe.schedule.milestones=[120,80]", "must be in rising order"),
        ("recipe.schedule.milestones=[0]", "each must be an epoch"),
        ("recipe.epochs=0", "recipe.epochs=0 must be a whole number from 1 on"),
        ("recipe.epochs=-5", "recipe.epochs=-5 must be"),
        ("recipe.epochs=ten", "recipe.epochs=ten must be"),
        ("recipe.batch_size=0", "recipe.batch_size=0 must be"),
        ("recipe.batch_size=1.5", "recipe.batch_size=1.5 must be"),
        ("recipe.lr=0", "recipe.lr=0 must be a number above 0"),
        ("recipe.lr=nan", "recipe.lr=nan must be"),
        ("recipe.momentum=1", "recipe.momentum=1 must be"),
        ("recipe.momentum=0", "recipe.nesterov=True must be false"),
        ("recipe.weight_decay=-1", "recipe.weight_decay=-1 must be"),
        ("model.dropout=1.5", "model.dropout=1.5 must be"),
        ("model.depth=-2", "model.depth=-2 must be a whole number from 1 on"),
        ("model.se_reduction=0", "'model.se_reduction' is a setting of other choices of model=, not of the one made"),
        ("model.depth=null", "model.depth=None must be a whole number from 1 on"),
        ("+model.checkpoint_path=a", "model.checkpoint_path cannot be set: weights from a file are model.weights="),
        ("dataset.train_limit=0", "dataset.train_limit=0 must be"),
        ("dataset.holdout=-3", "dataset.holdout=-3 must be"),
        ("compute.micro_batch=0", "compute.micro_batch=0 must be"),
        ("compute.precision=fp16", "compute.precision=fp16 must be one of auto, fp32, bf16"),
        ("compute.channels_last=1", "compute.channels_last=1 must be one of auto, true, false"),
        ("seed=-1", "seed=-1 must be"),
        ("seed=a", "seed='a' must be"),
        ("faithful.progress=step", "faithful.progress=step must be one of iteration, epoch"),
        ("recipe.lr==", "recipe.lr=="),
        ("recipe.nesterov=no", "recipe.nesterov=no must be one of true, false"),
        ("augmentation.flip=maybe", "augmentation.flip=maybe must be one of true, false"),
        ("faithful.cosine_ends_at_zero=no", "faithful.cosine_ends_at_zero=no must be one of true, false"),
        ("recipe.schedule.gamma=-1", "recipe.schedule.gamma=-1 must be"),
        ("recipe.schedule.gamma=foo", "recipe.schedule.gamma=foo must be"),
        ("recipe.schedule.milestones=5", "recipe.schedule.milestones=5 must be a list"),
        ("recipe.schedule.milestones=null", "recipe.schedule.milestones=None must be a list"),
        ("choice.dataset=digits", "the names under choice follow from"),
        ("runs_dir=", "runs_dir= must be a folder's name"),
        ("model=null", "model=, dataset=, loss= and the other groups each take a name, not null"),
        ("dataset.mean=foo", "dataset.mean=foo must be a number per channel"),
        ("dataset.std=[0.5,0,0.5]", r"dataset.std=\[0.5, 0, 0.5\] must be a number per channel, .* above 0"),
        ("dataset.source=foo", "dataset.source=foo must be left alone"),
        ("recipe.schedule=foo", "recipe.schedule=foo must be left alone"),
        ("synthetic=gan", "there is no synthetic=gan; synthetic= can be acgan, cgan, infogan, none, wgan"),
        ("synthetic.fraction=0.5", "synthetic.fraction=0.5 must be null without a generator; choose synthetic="),
        ("synthetic.kind=gan", "synthetic.kind=gan must be one of wgan, cgan, acgan, infogan"),
        ("synthetic.kind=acgan", "synthetic.fraction=None must be a number from 0.001 to 0.999"),
    ],
)
def test_one_sentence(override, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("loss=lq loss.truncation=2", "truncation=2 must be a probability in"),
        ("loss=lq loss.q=a", "q=a must be in"),
        ("loss=lq loss.truncation_start=null", "truncation_start=None must be a share of training"),
        ("loss=focal loss.gamma=null", "gamma=None must be a number from 0 on"),
        ("loss=focal loss.alpha=[1]", r"alpha=\[1\] must be a number above 0"),
        ("loss=center loss.weight=inf", "weight=inf must be a number from 0 on"),
        ("loss=center loss.centers_lr=foo", "centers_lr=foo must be a number from 0 on"),
        ("loss=large_margin loss.margin=1.5", "margin=1.5 must be a whole number from 1 on"),
        ("loss=large_margin loss.lowest_beta=-1", "lowest_beta=-1 must be a number from 0 on"),
        ("loss=disturb_label loss.alpha=true", "alpha=True must be a probability"),
        ("loss=isda loss.lambda_0=null", "lambda_0=None must be a number from 0 on"),
        ("loss=isda loss.lambda_0=true", "lambda_0=True must be a number from 0 on"),
        ("loss=isda loss.covariance=3", "there is no covariance=3; it can be full, diagonal, shared, identity"),
        ("loss=isda +loss.packed=foo", "packed=foo must be true, false or null"),
        ("loss=isda +loss.process_group=3", "process_group=3 must be a torch.distributed.ProcessGroup"),
        ("loss=isda +loss.ignore_index=x", "ignore_index=x must be a whole number"),
        ("loss=isda_diagonal +loss.packed=true", "packed=True is for covariance='full', and not for 'diagonal'"),
        (
            "loss=isda_constant loss.lambda_schedule=null",
            "there is no lambda_schedule=None; it can be linear, constant",
        ),
        ("loss=isda_sampled loss.samples=0", "samples=0 must be a whole number from 1 on"),
    ],
)
def test_a_loss_that_cannot_be_is_one_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        build_loss(compose(settings.split()), num_classes=3, feature_dim=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("dataset.workers=x", "dataset.workers=x must be auto, or a number of processes from 0 on"),
        ("dataset.workers=-1", "dataset.workers=-1 must be auto"),
        ("dataset.workers=true", "dataset.workers=True must be auto"),
        ("dataset.unreadable=ignore", "dataset.unreadable=ignore must be stop or skip"),
        ("dataset.image_size=0", "dataset.image_size=0 must be a whole number from 1 on"),
        ("dataset.image_size=224.5", "dataset.image_size=224.5 must be"),
        ("dataset.name=a/b", "dataset.name=a/b must be a name without /"),
        ("dataset.mean=[0.5,0.5,x]", "dataset.mean=.* must be a number per channel"),
    ],
)
def test_a_folder_that_cannot_be_is_one_sentence(setting, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose(["dataset=folder", "data_dir=pets", setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("crop", "sentence"),
    [
        ("scale=[0,1]", r"scale \[0, 1\] must be two rising numbers"),
        ("scale=1", "scale 1 must be two rising numbers"),
        ("ratio=[2,1]", r"ratio \[2, 1\] must be two rising numbers"),
        ("kind=corner", "The crop 'corner' must be"),
        ("size=0", "image size 0 must be a whole number"),
        ("flip=maybe", "flip='maybe' must be true or false"),
    ],
)
def test_a_crop_that_cannot_be_is_one_sentence(crop, sentence):
    key, value = crop.split("=")
    with pytest.raises(UserError, match=sentence) as caught:
        build(compose(["dataset=folder", "data_dir=pets", f"++dataset.train_crop.{key}={value}"]).dataset.train_crop)
    assert "\n" not in str(caught.value)


def test_a_key_may_be_added_to_a_node_that_is_built_and_its_owner_refuses_what_it_does_not_know():
    cfg = compose(["dataset=digits", "loss=isda", "+loss.foo=1"])
    with pytest.raises(ConfigError, match=r"ISDALoss cannot be made with .*foo"):
        build_loss(cfg, num_classes=10, feature_dim=64)


def test_what_a_part_refuses_is_one_sentence():
    cfg = compose(["model=resnet32", "model.depth=33"])
    with pytest.raises(ConfigError, match="ResNet has no depth 33"):
        build_model(cfg, 10)


def test_what_only_the_part_itself_can_refuse_is_said_with_all_that_it_was_given():
    sentence = (
        r"isda_repro.models.ShakeShake cannot be made with width=32, shift=foo, stem_bias=False: shift=foo must be"
    )
    with pytest.raises(ConfigError, match=sentence):
        build_model(compose(["model=shake_shake26_2x32d", "model.shift=foo"]), 10)
