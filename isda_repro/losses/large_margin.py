"""Large-margin softmax, L-Softmax (Liu et al. 2016): the angle to the own class counts m times.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from isda_repro.losses.batch_classes import without_negative
from isda_repro.losses.criterion import Criterion, require_count, require_from_zero

ANNEALING_BASE, ANNEALING_SPAN, ANNEALING_POWER = 1000.0, 0.3, 45.0


class LargeMarginSoftmax(Criterion):
    """Cross-entropy after the own logit ``|w_y||a| cos(theta)`` has been lowered towards ``|w_y||a| psi(theta)``.

    Liu et al.'s equations 4 and 6: psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m], a function
    that falls from 1 to 1 - 2m and is never above cos(theta). From the start it cannot be learnt, so the own logit is
    ``(beta cos + psi) / (beta + 1)`` times the norms, with a beta that goes to almost zero:

        beta(t) = max(lowest_beta, 1000 (1 + 0.3 t/T)^-45)

    which is what their code's ``base * (1 + gamma * iteration)^-power`` is in their setting of CIFAR-10 with
    augmentation (base 1000, gamma 1e-5, power 45, 30,000 iterations, m = 2), stretched to the length of the run: 1000
    at the beginning, 14 at a third, 0.0075 at the end. The ISDA paper gives neither m nor beta.

    The logits must be inner products, so the head must have no bias. In ``eval()`` there is no margin.

    Args:
        num_classes: C.
        feature_dim: A.
        margin: m, a whole number; 1 is cross-entropy.
        lowest_beta: 0 lets the margin come to its full strength.
        ignore_index: see ``Criterion``.

    Raises:
        ValueError: margin is not a whole number from 1 on, lowest_beta is negative; in use: the head has a bias.
    """

    uses_head_bias: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        margin: int = 2,
        lowest_beta: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        require_count("margin", margin)
        require_from_zero("lowest_beta", lowest_beta)
        self.margin, self.lowest_beta = margin, lowest_beta

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Mean over the batch."""
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
    """``(-1)^k cos(m theta) - 2k``, k = floor(m theta / pi), from cos(theta) [N] in [-1, 1]; no angle is formed.

    cos(m theta) is the m-th Chebyshev polynomial of cos(theta), whose derivative is finite where the arc cosine's is
    not, at -1 and 1.
    """
    before, multiple = torch.ones_like(cosine), cosine
    for _ in range(margin - 1):
        before, multiple = multiple, 2 * cosine * multiple - before
    with torch.no_grad():
        ends = [math.cos(math.pi * k / margin) for k in range(1, margin)]
        k = sum((cosine < end).to(cosine.dtype) for end in ends) if ends else torch.zeros_like(cosine)
        sign = 1 - 2 * (k % 2)
    return sign * multiple - 2 * k
