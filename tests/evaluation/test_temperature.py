"""Temperature scaling: the minimum of the loss, its invariances, and that no half sees its own labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isda_repro.evaluation.measures import calibrate
from isda_repro.evaluation.temperature import HIGHEST, LOWEST, fit_temperature, losses_at, scale

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(4000, 7, dtype=torch.float64, generator=GENERATOR)
TARGETS = (LOGITS / 2.5).softmax(1).multinomial(1, generator=GENERATOR)[:, 0]


def test_temperature_of_the_labels_is_found():
    """The labels are drawn from the probabilities at temperature 2.5."""
    assert fit_temperature(LOGITS, TARGETS) == pytest.approx(2.5, rel=0.05)


def test_loss_is_stationary_at_the_temperature():
    found = fit_temperature(LOGITS, TARGETS)
    temperature = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(LOGITS / temperature, TARGETS)
    (slope,) = torch.autograd.grad(loss, temperature)
    assert abs(slope) < 1e-5
    below, there, above = losses_at(LOGITS, TARGETS, [0.9 * found, found, 1.1 * found])
    assert there == pytest.approx(loss.item(), rel=1e-12)
    assert below > there < above


def test_scale_of_the_logits_does_not_matter():
    """Two networks that differ in the scale of their logits alone have the same scaled measures."""
    found, tripled = scale(LOGITS.float(), TARGETS), scale(3 * LOGITS.float(), TARGETS)
    assert tripled.temperatures == pytest.approx([3 * one for one in found.temperatures], rel=1e-4)
    assert tripled.loss == pytest.approx(found.loss, abs=1e-8)
    assert tripled.calibration.expected_error == pytest.approx(found.calibration.expected_error, abs=0.01)
    assert F.cross_entropy(3 * LOGITS, TARGETS) > found.loss + 0.1


def test_measures_are_those_of_each_half_at_the_temperature_of_the_other():
    found = scale(LOGITS, TARGETS)
    even, odd = fit_temperature(LOGITS[::2], TARGETS[::2]), fit_temperature(LOGITS[1::2], TARGETS[1::2])
    assert found.temperatures == (odd, even)
    assert odd != even
    halves = [LOGITS[number] / (odd if number % 2 == 0 else even) for number in range(len(LOGITS))]
    probabilities = torch.stack(halves).softmax(1)
    assert found.loss == pytest.approx(-probabilities[range(len(TARGETS)), TARGETS].log().mean().item(), rel=1e-12)
    right = (probabilities.argmax(1) == TARGETS).numpy()
    expected = calibrate(probabilities.amax(1).numpy(), right)
    np.testing.assert_array_equal(found.calibration.images, expected.images)
    np.testing.assert_array_equal(found.calibration.accuracy, expected.accuracy)
    np.testing.assert_allclose(found.calibration.confidence, expected.confidence, rtol=1e-12)


def test_labels_of_a_half_do_not_change_its_temperature():
    other = TARGETS.clone()
    other[::2] = other[::2].roll(1)
    found = scale(LOGITS, other)
    assert found.temperatures[0] == scale(LOGITS, TARGETS).temperatures[0]
    assert found.temperatures[1] != scale(LOGITS, TARGETS).temperatures[1]


@pytest.mark.parametrize(("right", "limit"), [(True, LOWEST), (False, HIGHEST)])
def test_temperature_has_limits(right, limit):
    """Without an error the best temperature would be 0, and with nothing right it has no limit."""
    targets = torch.arange(4)
    found = fit_temperature(torch.eye(4, dtype=torch.float64), targets if right else (targets + 1) % 4)
    assert found == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize(("images", "wrong", "is_scaled"), [(0, [], 0), (1, [0], 0), (8, [1, 3], 0), (8, [1, 4], 1)])
def test_each_half_needs_an_error(images, wrong, is_scaled):
    targets = torch.arange(images) % 3
    logits = torch.eye(3)[targets]
    logits[wrong] = logits[wrong].roll(1, 1)
    assert (scale(logits, targets) is not None) == is_scaled
