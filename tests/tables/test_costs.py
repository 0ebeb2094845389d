"""What a run costs, from its settings alone; Table 1's cost columns."""

import dataclasses
import json
import re
import sys
from functools import cache
from subprocess import run as start

import pytest
from omegaconf import OmegaConf

from isda_repro.config import compose, request
from isda_repro.errors import UserError
from isda_repro.tables.costs import ON_GTX_980, Cost, Estimate, cost_of, networks, rate, table1_costs


@cache
def composed(*choices):
    return compose(list(choices))


def cost(*overrides):
    """Single settings are set afterwards: composing is what takes time."""
    settings = composed(*(one for one in overrides if "." not in one)).copy()
    for key, _, value in (one.partition("=") for one in overrides if "." in one):
        OmegaConf.update(settings, key, json.loads(value) if value[0].isdigit() else value, force_add=True)
    return cost_of(OmegaConf.to_container(settings))


def test_a_resnet_20_by_hand():
    """Convolutions and head, 160 epochs of 50,000 images, three passes, two operations a multiply-add."""
    stem = 27 * 16 * 32**2
    first = 6 * 9 * 16 * 16 * 32**2
    second = (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32) * 16**2
    third = (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64) * 8**2
    found = cost("model=resnet20", "dataset=cifar100")
    assert found.multiply_adds == stem + first + second + third + 6400
    assert found.petaflop == pytest.approx(6 * found.multiply_adds * 160 * 50_000 / 1e15)
    assert found.parameters == cost("model=resnet20").parameters + 90 * 65


def test_what_changes_the_compute_and_what_does_not():
    whole = cost("model=resnet32")
    assert cost("model=resnet32", "recipe.epochs=16").petaflop == pytest.approx(whole.petaflop / 10)
    assert cost("model=resnet32", "recipe.passes=3").petaflop == pytest.approx(whole.petaflop * 3)
    assert cost("model=resnet32", "dataset.holdout=5000").petaflop == pytest.approx(whole.petaflop * 0.9)
    assert cost("model=resnet32", "dataset.train_limit=500").petaflop == pytest.approx(whole.petaflop / 100)
    both = cost("model=resnet32", "dataset.train_limit=500", "dataset.holdout=5000")
    assert both.petaflop == pytest.approx(whole.petaflop / 100)
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
    assert [one.gpu for one in digits.estimates] == ["V100"]  # nobody timed such small images


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
    """Its request lacks what cannot change a result, and its nulls."""
    settings = OmegaConf.to_container(compose(["model=se_resnet110", "loss=isda"]))
    assert cost_of({**request(settings), "choice": settings["choice"]}) == cost_of(settings)


def test_hours_are_the_published_ones_where_the_recipe_has_as_many_epochs():
    """ResNet-110: 160 epochs in 3 h 06 on a GTX 980; WRN-28-10: 200 in 3 h 41 on a V100."""
    large, small = cost("model=resnet110"), cost("model=resnet32")
    assert large.estimates[0] == Estimate(pytest.approx(3.1), "GTX 980", at_least=False)
    share = small.multiply_adds / large.multiply_adds
    assert small.estimates[0].hours == pytest.approx(3.1 * share)
    wide = cost("model=wrn28_10", "recipe.epochs=200")
    assert [(one.gpu, one.hours, one.at_least) for one in wide.estimates] == [
        ("GTX 980", pytest.approx(16 + 10 / 60), False),
        ("V100", pytest.approx(3 + 41 / 60), True),
    ]
    assert all(rate(measured) > 1 for measured in ON_GTX_980)


def test_how_it_is_said():
    assert str(cost("model=wrn28_10")) == "378 PFLOP; 19 h on a GTX 980, 4.4 h or more on a V100"
    few = cost("model=resnet8", "recipe=small_data", "dataset.train_limit=1000")
    assert str(few) == "0.008 PFLOP; less than a minute on a GTX 980"
    assert (
        str(Cost(1, 1, 1, 12345.6, (Estimate(1.25, "A100", at_least=True),))) == "12,346 PFLOP; 1.2 h or more on a A100"
    )
    assert str(cost("model=wrn28_10", "dataset=digits")) == "0.08 PFLOP"


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
    assert found.wall is None
    assert table1_costs("wrn28_10", tmp_path) is None


@pytest.fixture
def write(load_script, tmp_path):
    """``write(name, accelerator, percent)``: what the benchmark would write of ResNet-50."""
    report = load_script("overhead_report")
    names = [field.name for field in dataclasses.fields(report.Row)]

    def measurement(name, accelerator, percent, classes=1000):
        row = dict.fromkeys(names, 0.0) | {"model": "resnet50", "classes": classes, "pixels": 224, "batch_size": 16}
        row |= {"added_percent": percent, "added_low": percent - 1, "added_high": percent + 1, "step_percent": 0.5}
        about = {"accelerator": accelerator, "hardware": "that", "precision": "bf16"}
        report.write_json(tmp_path / "benchmarks" / f"overhead_{name}.json", [report.Row(**row)], **about)

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


def test_all_of_table_1_has_been_measured_and_the_table_beside_says_the_same(root):
    lines = (root / "results" / "benchmarks" / "overhead_table1_cpu.md").read_text().splitlines()
    for model in (
        "resnet50",
        "resnet101",
        "resnet152",
        "densenet121",
        "densenet265",
        "resnext50_32x4d",
        "resnext101_32x8d",
    ):
        wall = table1_costs(model, root / "results").wall
        assert 0 < wall.low <= wall.percent <= wall.high
        printed = f"| {wall.percent:+.2f}% ({wall.low:+.2f} to {wall.high:+.2f}) |"
        assert any(line.startswith(f"| {model}, ") and printed in line for line in lines)


def test_a_damaged_measurement_is_named(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "overhead_cpu.json").write_text("{}")
    with pytest.raises(UserError, match=r"overhead_cpu\.json is no measurement of benchmark_overhead\.py's: .*accel"):
        table1_costs("resnet50", tmp_path)


def test_all_models_of_table_1_have_a_cost():
    counted = [name for name in networks() if table1_costs(name) is not None and " " not in name]
    assert counted == [
        "densenet121", "densenet265", "resnet101", "resnet152", "resnet50", "resnext101_32x8d", "resnext50_32x4d"
    ]  # fmt: skip


def test_no_torch_is_needed():
    code = "import sys, isda_repro.tables.costs as c; c.networks(); assert 'torch' not in sys.modules"
    assert start([sys.executable, "-c", code], check=False).returncode == 0
