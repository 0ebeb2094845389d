"""Class probabilities as targets: the expected loss over the labels, and checks of the probabilities.

Shapes: N samples in the batch, C classes, U labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import is_asynchronous

LARGEST_EXPONENT = 500.0  # float64 holds its exponential, and the inverse, with room for the smallest probability


def raised_by_labels(logits: Tensor, half_sigma2: Tensor) -> Tensor:
    """Return by how much the cross-entropy of each sample would grow with each label, [N, U], in float64.

    With the softmax pi of a sample's logits and h_c the row of lambda/2 sigma2 of label c, equation 4 exceeds the
    cross-entropy by

        log sum_j exp(z_j + h_cj) - log sum_j exp(z_j) = log sum_j pi_j exp(h_cj)

    So all N U C augmented logits become one product of matrices, and none of them is stored. h is at least 0, so that
    the sum is at least 1, and float64 holds it. An h above ``LARGEST_EXPONENT``, of a training that diverges, counts as
    that number, and still has its gradient.

    Args:
        logits: [N, C].
        half_sigma2: h [U, C], at least 0.
    """
    exponent_UC = half_sigma2.double()
    exponent_UC = exponent_UC - (exponent_UC.detach() - LARGEST_EXPONENT).clamp(min=0)
    return (logits.double().softmax(1) @ exponent_UC.exp().T).log()


def sound_probabilities(targets: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Check probabilities [N, C]; where no value may be read, return zeros for a bad row, and which rows are good [N].

    Args:
        targets: [N, C]; a row need not sum to 1, as in PyTorch's cross-entropy.
        name: that of the loss, for the message.

    Raises:
        ValueError: an entry is negative or not finite (on a CPU).
    """
    is_good_N = ((targets >= 0) & (targets < torch.inf)).all(1)  # False for NaN
    if is_asynchronous(targets):
        return torch.where(is_good_N[:, None], targets, 0), is_good_N
    if not is_good_N.all():
        row = int((~is_good_N).nonzero()[0, 0])
        raise ValueError(
            f"{name}: the class probabilities of sample {row} have a number that is negative or not finite; give "
            "probabilities from 0 on, or class numbers as int64"
        )
    return targets, None
