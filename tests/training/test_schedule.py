"""Learning rates against Table 6, epoch by epoch."""

import math

import pytest
import yaml

from isda_repro.config import CONF_DIR, build, compose
from isda_repro.training import Cosine, MultiStep

TABLE6 = yaml.safe_load((CONF_DIR.parent / "isda_repro/experiments/reported.yaml").read_text())["table6"]


@pytest.mark.parametrize(
    "row", [row for row in TABLE6["rows"] if row["schedule"]["type"] == "multistep"], ids=lambda row: row["family"]
)
def test_multistep_epoch_by_epoch(row):
    milestones, gamma, rate = row["schedule"]["milestones"], row["schedule"]["gamma"], row["lr"]
    schedule = MultiStep(milestones, gamma)
    for epoch in range(1, row["epochs"] + 1):
        if epoch in milestones:  # "multiplied by gamma in 80th epoch": epoch 80 has the lower rate
            rate *= gamma
        assert row["lr"] * schedule.factor(epoch, row["epochs"]) == pytest.approx(rate)


def published_rate(epoch):
    """Return the rate of Cao et al.'s code (``adjust_learning_rate``, which adds 1 to an epoch counted from 0)."""
    if epoch <= 5:
        return 0.1 * epoch / 5
    return 0.1 * (0.0001 if epoch > 180 else 0.01 if epoch > 160 else 1)


def test_long_tail_has_the_published_rates_and_settings():
    recipe = compose(["model=resnet32", "dataset=cifar100", "recipe=long_tail"]).recipe
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.nesterov) == (200, 128, 0.9, False)
    assert (recipe.lr, recipe.weight_decay) == (0.1, 2e-4)
    schedule = build(recipe.schedule)
    rates = [recipe.lr * schedule.factor(epoch, recipe.epochs) for epoch in range(1, 201)]
    assert rates == pytest.approx([published_rate(epoch) for epoch in range(1, 201)], rel=1e-12)


def test_schedule_without_a_warm_up_has_the_very_same_factors():
    for epoch in range(1, 11):
        plain = 0.1 ** ((epoch >= 4) + (epoch >= 8))
        assert MultiStep([4, 8], 0.1).factor(epoch, 10) == plain
        assert MultiStep([4, 8], 0.1, warmup_epochs=1).factor(epoch, 10) == plain


@pytest.mark.parametrize("ends_at_zero", [False, True])
def test_cosine_epoch_by_epoch(ends_at_zero):
    epochs = TABLE6["rows"][-1]["epochs"]
    factors = [Cosine(ends_at_zero).factor(epoch, epochs) for epoch in range(1, epochs + 1)]
    over = [epoch + ends_at_zero for epoch in range(epochs)]  # epochs counted from 0, or from 1
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * t / epochs)) for t in over])
    assert (factors[0] == 1) is not ends_at_zero
    assert (factors[-1] == 0) is ends_at_zero
    assert factors == sorted(factors, reverse=True)
