"""Learning rates against Table 6, epoch by epoch."""

import math

import pytest
import yaml

from isda_repro.config import CONF_DIR
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


@pytest.mark.parametrize("ends_at_zero", [False, True])
def test_cosine_epoch_by_epoch(ends_at_zero):
    epochs = TABLE6["rows"][-1]["epochs"]
    factors = [Cosine(ends_at_zero).factor(epoch, epochs) for epoch in range(1, epochs + 1)]
    over = [epoch + ends_at_zero for epoch in range(epochs)]  # epochs counted from 0, or from 1
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * t / epochs)) for t in over])
    assert (factors[0] == 1) is not ends_at_zero
    assert (factors[-1] == 0) is ends_at_zero
    assert factors == sorted(factors, reverse=True)
