"""Misuse that shows in the first training calls of a criterion, and in nothing that it returns.

- Logits that are not those of ``head`` for the given features: the added term of ISDA belongs to other logits then.
- Parameters that no optimizer holds: the centres of ``CenterLoss`` then stand still.
- State on another device than the features.

Each criterion is checked until it has passed, which takes one or two calls; then ``FirstCalls`` is dropped. On an
accelerator the host waits once, in the first call, and never while a graph is captured; a compiled graph has no check.

Shapes: R rows of the batch, C classes (some of all), A features.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import without_autocast
from isda_repro.losses.dense import rows_at

if TYPE_CHECKING:
    from isda_repro.losses.criterion import Criterion

ROWS, CLASSES = 32, 64  # compared at most, spread over the batch and the classes
CALLS = 16  # in which parameters must have moved if the head has
MASKED = -1e4  # logits at or below it have been masked
OF_LOGITS, OF_PRODUCTS = 0.01, 0.04  # tolerated; bf16 takes at most 0.17 of it, a weight in int8 0.66
RELATED = 0.3  # correlation; unrelated logits have about 0, those behind a dropout of p about sqrt(1 - p)
CALLER = 9  # frames between ``warnings.warn`` and the line that calls the criterion


def check_first_calls(criterion: Criterion, features: Tensor, logits: Tensor, head: nn.Linear) -> None:
    """Check a training call of a criterion, unless it has passed or values must not be read now.

    Args:
        criterion: its attribute ``first_calls`` becomes None when nothing is left to check.
        features: [N, A], or pixels in the form of rows.
        logits: [N, C].
        head: the layer with ``weight`` [C, A], without a wrapper.

    Raises:
        ValueError: the logits have nothing to do with ``head(features)``, or the criterion is on another device.
    """
    if criterion.first_calls is None or torch.compiler.is_compiling():
        return
    device = features.device.type
    if device == "meta" or (device == "cuda" and torch.cuda.is_current_stream_capturing()):
        return
    if criterion.first_calls.pass_call(criterion, features, logits, head):
        criterion.first_calls = None


class FirstCalls:
    """Checks that a criterion has still to pass."""

    def __init__(self) -> None:
        self.logits_passed = False
        self.calls = 0
        self.version = 0
        self.before: tuple[list[Tensor], ...] = ()  # in the first call: the criterion's parameters, the head's weight

    def pass_call(self, criterion: Criterion, features: Tensor, logits: Tensor, head: nn.Linear) -> bool:
        """Check one call; return True if nothing is left to check. See ``check_first_calls``."""
        if not self.logits_passed:
            _check_device(criterion, features)
            self.logits_passed = not criterion.uses_head or _check_logits(criterion, features, logits, head)
        self.calls += 1
        return self._parameters_pass(criterion, head) and self.logits_passed

    def _parameters_pass(self, criterion: Criterion, head: nn.Linear) -> bool:
        """Warn if the criterion's parameters stand still while the head's move; return True if that is decided.

        Looks at calls 1, 2, 4, 8, ... A step of most optimizers raises the version of a tensor, which can be read
        without waiting for a device. Where it did not, as with fused ones, values decide from call ``CALLS`` on.
        """
        own = {name: weight for name, weight in criterion.named_parameters() if weight.requires_grad}
        if not own:
            return True
        if self.calls & (self.calls - 1):
            return False
        now: tuple[list[Tensor], ...] = (list(own.values()), [head.weight])
        version = sum(weight._version for weight in own.values())
        if self.calls == 1:
            self.before = tuple([weight.detach().clone() for weight in weights] for weights in now)
            self.version = version
            return False
        if version != self.version:
            return True
        if self.calls < CALLS:
            return False
        moved, head_moved = _differ(now[0], self.before[0]), _differ(now[1], self.before[1])
        if head_moved and not moved:
            _warn(
                f"{type(criterion).__name__}: {' and '.join(own)} did not change in {self.calls} calls, while the head "
                "did: give the criterion's parameters to the optimizer too, with `for group in "
                "criterion.parameter_groups(): optimizer.add_param_group(group)`"
            )
        return moved or head_moved


def _differ(now: list[Tensor], before: list[Tensor]) -> bool:
    return not all(torch.equal(*pair) for pair in zip(now, before, strict=True))


def _check_device(criterion: Criterion, features: Tensor) -> None:
    for name, tensor in (*criterion.named_parameters(), *criterion.named_buffers()):
        if tensor.device != features.device:
            raise ValueError(
                f"{type(criterion).__name__}: {name} is on {tensor.device} and the features are on {features.device}: "
                f"move the criterion as the network, with criterion.to({str(features.device)!r})"
            )


def _check_logits(criterion: Criterion, features: Tensor, logits: Tensor, head: nn.Linear) -> bool:
    """Compare logits with those of the head in some rows; return False if these rows decide nothing.

    Raises:
        ValueError: they have nothing to do with each other.
    """
    fit = _fit(features, logits, head)
    if fit is None or fit.is_good:
        return fit is not None
    name = f"{type(criterion).__name__}: the logits are not head(features)"
    if fit.correlation < RELATED:
        raise ValueError(
            f"{name} and have nothing to do with them (correlation {fit.correlation:.2f}): give the tensor that goes "
            "into the head as features, what the head returns for it as logits, and this head, not another one of the "
            "same shape"
        )
    _warn(f"{name}, so the added term belongs to other logits than those that are trained: {fit.cause}")
    return True


class Fit(NamedTuple):
    """Agreement of logits with ``head(features)``, up to what softmax does not see and up to the bias.

    Attributes:
        is_good: True if they differ by no more than rounding, also of low precision.
        correlation: between the two.
        cause: what has probably happened, and what to change.
    """

    is_good: bool
    correlation: float
    cause: str


@torch.no_grad()
def _fit(features: Tensor, logits: Tensor, head: nn.Linear) -> Fit | None:
    """Compare logits with those of the head in some rows; None if there is nothing to compare."""
    weight, bias = head.weight.detach(), cast("Tensor | None", head.bias)
    if type(head.weight) not in (Tensor, nn.Parameter) or len(logits) < 2 or len(weight) < 2:
        return None  # DTensor and other subclasses would need the other processes
    rows, classes = _spread(len(logits), ROWS), _spread(len(weight), CLASSES)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with without_autocast(features):
        features_RA, logits_RC = rows_at(features, rows).to(dtype), logits[rows, classes].to(dtype)
        weight_CA, bias_C = weight[classes].to(dtype), None if bias is None else bias[classes].to(dtype)
        expected_RC = F.linear(features_RA, weight_CA, bias_C)
        counts_RC = (logits_RC > MASKED) & logits_RC.isfinite() & features_RA.any(1, keepdim=True)
        found_RC, expected_RC = (one.where(counts_RC, torch.nan) for one in (logits_RC, expected_RC))
        products_RC = F.linear(features_RA.square(), weight_CA.square()).where(counts_RC, torch.nan)
        away_RC, of_head_RC, given_RC = (_centred(one) for one in (found_RC - expected_RC, expected_RC, found_RC))
        means = (away_RC**2, expected_RC**2, products_RC, of_head_RC**2, given_RC**2, of_head_RC * given_RC)
        away, raw, products, of_head, given, both = torch.stack([one.nanmean() for one in means]).tolist()
        if not math.isfinite(away) or not products:
            return None  # masked, not finite, padded, or a head of zeros
        if away**0.5 <= OF_LOGITS * raw**0.5 + OF_PRODUCTS * products**0.5:
            return Fit(True, 1.0, "")
        cosine_RC = _centred(F.linear(F.normalize(features_RA), F.normalize(weight_CA)).where(counts_RC, torch.nan))
        return Fit(False, both / max((of_head * given) ** 0.5, 1e-30), _cause(given_RC, of_head_RC, cosine_RC))


def _spread(count: int, limit: int) -> slice:
    """Return a slice of at most ``limit`` of ``count`` rows."""
    step = max(1, count // limit)
    return slice(0, step * limit, step)


def _centred(logits_RC: Tensor) -> Tensor:
    """Return logits less their means per class and per row: any bias, and what softmax does not see."""
    logits_RC = logits_RC - logits_RC.nanmean(0)
    return logits_RC - logits_RC.nanmean(1, keepdim=True)


def _cause(given_RC: Tensor, of_head_RC: Tensor, cosine_RC: Tensor) -> str:
    """Say what would explain logits that are related to the head's, and what to change."""
    times, left = _best_factor(given_RC, of_head_RC)
    if left < OF_PRODUCTS:
        return f"they are {times:.3g} times as large; give {times:.3g} * features to the head, and here as features"
    times, left = _best_factor(given_RC, cosine_RC)
    if left < OF_PRODUCTS:
        return (
            f"they are {times:.3g} times the cosines of features and weights; normalise the weight of the head by "
            f"torch.nn.utils.parametrize, and give it {times:.3g} * normalize(features), also as features"
        )
    return (
        "if there is a dropout or another layer in between, give what comes after it as features; and give the head "
        "that made the logits, not a copy or another layer"
    )


def _best_factor(given_RC: Tensor, model_RC: Tensor) -> tuple[float, float]:
    """Return the factor on ``model_RC`` with the least squared error, and the relative error that is left."""
    times = (given_RC * model_RC).nansum() / (model_RC**2).nansum()
    left = (given_RC - times * model_RC).square().nansum() / given_RC.square().nansum()
    return times.item(), left.sqrt().item()


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=CALLER)
