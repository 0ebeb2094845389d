"""ISDA: the upper bound of the expected cross-entropy over augmented features (equation 4, Proposition 1).

Shapes: N samples in the batch, C classes, A features, U rows, one for each class of the batch.
"""

from __future__ import annotations

import os
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isda_repro.losses.batch_classes import (
    BatchClasses,
    check_group,
    classes_present,
    is_asynchronous,
    of_all_processes,
    rows_of_fixed_number,
)
from isda_repro.losses.class_statistics import ClassStatistics, ClassVariances
from isda_repro.losses.criterion import Criterion, require_from_zero
from isda_repro.losses.packed import PackedStatistics
from isda_repro.losses.packed_quadratic import add_half_sigma2_packed
from isda_repro.losses.quadratic import Strength, add_half_sigma2, sigma2_common, sigma2_diagonal

COVARIANCES = ("full", "diagonal", "shared", "identity")
SQUARE_BYTES = 2**31  # DenseNet-BC-190-40 on CIFAR-100, the paper's largest, takes 1.9e9
LAMBDA_SCHEDULES = ("linear", "constant")


class ISDALoss(Criterion):
    """Cross-entropy on ``logits + lambda/2 (w_j - w_y)^T Sigma_y (w_j - w_y)``, lambda = progress * lambda_0.

    In training each call first merges the batch into the running statistics of its classes, then uses them, as the
    authors do. The statistics are constants for the gradient; the head's weight gets one through the quadratic term,
    the features only through the logits (equation 14).

    >>> criterion = ISDALoss(num_classes=100, feature_dim=640, lambda_0=0.5)
    >>> features = backbone(images)                                              # [N, 640]
    >>> loss = criterion(features, head(features), targets, head=head, progress=step / total_steps)

    Args:
        num_classes: C.
        feature_dim: A.
        lambda_0: strength of the augmentation at the end of training; the paper chooses among 0.1, 0.25, 0.5, 0.75
            and 1 on CIFAR, and among 1, 2.5, 5, 7.5 and 10 with diagonal covariances on ImageNet.
        covariance: Sigma, one of

            - "full", a matrix for each class; 4 C A A bytes of buffers, or half of it (the paper's, on CIFAR);
            - "diagonal", their diagonals; 8 C A bytes (the paper's, on ImageNet);
            - "shared", one matrix, of all features whatever their class (Table 5's "Single covariance matrix");
            - "identity": nothing is estimated (Table 5's "Identity matrix").
        lambda_schedule: "linear", as above, or "constant": lambda_0 throughout (Table 5's "Constant lambda_0").
        ignore_index: samples with this target count for nothing, in the statistics neither.
        packed: keep full covariances as triangles, half the memory and somewhat slower, and unpack those of a batch a
            few at a time; None: where square ones would take more than 2 GiB.
        process_group: the processes whose batches are one: statistics are those of all samples, the same everywhere,
            and packed covariances are divided among them. Each process calls the criterion in each step; see
            ``isda_repro.losses.batch_classes``. None: this process alone.
        kernels: True: batches on CUDA in float32 go through the Triton kernels of ``isda_repro.losses.kernels``, which
            are for square full covariances; all others, and a compiled graph, through plain torch. None or False: no
            kernels. They are off by default, because nobody has yet measured them to be faster.

    Raises:
        ValueError: lambda_0 is negative or not finite, there is no such covariance or schedule, it cannot be packed, or
            kernels=True where there are no such covariances, no CUDA device or no Triton.
    """

    has_statistics: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        lambda_0: float = 0.5,
        covariance: str = "full",
        lambda_schedule: str = "linear",
        ignore_index: int | None = None,
        packed: bool | None = None,
        process_group: dist.ProcessGroup | None = None,
        kernels: bool | None = None,
    ) -> None:
        super().__init__(num_classes, feature_dim, ignore_index)
        check_lambda(lambda_0, lambda_schedule)
        if covariance not in COVARIANCES:
            raise ValueError(f"there is no covariance={covariance!r}; it can be {', '.join(COVARIANCES)}")
        if packed not in (None, True, False):
            raise ValueError(f"packed={packed} must be true, false or null")
        check_group(process_group)
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
        """Update the statistics, then equation 4, mean over the batch."""
        all_features, all_targets = of_all_processes(features, targets, self.process_group)
        strength = self.lambda_0 * (progress if self.lambda_schedule == "linear" else 1)
        weight = head.weight.to(logits.dtype)
        if self._takes_kernels(logits):
            augmented = self._augmented_by_kernels(logits, weight, targets, all_features, all_targets, strength)
        else:
            if self.statistics is not None:
                self.statistics.update(
                    all_features, all_targets.clamp(max=0) if self.covariance == "shared" else all_targets
                )
            augmented = self._augmented(logits, weight, targets, all_targets, strength)
        return self._cross_entropy(features, augmented, targets, head=head, progress=progress)

    def _augmented(
        self, logits: Tensor, weight: Tensor, targets: Tensor, all_targets: Tensor, strength: Strength
    ) -> Tensor:
        statistics, group = self.statistics, self.process_group
        if isinstance(statistics, PackedStatistics):
            return add_half_sigma2_packed(logits, targets, weight, statistics, all_targets, strength, group)
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
        state = (one for one in self.buffers() if one.is_floating_point())
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
        """Update the statistics, then do as ``_augmented``; on the tensors' device, be it the current one or not."""
        from isda_repro.losses import kernels
        from isda_repro.losses.sorted_batch import sort_by_class

        assert isinstance(self.statistics, ClassStatistics)
        with torch.cuda.device_of(logits):
            batch = kernels.update(self.statistics, all_features, all_targets)
            if all_targets is not targets:
                batch = sort_by_class(targets, self.num_classes)
            return kernels.add_half_sigma2(logits, weight, self.statistics.covariance, batch, strength)

    @torch.no_grad()
    def class_covariance(self, label: int) -> Tensor:
        """Sigma of a class, [A, A], as this loss uses it: of ``covariance="identity"`` the identity, and so on.

        Raises:
            IndexError: there is no such class; packed and divided among processes, it is another one's.
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
        """As in ``Criterion``: packed covariances are divided among the processes."""
        if not isinstance(self.statistics, PackedStatistics):
            return self.state_dict()
        whole = self.statistics.whole_state_dict()
        return None if whole is None else {f"statistics.{name}": tensor for name, tensor in whole.items()}

    def _classes(self, targets: Tensor) -> BatchClasses:
        find = rows_of_fixed_number if is_asynchronous(targets) else classes_present
        return find(targets, self.num_classes)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return (
            f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, lambda_0={self.lambda_0}, "
            f"covariance={self.covariance!r}, lambda_schedule={self.lambda_schedule!r}"
        )


def _is_interpreted() -> bool:
    """Return True if Triton runs its kernels on the CPU, slowly, as our tests let it."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check_kernels(covariance: str) -> None:
    """Refuse kernels=True where there are no kernels.

    Raises:
        ValueError: no such covariances, no CUDA device, or no Triton.
    """
    if covariance != "full":
        raise ValueError(f"kernels=True is for square matrices of covariance='full', and not for {covariance} ones")
    if not (torch.cuda.is_available() or _is_interpreted()):
        raise ValueError("kernels=True needs a CUDA device, and PyTorch finds none; leave it out for plain torch")
    try:
        import isda_repro.losses.kernels  # noqa: F401
    except ImportError as error:
        raise ValueError(f"kernels=True needs Triton, which cannot be imported ({error}): pip install triton") from None


def check_lambda(lambda_0: float, lambda_schedule: str) -> None:
    """Whether they can be a strength and its schedule.

    Raises:
        ValueError: one cannot.
    """
    require_from_zero("lambda_0", lambda_0)
    if lambda_schedule not in LAMBDA_SCHEDULES:
        raise ValueError(f"there is no lambda_schedule={lambda_schedule!r}; it can be {', '.join(LAMBDA_SCHEDULES)}")
