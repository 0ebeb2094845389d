"""Temperature scaling: a loss and a calibration error once the scale of the logits has been corrected.

Guo et al., On Calibration of Modern Neural Networks (ICML 2017), section 4.2, divide all logits by one temperature T,
which minimises the negative log-likelihood of images outside the training set. It changes no prediction. What remains
of a difference between two networks afterwards is not a matter of the scale of their logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isda_repro.evaluation.measures import Calibration, calibrate

LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are looked for
PRECISION = 1e-5  # of log T


@dataclass(frozen=True)
class Scaled:
    """Measures of predictions whose temperature was fitted on other images.

    Args:
        temperatures: temperature of the even-numbered images, counted from 0, and of the odd-numbered ones; each was
            fitted on the other half.
        loss: mean negative log-likelihood of the labels.
        calibration: bins of the expected calibration error.
    """

    temperatures: tuple[float, float]
    loss: float
    calibration: Calibration


def scale(logits: Tensor, targets: Tensor) -> Scaled | None:
    """Return the measures after temperature scaling; None if one half has no wrong prediction.

    Images are taken alternately into two halves, so that the order of a data set that is sorted by class does not
    matter, and the temperature of each half is fitted on the other. Without a wrong prediction the loss would be lowest
    at a temperature of 0.

    Args:
        logits: finite logits, floating point [N, C].
        targets: labels, int64 [N].
    """
    wrong = logits.argmax(1) != targets
    if not (wrong[::2].any() and wrong[1::2].any()):
        return None
    logits = logits.double()
    temperatures = tuple(fit_temperature(logits[other::2], targets[other::2]) for other in (1, 0))
    scaled = torch.empty_like(logits)
    for half, temperature in enumerate(temperatures):
        scaled[half::2] = logits[half::2] / temperature
    likeliest = scaled.softmax(1).max(1)
    calibration = calibrate(likeliest.values.numpy(), (likeliest.indices == targets).numpy())
    return Scaled((temperatures[0], temperatures[1]), loss_at(scaled, targets, 1.0), calibration)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature from 0.05 to 20 that minimises the mean negative log-likelihood of the labels.

    The loss is convex in 1/T, so it has one minimum.

    Args:
        logits: logits, float64 [N, C].
        targets: labels, int64 [N].
    """
    from scipy.optimize import minimize_scalar  # 0.2 s

    found = minimize_scalar(
        lambda log: loss_at(logits, targets, math.exp(log)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": PRECISION},
    )
    return math.exp(found.x)


def loss_at(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the mean negative log-likelihood of the labels if the logits are divided by a temperature."""
    return float(F.cross_entropy(logits / temperature, targets))


def losses_at(logits: Tensor, targets: Tensor, temperatures: Sequence[float]) -> list[float]:
    """Return the mean negative log-likelihood at each temperature, computed in float64."""
    logits = logits.double()
    return [loss_at(logits, targets, one) for one in temperatures]
