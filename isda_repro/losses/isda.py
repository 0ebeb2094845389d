"""ISDA: the upper bound of the expected cross-entropy over augmented features (equation 4, Proposition 1).

Shapes: N samples in the batch, C classes, A features, U rows: one for each class of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isda_repro.losses.batch_classes import (
    IGNORED,
    BatchClasses,
    classes_present,
    is_asynchronous,
    mark_unsound,
    of_all_processes,
    rows_of_fixed_number,
)
from isda_repro.losses.covariances.class_statistics import ClassStatistics, ClassVariances
from isda_repro.losses.covariances.packed import PackedStatistics
from isda_repro.losses.covariances.packed_quadratic import add_half_sigma2_packed
from isda_repro.losses.covariances.quadratic import Strength, add_half_sigma2, sigma2_common, sigma2_diagonal
from isda_repro.losses.criterion import require_from_zero
from isda_repro.losses.cross_entropy import CrossEntropyCriterion

COVARIANCES = ("full", "diagonal", "shared", "identity")
SQUARE_BYTES = 2**31  # DenseNet-BC-190-40 on CIFAR-100, the paper's largest on CIFAR, takes 1.9e9
LAMBDA_SCHEDULES = ("linear", "constant")


class ISDALoss(CrossEntropyCriterion):
    """Cross-entropy on ``logits + lambda/2 (w_j - w_y)^T Sigma_y (w_j - w_y)``, with lambda = progress * lambda_0.

    In training each call first merges the batch into the running statistics of its classes (equations 9-11) and then
    uses them in equation 4, as the authors' code does. The statistics are constants for the gradient. The head's weight
    also gets a gradient through the quadratic term, the features only through the logits (equation 14).

    >>> criterion = ISDALoss(num_classes=100, feature_dim=640, lambda_0=0.5)
    >>> features = backbone(images)                                              # [N, 640]
    >>> loss = criterion(features, head(features), targets, head=head, progress=step / total_steps)

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        lambda_0: strength of the augmentation at the end of training. The paper selects it from 0.1, 0.25, 0.5, 0.75
            and 1 on CIFAR, and from 1, 2.5, 5, 7.5 and 10 on ImageNet, with diagonal covariances (section 4.1).
        covariance: the form of Sigma, one of

            - "full": a matrix for each class (the paper on CIFAR); 4 C A A bytes of buffers, or half of it if packed;
            - "diagonal": the variances of each class (the paper on ImageNet); 8 C A bytes with the means;
            - "shared": one matrix of all features, whatever their class (Table 5's "Single covariance matrix");
            - "identity": nothing is estimated (Table 5's "Identity matrix").
        lambda_schedule: "linear" for lambda = progress * lambda_0 (the paper's t/T), or "constant" for lambda_0
            throughout (Table 5's "Constant lambda_0").
        ignore_index: samples with this target are left out of the loss and of the statistics; see ``Criterion``.
        packed: store full covariances as triangles, which takes half the memory and is somewhat slower: those of a
            batch are unpacked a few at a time. None: pack them if square matrices would take more than 2 GiB.
        process_group: processes whose batches count as one. Statistics are those of all samples and the same
            everywhere; packed covariances are divided among the processes. Each process must call the criterion in each
            step, see ``isda_repro.losses.batch_classes``. None: this process alone.
        kernels: True: compute float32 batches on CUDA with Triton (``isda_repro.losses.covariances.kernels``), for
            square full covariances. Other batches, soft targets and compiled graphs use plain torch. None or False: no
            kernels; they are off by default because they have not been measured to be faster yet.
        weight, reduction, label_smoothing: those of ``torch.nn.CrossEntropyLoss``, see ``CrossEntropyCriterion``. With
            label smoothing a sample enters the statistics of its label as a whole, and only the target distribution of
            the cross-entropy is smoothed.

    Raises:
        ValueError: lambda_0 is negative or not finite; covariance or lambda_schedule has an unknown value; ``packed``
            is set without full covariances; or kernels=True without square full covariances, a CUDA device, or Triton.
    """

    has_statistics: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        lambda_0: float = 0.5,
        covariance: str = "full",
        lambda_schedule: str = "linear",
        ignore_index: int | None = IGNORED,
        packed: bool | None = None,
        process_group: dist.ProcessGroup | None = None,
        kernels: bool | None = None,
        *,
        weight: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes,
            feature_dim,
            ignore_index,
            weight=weight,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        check_lambda(lambda_0, lambda_schedule)
        if covariance not in COVARIANCES:
            raise ValueError(f"there is no covariance={covariance!r}; it can be {', '.join(COVARIANCES)}")
        if packed not in (None, True, False):
            raise ValueError(f"packed={packed} must be true, false or null")
        if packed and covariance != "full":
            raise ValueError(f"packed=True is for covariance='full', and not for {covariance!r}")
        if packed is None:
            packed = covariance == "full" and 4 * num_classes * feature_dim**2 > SQUARE_BYTES
        if kernels not in (None, True, False):
            raise ValueError(f"kernels={kernels} must be true, false or null")
        if kernels:
            _check_kernels("packed" if packed else covariance)
        self.kernels = bool(kernels)
        self.lambda_0, self.lambda_schedule, self.covariance = lambda_0, lambda_schedule, covariance
        self.process_group = process_group
        self.statistics: ClassStatistics | ClassVariances | PackedStatistics | None = None
        if packed:
            self.statistics = PackedStatistics(num_classes, feature_dim, process_group)
        elif covariance in ("full", "shared"):
            self.statistics = ClassStatistics(num_classes if covariance == "full" else 1, feature_dim)
        elif covariance == "diagonal":
            self.statistics = ClassVariances(num_classes, feature_dim)

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Update the statistics and return equation 4, reduced over the batch."""
        all_features, all_targets = of_all_processes(features, targets, self.process_group)
        strength = self.lambda_0 * (progress if self.lambda_schedule == "linear" else 1)
        weight = head.weight.to(logits.dtype)
        if targets.is_floating_point():
            return self._soft_loss(logits, weight, targets, all_features, all_targets, strength)
        if self._takes_kernels(logits):
            augmented = self._augmented_by_kernels(logits, weight, targets, all_features, all_targets, strength)
        else:
            if self.statistics is not None:
                self.statistics.update(
                    all_features, all_targets.clamp(max=0) if self.covariance == "shared" else all_targets
                )
            augmented = self._augmented(logits, weight, targets, all_targets, strength)
        return self._augmented_cross_entropy(logits, augmented, targets)

    def _soft_loss(
        self,
        logits: Tensor,
        weight: Tensor,
        targets: Tensor,
        all_features: Tensor,
        all_targets: Tensor,
        strength: Strength,
    ) -> Tensor:
        """Update the statistics with class probabilities, and return the expected loss over the labels."""
        if self.statistics is not None:
            counts_N1 = (all_targets > 0).any(1, keepdim=True).to(all_targets.dtype)  # once, whatever its classes
            self.statistics.update(all_features, counts_N1 if self.covariance == "shared" else all_targets.detach())
        labels = torch.arange(self.num_classes, device=logits.device)
        if not (is_asynchronous(targets) or targets.requires_grad):
            labels = labels[(all_targets > 0).any(0)]
        nothing = logits.new_zeros(len(labels), self.num_classes)
        half_sigma2 = self._augmented(nothing, weight, labels, labels, strength)
        return self._expected_loss(logits, half_sigma2, labels, targets)

    def _augmented(
        self, logits: Tensor, weight: Tensor, targets: Tensor, all_targets: Tensor, strength: Strength
    ) -> Tensor:
        statistics = self.statistics
        if isinstance(statistics, PackedStatistics):
            return add_half_sigma2_packed(logits, targets, weight, statistics, all_targets, strength)
        batch = self._classes(targets)
        if isinstance(statistics, ClassVariances):
            sigma2_UC = sigma2_diagonal(weight, statistics.variance.to(logits.dtype), batch)
        elif statistics is None:
            sigma2_UC = sigma2_common(weight, None, batch)
        elif self.covariance == "shared":
            sigma2_UC = sigma2_common(weight, statistics.covariance[0].to(logits.dtype), batch)
        else:
            return add_half_sigma2(logits, weight, statistics.covariance.to(logits.dtype), batch, strength)
        return logits + (0.5 * strength * sigma2_UC).index_select(0, batch.row_N)

    def _takes_kernels(self, logits: Tensor) -> bool:
        if not self.kernels or torch.compiler.is_compiling() or not (logits.is_cuda or _is_interpreted()):
            return False
        assert isinstance(self.statistics, ClassStatistics)
        state = self.statistics.mean, self.statistics.covariance
        return all(one.dtype == logits.dtype == torch.float32 and one.is_contiguous() for one in state)

    def _augmented_by_kernels(
        self,
        logits: Tensor,
        weight: Tensor,
        targets: Tensor,
        all_features: Tensor,
        all_targets: Tensor,
        strength: Strength,
    ) -> Tensor:
        """Update the statistics and return the augmented logits [N, C], by Triton kernels on the tensors' device."""
        from isda_repro.losses.covariances import kernels
        from isda_repro.losses.covariances.sorted_batch import sort_by_class

        assert isinstance(self.statistics, ClassStatistics)
        with torch.cuda.device_of(logits):
            counted = mark_unsound(all_features, all_targets, all_features.dtype)
            batch = kernels.update(self.statistics, all_features, counted)
            if all_targets is not targets:
                batch = sort_by_class(targets, self.num_classes)
            return kernels.add_half_sigma2(logits, weight, self.statistics.covariance, batch, strength)

    @torch.no_grad()
    def class_covariance(self, label: int) -> Tensor:
        """Return the covariance [A, A] that this loss uses for a class.

        It is the identity with ``covariance="identity"``, and a diagonal matrix with "diagonal".

        Raises:
            IndexError: there is no such class, or another process holds its packed covariance.
        """
        if not 0 <= label < self.num_classes:
            raise IndexError(f"class {label} is not in [0, {self.num_classes})")
        match self.statistics:
            case PackedStatistics():
                return self.statistics.covariance_of(label)
            case ClassVariances():
                return self.statistics.variance[label].diag()
            case None:
                return torch.eye(self.feature_dim)
            case _:
                return self.statistics.covariance[0 if self.covariance == "shared" else label]

    def whole_state_dict(self) -> dict[str, Tensor] | None:
        """Return the state of all processes: packed covariances are divided among them, see ``Criterion``."""
        if not isinstance(self.statistics, PackedStatistics):
            return self.state_dict()
        whole = self.statistics.whole_state_dict()
        return None if whole is None else {f"statistics.{name}": tensor for name, tensor in whole.items()}

    def _classes(self, targets: Tensor) -> BatchClasses:
        find = rows_of_fixed_number if is_asynchronous(targets) else classes_present
        return find(targets, self.num_classes)

    def extra_repr(self) -> str:
        """Return the arguments that ``print`` shows."""
        return (
            f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, lambda_0={self.lambda_0}, "
            f"covariance={self.covariance!r}, lambda_schedule={self.lambda_schedule!r}"
        )


def _is_interpreted() -> bool:
    """Return True if Triton interprets its kernels on the CPU, slowly, as the tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check_kernels(covariance: str) -> None:
    """Check that kernels=True is possible.

    Raises:
        ValueError: the covariances are not square and full, or there is no CUDA device or no Triton.
    """
    if covariance != "full":
        raise ValueError(f"kernels=True is for square matrices of covariance='full', and not for {covariance} ones")
    if not (torch.cuda.is_available() or _is_interpreted()):
        raise ValueError("kernels=True needs a CUDA device, and PyTorch finds none; leave it out for plain torch")
    try:
        import isda_repro.losses.covariances.kernels  # noqa: F401
    except ImportError as error:
        raise ValueError(f"kernels=True needs Triton, which cannot be imported ({error}): pip install triton") from None


def check_lambda(lambda_0: float, lambda_schedule: str) -> None:
    """Check the strength of the augmentation and the name of its schedule.

    Raises:
        ValueError: lambda_0 is negative or not finite, or there is no such schedule.
    """
    require_from_zero("lambda_0", lambda_0)
    if lambda_schedule not in LAMBDA_SCHEDULES:
        raise ValueError(f"there is no lambda_schedule={lambda_schedule!r}; it can be {', '.join(LAMBDA_SCHEDULES)}")
