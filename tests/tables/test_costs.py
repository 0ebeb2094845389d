"""The cost of a run, from its settings alone; Table 1's cost columns."""

import dataclasses
import json
import os
import re
from functools import cache

import pytest
from omegaconf import OmegaConf

from isda_repro.config import compose, request
from isda_repro.tables.costs import Cost, Estimate, cost_of, counted, networks, rounded, table1_costs


@cache
def composed(*choices):
    return compose(list(choices))


def cost(*overrides):
    """Return the cost of a configuration; groups are composed once, and single settings are set afterwards."""
    groups = [
        one for one in overrides if one.partition("=")[0] in ("model", "dataset", "loss", "augmentation", "recipe")
    ]
    settings = composed(*groups).copy()
    for key, _, value in (one.partition("=") for one in overrides if one not in groups):
        OmegaConf.update(settings, key, json.loads(value) if value[0].isdigit() else value, force_add=True)
    return cost_of(OmegaConf.to_container(settings))


def test_a_resnet_20_by_hand():
    """Convolutions and head, 160 epochs of 50,000 images, three passes, two operations for a multiply-add."""
    stem = 27 * 16 * 32**2
    first = 6 * 9 * 16 * 16 * 32**2
    second = (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32) * 16**2
    third = (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64) * 8**2
    found = cost("model=resnet20", "dataset=cifar100")
    assert found.multiply_adds == stem + first + second + third + 6400
    assert found.petaflop == pytest.approx(6 * found.multiply_adds * 160 * 50_000 / 1e15)
    assert found.parameters == cost("model=resnet20").parameters + 90 * 65
    assert found.feature_dim == 64
    assert cost("model=resnet20", "loss=large_margin").parameters == cost("model=resnet20").parameters - 10  # no bias


def test_what_changes_the_compute_and_what_does_not():
    whole = cost("model=resnet32")
    assert cost("model=resnet32", "recipe.epochs=16").petaflop == pytest.approx(whole.petaflop / 10)
    assert cost("model=resnet32", "recipe.passes=3").petaflop == pytest.approx(whole.petaflop * 3)
    assert cost("model=resnet32", "dataset.holdout=5000").petaflop == pytest.approx(whole.petaflop * 0.9)
    assert cost("model=resnet32", "dataset.train_limit=500").petaflop == pytest.approx(whole.petaflop / 100)
    assert cost("model=resnet32", "dataset.imbalance=100").petaflop == pytest.approx(whole.petaflop * 12_406 / 50_000)
    for limit, share in ((500, 0.01), (48_000, 0.9)):  # the limit applies after the holdout
        both = cost("model=resnet32", f"dataset.train_limit={limit}", "dataset.holdout=5000")
        assert both.petaflop == pytest.approx(whole.petaflop * share)
    for same in ("seed=3", "loss=isda", "model.dropout=0.3", "augmentation=cutout", "recipe.lr=1"):
        assert cost("model=resnet32", same) == whole
    checkpointed = cost("model=densenet_bc100_12", "model.checkpointed=1")
    assert checkpointed == cost("model=densenet_bc100_12")


def test_images_of_another_size():
    large, small = cost("model=resnet50", "dataset=imagenet"), cost("model=resnet50", "dataset=cifar10")
    assert large.multiply_adds > 45 * small.multiply_adds
    assert [one.gpu for one in large.estimates] == ["V100"]
    digits = cost("model=resnet20", "dataset=digits")  # 1,437 images, 30 epochs, a sixteenth of the pixels
    body = (cost("model=resnet20").multiply_adds - 640) / 16
    assert digits.petaflop == pytest.approx(6 * (body + 640) * 1437 * 30 / 1e15)
    assert [one.gpu for one in digits.estimates] == ["V100"]  # no measurement exists for such small images


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=resnet50", "model.name=resnet18"),
        ("model=resnet20", "model.depth=26"),
        ("model=wrn28_10", "model.width=4"),
        ("model=resnet50", "dataset=folder", "data_dir=DATA"),
        ("model=resnet50", "dataset=imagenet", "dataset.image_size=160"),
        ("model=resnet50", "dataset=imagenet", "model.output_stride=8"),
    ],
)
def test_what_is_not_known_is_none(overrides):
    assert cost(*overrides) is None


def test_a_result_has_the_cost_of_its_run():
    """The request in a result omits nulls, and settings that cannot change the result."""
    settings = OmegaConf.to_container(compose(["model=se_resnet110", "loss=isda"]))
    assert cost_of({**request(settings), "choice": settings["choice"]}) == cost_of(settings)


@pytest.mark.parametrize(
    ("model", "epochs", "hours"),
    [
        ("resnet110", 160, 3 + 6 / 60),
        ("wrn28_10", 200, 16 + 10 / 60),
        ("resnext29_8x64d", 300, 42 + 50 / 60),
        ("densenet_bc100_12", 300, 15 + 20 / 60),
        ("shake_shake26_2x32d", 1800, 33 + 49 / 60),
    ],
)
def test_a_recipe_of_as_many_epochs_takes_the_published_hours(model, epochs, hours):
    first, *_ = cost(f"model={model}", f"recipe.epochs={epochs}").estimates
    assert first == Estimate(pytest.approx(hours), "GTX 980", at_least=False)


def test_other_networks_take_hours_by_their_multiply_adds():
    large, small, wide = cost("model=resnet110"), cost("model=resnet32"), cost("model=wrn28_10", "recipe.epochs=200")
    assert small.estimates[0].hours == pytest.approx(3.1 * small.multiply_adds / large.multiply_adds)
    hours = 3 + 41 / 60
    assert wide.estimates[1] == Estimate(pytest.approx(hours), "V100", at_least=True)
    assert small.estimates[1].hours == pytest.approx(hours * small.petaflop / wide.petaflop)


def test_hours_and_petaflop_are_said_in_two_digits_and_a_lower_bound_of_less_than_a_minute_is_not():
    assert [rounded(hours) for hours in (12345.6, 19.4, 1.26, 0.02)] == ["12,346", "19", "1.3", "0.02"]
    assert [counted(petaflop) for petaflop in (12345.6, 0.96, 0.0081)] == ["12,346", "1", "0.008"]
    least = Estimate(0.001, "V100", at_least=True)
    assert "V100" not in str(Cost(1, 1, 1, 0.008, (least,)))
    assert "V100" in str(Cost(1, 1, 1, 0.008, (dataclasses.replace(least, hours=0.01),)))


# ---------------------------------------------------------------------------------------------------- Table 1's columns


@pytest.mark.parametrize(
    ("model", "ours", "official"),
    [
        ("resnet50", 0.25, None),
        ("resnext101_32x8d", 0.06, None),
        ("densenet121", 0.18, 0.20),
        ("densenet265", 0.23, 0.24),
    ],
)
def test_the_theoretical_cost_is_table_1s_densenets_with_the_authors_first_channels(model, ours, official, tmp_path):
    found = table1_costs(model, tmp_path)
    assert round(found.theoretical, 2) == ours
    assert (found.official and round(found.official, 2)) == official
    if official is None:
        run = cost(f"model={model}", "dataset=imagenet")
        assert found.theoretical == pytest.approx(100 * 5 * 1000 * run.feature_dim / run.multiply_adds, rel=1e-9)
    assert found.wall is None
    assert table1_costs("wrn28_10", tmp_path) is None


@pytest.fixture
def write(load_script, tmp_path):
    """Return ``write(name, accelerator, percent)``, which writes a measurement of ResNet-50 as the benchmark would."""
    report = load_script("benchmarks/overhead_report")
    names = [field.name for field in dataclasses.fields(report.Row)]

    def measurement(name, accelerator, percent, classes=1000):
        row = dict.fromkeys(names, 0.0) | {"model": "resnet50", "classes": classes, "pixels": 224, "batch_size": 16}
        row |= {"added_percent": percent, "added_low": percent - 1, "added_high": percent + 1, "step_percent": 0.5}
        about = {"accelerator": accelerator, "hardware": "that", "precision": "bf16"}
        path = tmp_path / "benchmarks" / f"overhead_{name}.json"
        report.write_json(path, [report.Row(**row)], **about)
        return path

    return measurement


def test_the_wall_time_is_our_benchmarks_an_accelerators_if_there_is_one(write, tmp_path):
    write("cpu", False, 2.5)
    wall = table1_costs("resnet50", tmp_path).wall
    assert (wall.percent, wall.low, wall.high, wall.step_percent) == (2.5, 1.5, 3.5, 0.5)
    assert (wall.batch_size, wall.hardware, wall.precision) == (16, "that", "bf16")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", wall.date)
    assert table1_costs("resnet101", tmp_path).wall is None
    write("gpu", True, 7.0)
    write("zzz", False, 9.0)
    assert table1_costs("resnet50", tmp_path).wall.percent == 7.0
    write("gpu", True, 7.0, classes=100)
    assert table1_costs("resnet50", tmp_path).wall.percent == 2.5


def test_every_network_of_table_1_has_a_cost_and_a_measurement(root):
    counted = [name for name in networks() if " " not in name and table1_costs(name, root / "results") is not None]
    assert len(counted) == 7
    for model in counted:
        wall = table1_costs(model, root / "results").wall
        assert 0 < wall.low <= wall.percent <= wall.high


DAMAGED = ("{}", "[]", "", '{"accelerator": true, "rows": [{}]}', '{"rows": 1, "accelerator": 1}', "[" * 10**5)


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_measurement_is_named_and_passed_over(write, tmp_path, capsys, damage):
    write("cpu", False, 2.5)
    bad = tmp_path / "benchmarks" / "overhead_bad.json"
    bad.write_text(damage)
    os.mkfifo(tmp_path / "benchmarks" / "overhead_pipe.json")
    assert table1_costs("resnet50", tmp_path).wall.percent == 2.5
    assert table1_costs("resnet50", tmp_path).wall.percent == 2.5
    said = capsys.readouterr().err
    assert [said.count(str(bad)), said.count("overhead_pipe.json")] == [1, 1]


def test_the_latest_measurement_counts(write, tmp_path):
    for name, percent, date in (("b", 2.0, "2026-01-02"), ("c", 3.0, "2025-12-31"), ("a", 1.0, "2024-02-29")):
        path = write(name, True, percent)
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "date": date}))
    assert table1_costs("resnet50", tmp_path).wall.percent == 2.0
