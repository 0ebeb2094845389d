"""ISDA: the upper bound of the expected cross-entropy over augmented features (equation 4, Proposition 1).

Shapes: N samples in the batch, C classes, A features, U rows: one for each class of the batch.
"""

from __future__ import annotations

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
    without_autocast,
)
from isda_repro.losses.covariances.class_statistics import ClassStatistics, ClassVariances
from isda_repro.losses.covariances.kernel_choice import check_kernels, takes_kernels
from isda_repro.losses.covariances.packed import PackedStatistics, Statistics
from isda_repro.losses.covariances.packed_quadratic import add_half_sigma2_packed
from isda_repro.losses.covariances.pixels import update_by_pixels
from isda_repro.losses.covariances.prior import mixed, own_share, within_class
from isda_repro.losses.covariances.quadratic import Strength, add_half_sigma2, sigma2_common, sigma2_diagonal
from isda_repro.losses.covariances.summary import mean_margin, over_wrong, summarise
from isda_repro.losses.criterion import require_from_zero
from isda_repro.losses.cross_entropy import CrossEntropyCriterion
from isda_repro.losses.dense import Pixels, linear_layer

COVARIANCES = ("full", "diagonal", "shared", "identity")
SUMMARY_BYTES = 2**26  # of covariances and products that a summary computes at a time
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
            step, on accelerators with the same number of samples: pad a smaller batch with zeros, and its targets with
            ``ignore_index``. None: this process alone.
        kernels: True: compute float32 batches on CUDA with the Triton kernels of
            ``isda_repro.losses.covariances.kernels``, for square full covariances. Other batches, those of more than
            16,384 samples, soft targets, pixels and compiled graphs use plain torch. None: use the kernels wherever
            they run. False: never use them.
        prior: k, for rare classes: a class with n samples so far uses ``(n q_c + k q_within) / (n + k)``, where q_c is
            the quadratic form of its own covariance and q_within that of the pooled within-class covariance, see
            ``isda_repro.losses.covariances.prior``. For full and diagonal covariances. None: off.
        weight, reduction, label_smoothing: those of ``torch.nn.CrossEntropyLoss``, see ``CrossEntropyCriterion``. With
            label smoothing a sample enters the statistics of its label as a whole, and only the target distribution of
            the cross-entropy is smoothed.

    Raises:
        ValueError: lambda_0 or prior is negative or not finite; covariance or lambda_schedule has an unknown value;
            ``packed`` is set without full covariances; prior is set with shared or identity; or
            kernels=True without square full covariances, a CUDA device, or Triton.
    """

    uses_head: ClassVar[bool] = True
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
        prior: float | None = None,
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
        if prior is not None:
            require_from_zero("prior", prior)
            if covariance not in ("full", "diagonal"):
                raise ValueError(
                    f"prior={prior} is for covariance='full' or 'diagonal', and not for {covariance!r}, which has no "
                    "covariance for each class; leave it out"
                )
        check_kernels(kernels, "packed" if packed else covariance)
        self.kernels = kernels if covariance == "full" and not packed else False
        self.lambda_0, self.lambda_schedule, self.covariance = lambda_0, lambda_schedule, covariance
        self.prior = prior
        self.process_group = None if covariance == "identity" else process_group  # the identity needs no samples
        self.statistics: Statistics | None = None
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
        if isinstance(features, Tensor) and self._takes_kernels(logits, len(all_targets)):
            augmented = self._augmented_by_kernels(logits, weight, targets, all_features, all_targets, strength)
        else:
            self._update(all_features, all_targets)
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

    def _update(self, features: Tensor | Pixels, targets: Tensor) -> None:
        is_shared = self.covariance == "shared"
        if self.statistics is None:
            return
        if isinstance(features, Pixels):
            update_by_pixels(self.statistics, features, is_shared)
        else:
            self.statistics.update(features, targets.clamp(max=0) if is_shared else targets)

    def _augmented(
        self, logits: Tensor, weight: Tensor, targets: Tensor, all_targets: Tensor, strength: Strength
    ) -> Tensor:
        if self.prior is None:
            return self._augmented_by_class(logits, weight, targets, all_targets, strength)
        of_class = self._augmented_by_class(torch.zeros_like(logits), weight, targets, all_targets, strength)
        return logits + self._mixed(of_class, weight, targets, strength)

    def _mixed(self, of_class: Tensor, weight: Tensor, targets: Tensor, strength: Strength) -> Tensor:
        """Return the added term of each class [N, C], mixed with that of the pooled within-class covariance."""
        assert self.statistics is not None
        assert self.prior is not None
        return mixed(of_class, weight, self._classes(targets), self.statistics, self.prior, strength)

    def _augmented_by_class(
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

    def _takes_kernels(self, logits: Tensor, samples: int) -> bool:
        statistics = self.statistics
        return isinstance(statistics, ClassStatistics) and takes_kernels(self.kernels, logits, statistics, samples)

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
            added_to = logits if self.prior is None else torch.zeros_like(logits)
            augmented = kernels.add_half_sigma2(added_to, weight, self.statistics.covariance, batch, strength)
            return augmented if self.prior is None else logits + self._mixed(augmented, weight, targets, strength)

    @torch.no_grad()
    def class_covariance(self, label: int) -> Tensor:
        """Return the covariance [A, A] that this loss uses for a class.

        It is the identity with ``covariance="identity"``, and a diagonal matrix with "diagonal". With ``prior`` it is
        the mixture with the pooled covariance; if packed ones are divided among processes, all must then call this.

        Raises:
            IndexError: there is no such class, or another process holds its packed covariance.
        """
        if not 0 <= label < self.num_classes:
            raise IndexError(f"class {label} is not in [0, {self.num_classes})")
        if self.prior is not None:
            assert self.statistics is not None
            within = within_class(self.statistics)
            within = within.diag() if within.dim() == 1 else within
            share = own_share(self.statistics.count[label].to(within.dtype), self.prior)
            return torch.lerp(within, self._own_covariance(label), share)
        return self._own_covariance(label)

    def _own_covariance(self, label: int) -> Tensor:
        match self.statistics:
            case PackedStatistics():
                return self.statistics.covariance_of(label)
            case ClassVariances():
                return self.statistics.variance[label].diag()
            case None:
                return torch.eye(self.feature_dim)
            case _:
                return self.statistics.covariance[0 if self.covariance == "shared" else label]

    @torch.no_grad()
    def summary(
        self, *, head: nn.Linear | None = None, progress: float | Tensor = 1.0
    ) -> dict[str, float | list[float]] | None:
        """Return figures that show what lambda does; None with ``covariance="identity"``, which estimates nothing.

        The keys, each with the mean over the classes that have samples:

        - "samples": samples seen so far (their sum, and not the mean);
        - "trace" of the covariances, and their "effective_rank", trace^2 / squared Frobenius norm, from 1 to A;
        - "added": the added term, lambda/2 sigma2, averaged over the wrong classes (with ``prior``, the mixed one);
        - "margin": the size of the margin, abs(z_c - z_j), at the mean feature of class c, averaged over the wrong
          classes j. That of equation 4's fraction is the margin less the added term;
        - "ratio": added / margin.

        "class_trace" and so on are lists with one entry for each class, 0 if it has no samples. With
        ``covariance="shared"`` there are no class means, and so neither margin, ratio nor lists. If packed covariances
        are divided among processes, all of them must call this. Waits for the device.

        Args:
            head: the network's last layer; None: leave out added, margin and ratio.
            progress: the share of training that is over, in [0, 1], which lambda follows.
        """
        if self.statistics is None:
            return None
        if head is None:
            return summarise(self.statistics, None, None)
        head = linear_layer(head)
        with without_autocast(head.weight):
            weight = head.weight.flatten(1).to(self.statistics.mean.dtype)
            strength = self.lambda_0 * (float(progress) if self.lambda_schedule == "linear" else 1)
            rows = self.num_classes
            if isinstance(self.statistics, ClassStatistics):  # the other forms keep their own temporaries small
                rows = max(1, SUMMARY_BYTES // (weight.nbytes + self.statistics.covariance[0].nbytes))
            added = [
                over_wrong(self._augmented(weight.new_zeros(len(some), self.num_classes), weight, some, some, strength))
                for some in torch.arange(self.num_classes, device=weight.device).split(rows)
            ]
            margin = None if self.covariance == "shared" else mean_margin(self.statistics.mean, head)
            return summarise(self.statistics, torch.cat(added), margin)

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
            + ("" if self.prior is None else f", prior={self.prior}")
        )


def check_lambda(lambda_0: float, lambda_schedule: str) -> None:
    """Check the strength of the augmentation and the name of its schedule.

    Raises:
        ValueError: lambda_0 is negative or not finite, or there is no such schedule.
    """
    require_from_zero("lambda_0", lambda_0)
    if lambda_schedule not in LAMBDA_SCHEDULES:
        raise ValueError(f"there is no lambda_schedule={lambda_schedule!r}; it can be {', '.join(LAMBDA_SCHEDULES)}")
