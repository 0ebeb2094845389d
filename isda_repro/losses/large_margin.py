"""Large-margin softmax, L-Softmax (Liu et al. 2016): multiplies the angle to a sample's own class by m.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, without_negative
from isda_repro.losses.criterion import Criterion, require_count, require_from_zero

ANNEALING_BASE, ANNEALING_SPAN, ANNEALING_POWER = 1000.0, 0.3, 45.0


class LargeMarginSoftmax(Criterion):
    """Cross-entropy, where the own logit ``|w_y||a| cos(theta)`` is lowered towards ``|w_y||a| psi(theta)``.

    Liu et al.'s equations 4 and 6: psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m], a function
    that falls from 1 to 1 - 2m and is never above cos(theta). A network cannot learn it from the start, so the own
    logit is ``(beta cos + psi) / (beta + 1)`` times the norms, where beta falls to almost zero during training:

        beta(t) = max(lowest_beta, 1000 (1 + 0.3 t/T)^-45)

    This is ``base * (1 + gamma * iteration)^-power`` of their code, with their settings for CIFAR-10 with augmentation
    (base 1000, gamma 1e-5, power 45, 30,000 iterations, m = 2), stretched to the length of the run: 1000 at the
    beginning, 14 after a third, 0.0075 at the end. The ISDA paper gives neither m nor beta.

    The logits must be inner products, so the head must have no bias. In ``eval()`` there is no margin.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        margin: the integer m; 1 gives cross-entropy.
        lowest_beta: lower limit of beta; 0 lets the margin reach its full strength.
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: margin is not an integer >= 1, or lowest_beta is negative; when called, if the head has a bias.
    """

    uses_head: ClassVar[bool] = True
    uses_head_bias: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        margin: int = 2,
        lowest_beta: float = 0.0,
        ignore_index: int | None = IGNORED,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_count("margin", margin)
        require_from_zero("lowest_beta", lowest_beta)
        self.margin, self.lowest_beta = margin, lowest_beta

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the mean loss over the batch."""
        if cast("Tensor | None", head.bias) is not None:  # in quotes: torch 2.6 compiles no union
            raise ValueError(
                f"{type(self).__name__} needs a head without bias, torch.nn.Linear(..., bias=False): its margin is one "
                "of the angle between a feature and a weight"
            )
        column_N1 = without_negative(targets)[:, None]
        own_N = logits.gather(1, column_N1)[:, 0]
        weight_NA = head.weight.to(logits.dtype).index_select(0, column_N1[:, 0])
        norms_N = torch.linalg.vector_norm(weight_NA, dim=1) * torch.linalg.vector_norm(features, dim=1)
        cosine_N = (own_N / norms_N.clamp(min=torch.finfo(norms_N.dtype).tiny)).clamp(-1, 1)
        lowered_N = (psi(cosine_N, self.margin) - cosine_N) * norms_N / (self._beta(progress) + 1)
        return self._cross_entropy(
            features, logits.scatter_add(1, column_N1, lowered_N[:, None]), targets, head=head, progress=progress
        )

    def _beta(self, progress: float | Tensor) -> float | Tensor:
        beta: float | Tensor = ANNEALING_BASE * (1 + ANNEALING_SPAN * progress) ** -ANNEALING_POWER
        if isinstance(beta, Tensor):
            return beta.clamp(min=self.lowest_beta)
        return max(self.lowest_beta, beta)


def psi(cosine: Tensor, margin: int) -> Tensor:
    """Return ``(-1)^k cos(m theta) - 2k``, with k = floor(m theta / pi), from the cosines [N] in [-1, 1].

    No angle is computed: cos(m theta) is the m-th Chebyshev polynomial of cos(theta), whose derivative is finite at -1
    and 1, where that of the arc cosine is not.
    """
    before, multiple = torch.ones_like(cosine), cosine
    for _ in range(margin - 1):
        before, multiple = multiple, 2 * cosine * multiple - before
    with torch.no_grad():
        ends = [math.cos(math.pi * k / margin) for k in range(1, margin)]
        k = sum((cosine < end).to(cosine.dtype) for end in ends) if ends else torch.zeros_like(cosine)
        sign = 1 - 2 * (k % 2)
    return sign * multiple - 2 * k
