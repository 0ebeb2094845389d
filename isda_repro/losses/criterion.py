"""Base class of all losses.

On a CPU a batch is checked before use: a label outside the classes raises an error, and ignored samples are dropped.
On an accelerator, and while a graph is compiled, no value may be read. There ignored samples stay in the batch with the
target ``IGNORED``, and each loss leaves them out of its means and statistics. A label outside the classes makes the
loss NaN, instead of ending the process as a device-side assertion would.

Shapes: N samples in the batch, C classes, A features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED, is_asynchronous, without_autocast
from isda_repro.losses.dense import check_dense, linear_layer, pixels_of, rows_of
from isda_repro.losses.first_calls import FirstCalls, check_first_calls
from isda_repro.losses.soft_targets import sound_probabilities
from isda_repro.losses.state import StatefulModule

ROUNDING = 1e-6  # a progress that a loop adds up may end slightly above 1


def require_number(name: str, value: object, within: Callable[[float], bool], what: str) -> None:
    """Check that ``value`` is a finite number for which ``within`` holds.

    Raises:
        ValueError: it is not; the message has the name, the value, and ``what`` it must be.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and within(value)):  # type: ignore[arg-type]
        raise ValueError(f"{name}={value} must be {what}")


def require_from_zero(name: str, value: object) -> None:
    """Check that ``value`` is a finite number >= 0; raises ``ValueError`` as ``require_number``."""
    require_number(name, value, lambda number: number >= 0, "a number from 0 on")


def require_count(name: str, value: object) -> None:
    """Check that ``value`` is an integer >= 1, and not a bool; raises ``ValueError``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value} must be a whole number from 1 on")


def check_progress(progress: float | Tensor) -> None:
    """Check the share of training, unless its value is on an accelerator or a graph is being compiled.

    Raises:
        TypeError: it is not one number.
        ValueError: it is outside [0, 1], or NaN.
    """
    if torch.compiler.is_compiling():
        return
    one = progress.detach() if isinstance(progress, Tensor) and progress.numel() == 1 else progress
    if isinstance(one, Tensor) and one is not progress and not one.is_cpu:
        return
    what = "the share of training that is over, such as step / total_steps, from 0 at the start to 1 at the end"
    try:
        value = one.__float__()  # a string has no such method
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise TypeError(f"progress is {what}: a number, and not {type(progress).__name__} {progress}") from None
    if not 0 <= value <= 1 + ROUNDING:
        raise ValueError(f"progress={value:g} must be in [0, 1]: it is {what}; neither an epoch nor lambda")


class Criterion(StatefulModule):
    """Base class of losses: features, logits, targets and the head -> one scalar, or [N] with ``reduction="none"``.

    The loss is computed in the dtype of the head's weight, and at least in fp32.

    In ``eval()``, and wherever gradients are off, every criterion is plain cross-entropy and changes none of its state.
    All state that training changes is a buffer or a parameter, so ``state_dict`` is complete. Samples whose features
    are not finite, or so large that their squares overflow, never enter it. A subclass defines its training loss in
    ``loss``.

    Args:
        num_classes: number of classes, C.
        feature_dim: number of features, A.
        ignore_index: samples with this target are left out, as in ``torch.nn.CrossEntropyLoss``; None: no such target.
            A batch of ignored samples only has loss 0, where ``CrossEntropyLoss`` returns NaN: such a batch must not
            end a training.

    Raises:
        ValueError: num_classes or feature_dim is below 1, or ignore_index is not an integer.
    """

    uses_head_bias: ClassVar[bool] = True
    """False if the loss needs a head without bias."""

    uses_head: ClassVar[bool] = False
    """True if the loss needs logits that are ``head(features)``, which its first call in training checks."""

    has_statistics: ClassVar[bool] = False
    """True if the loss keeps statistics of all samples seen, and takes a ``process_group`` to share them."""

    waits_for_device: ClassVar[bool] = False
    """True if the loss reads values back from an accelerator, so that a CUDA graph cannot capture it."""

    first_calls: FirstCalls | None = None
    """Checks that training calls have still to pass; None: there are none."""

    reduction: str = "mean"
    """Form of the result: the "mean" or the "sum" of the samples' losses, or "none" for all of them, [N]."""

    takes_probabilities: ClassVar[bool] = False
    """True if the targets may be class probabilities, as mixup makes them."""

    takes_pixels: ClassVar[bool] = False
    """True if the loss uses features for statistics only, or not at all, so that ``Pixels`` can stand in for them."""

    _is_replica_with_state: bool = False

    def __init__(self, num_classes: int, feature_dim: int, ignore_index: int | None = IGNORED) -> None:
        super().__init__()
        if num_classes < 1 or feature_dim < 1:
            raise ValueError(f"num_classes={num_classes} and feature_dim={feature_dim} must both be at least 1")
        if ignore_index is not None and (not isinstance(ignore_index, int) or isinstance(ignore_index, bool)):
            raise ValueError(f"ignore_index={ignore_index} must be a whole number, or None")
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.ignore_index = ignore_index
        self.draws: torch.Generator | None = None  # None: PyTorch's default generator
        self._part: tuple[int, int] | None = None
        self.first_calls = FirstCalls()

    @property
    def is_collective(self) -> bool:
        """True if all processes must call the loss in each step, even those without samples."""
        return self._group is not None

    def begin_step(self, generator: torch.Generator, part: tuple[int, int] | None = None) -> None:
        """Set the generator of the loss's random draws; a training loop may call it before each optimizer step.

        Args:
            generator: seeded by the caller, on the device of the features. Its state is not part of ``state_dict``.
            part: where this process's samples begin in the batch of all processes, and the size of that batch; None:
                this process has the whole batch. Each sample then gets the same draws as if one process had all of
                them.
        """
        self.draws, self._part = generator, part

    def own_draws(self, draw: Callable[[int], Tensor], samples: int) -> Tensor:
        """Return the rows of ``draw(count)`` that belong to this process's samples.

        Args:
            draw: returns random numbers for a number of samples, which are drawn for the batch of all processes.
            samples: number of samples of this process.
        """
        if self._part is None:
            return draw(samples)
        first, total = self._part
        return draw(max(total, first + samples))[first : first + samples]

    def total_weight(self, targets: Tensor) -> Tensor | None:
        """Return the sum of weights that the mean over a batch is divided by, []; None: the number of samples.

        A loop whose processes share a batch needs it to weight their losses.
        """
        return None

    def whole_state_dict(self) -> dict[str, Tensor] | None:
        """Return the state of all processes, of which each may hold a part; all must call this.

        Returns None on processes that do not receive it.
        """
        return self.state_dict()

    def summary(
        self, *, head: nn.Linear | None = None, progress: float | Tensor = 1.0
    ) -> dict[str, float | list[float]] | None:
        """Return figures about the loss's covariances, or None if it has none; see ``ISDALoss.summary``."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer groups for the criterion's own parameters; empty if it has none."""
        return []

    def forward(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the mean loss of a batch, [].

        A subclass may have another ``reduction``. The first calls in training also refuse logits that are not the
        head's, and warn of other misuse: see ``isda_repro.losses.first_calls``.

        Args:
            features: [N, A], the input of the head; any floating dtype. Dense ones are [N, A, *].
            logits: [N, C], the output of the head; or [N, C, *].
            targets: class numbers, int64 [N] or [N, *]; or, if the loss ``takes_probabilities``, floating [N, C] or
                [N, C, *], from 0 on, to which ``ignore_index`` does not apply.
            head: the last layer of the network, also one that ``DataParallel`` or ``DistributedDataParallel`` wraps. It
                may be a convolution of kernel size 1.
            progress: the share of training that is over, in [0, 1]; t/T in the paper. In a CUDA graph a 0-d tensor on
                the device, whose value can change between replays.

        Raises:
            TypeError: targets are not class numbers, progress is not a number, or the head has no weight.
            ValueError: shapes do not fit; a target is outside [0, C), or a probability is negative or not finite (on a
                CPU; elsewhere the loss is NaN); or progress is outside [0, 1] (unless its value is on an accelerator).
            RuntimeError: the state of this copy would be lost (``DataParallel``), or its process group was (pickle).
        """
        images, size = len(features), features.shape[2:]
        if size:
            features, logits, targets = self._rows_of_pixels(features, logits, targets)
        value = self._of_rows(features, logits, targets, head=head, progress=progress)
        return value.view(images, *size) if size and value.dim() else value

    def _of_rows(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the loss of rows, or of pixels in the form of rows."""
        head = linear_layer(head)
        self._check(features, logits, targets, head)
        learns = self.training and torch.is_grad_enabled()
        if learns:
            self._check_copy()
            check_progress(progress)
            check_first_calls(self, features, logits, head)
        if isinstance(progress, Tensor):
            progress = progress.reshape(())  # one of shape [1] would decide the dtype of the loss
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        with without_autocast(features):
            features, logits = features.to(dtype), logits.to(dtype)
            loss = self.loss if learns else self._cross_entropy
            if targets.is_floating_point():
                return self._loss_of_soft(loss, features, logits, targets.to(dtype), head, progress)
            if is_asynchronous(targets):
                return self._loss_unseen(loss, features, logits, targets, head, progress)
            samples, kept = len(targets), self._counted(targets)
            if kept is not None:
                features, logits, targets = (one.index_select(0, kept) for one in (features, logits, targets))
            if not len(targets) and not self.is_collective:
                value = self.of_no_sample(logits)
            else:
                value = loss(features, logits, targets, head=head, progress=progress)
            if kept is None or self.reduction != "none":
                return value
            return value.new_zeros(samples).index_copy(0, kept, value)

    def _loss_of_soft(
        self,
        loss: Callable[..., Tensor],
        features: Tensor,
        logits: Tensor,
        targets: Tensor,
        head: nn.Linear,
        progress: float | Tensor,
    ) -> Tensor:
        """Return the loss of probabilities; NaN, on an accelerator, if one is negative or not finite."""
        if not len(targets) and not self.is_collective:
            return self.of_no_sample(logits)
        targets, is_good_N = sound_probabilities(targets, type(self).__name__)
        value = loss(features, logits, targets, head=head, progress=progress)
        if is_good_N is None:
            return value
        return torch.where(is_good_N if self.reduction == "none" else is_good_N.all(), value, torch.nan)

    def of_no_sample(self, logits: Tensor) -> Tensor:
        """Return the loss of a batch without samples: 0, or [0] with ``reduction="none"``; ``logits`` is [0, C]."""
        return logits.sum(1) if self.reduction == "none" else logits.sum()

    def _rows_of_pixels(self, features: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dense inputs as rows, whose samples are the pixels; ``Pixels`` may stand in for the features."""
        check_dense(type(self).__name__, (self.num_classes, self.feature_dim), features, logits, targets)
        is_soft, learns = targets.is_floating_point(), self.training and torch.is_grad_enabled()
        if is_soft or (learns and (self.is_collective or not self.takes_pixels)):
            rows = rows_of(features)
        else:
            rows = cast(Tensor, pixels_of(features, targets, self.num_classes, self.ignore_index))
        return rows, rows_of(logits), rows_of(targets) if is_soft else targets.flatten()

    def _loss_unseen(
        self,
        loss: Callable[..., Tensor],
        features: Tensor,
        logits: Tensor,
        targets: Tensor,
        head: nn.Linear,
        progress: float | Tensor,
    ) -> Tensor:
        """Return the loss without reading the values of ``targets``; NaN if one is outside [0, C)."""
        if not len(targets) and not self.is_collective:
            return self.of_no_sample(logits)
        is_known = is_counted = targets.clamp(0, self.num_classes - 1) == targets
        if self.ignore_index is not None:
            is_ignored = targets == self.ignore_index
            is_known = is_known | is_ignored
            if 0 <= self.ignore_index < self.num_classes:
                is_counted = is_counted & ~is_ignored
        value = loss(features, logits, torch.where(is_counted, targets, IGNORED), head=head, progress=progress)
        if self.ignore_index is not None:  # without ignore_index such a batch has only bad labels, and is NaN below
            value = torch.where(is_counted.any(), value, 0)
        return torch.where(is_known if self.reduction == "none" else is_known.all(), value, torch.nan)

    def loss(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        """Return the mean loss of a batch in training, [].

        The arguments are those of ``forward``, checked and in the dtype of the loss. N is at least 1 unless
        ``is_collective``. Targets are in [0, C) or, on an accelerator only, ``IGNORED``.
        """
        raise TypeError(f"{type(self).__name__} does not define its loss")

    def _cross_entropy(
        self, features: Tensor, logits: Tensor, targets: Tensor, *, head: nn.Linear, progress: float | Tensor
    ) -> Tensor:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED) if len(targets) else logits.sum()

    def _check(self, features: Tensor, logits: Tensor, targets: Tensor, head: nn.Linear) -> None:
        name, classes, width = type(self).__name__, self.num_classes, self.feature_dim
        is_soft = targets.is_floating_point()
        if is_soft and not self.takes_probabilities:
            raise TypeError(
                f"{name} takes class numbers, int64 [N], and not probabilities, {targets.dtype} {list(targets.shape)}: "
                "of the losses here only CrossEntropy and ISDALoss take soft targets, as mixup makes them"
            )
        if not is_soft and (targets.dtype != torch.int64 or targets.dim() != 1):
            advice = "convert them with targets.long()" if targets.dim() == 1 else "one-hot targets have to be floating"
            raise TypeError(
                f"{name} takes class numbers, int64 [N], not {targets.dtype} {list(targets.shape)}; {advice}"
            )
        if is_soft and (targets.dim() != 2 or targets.shape[1] != classes):
            raise ValueError(f"{name}: class probabilities are [N, {classes}], not {list(targets.shape)}")
        samples = len(targets)
        if features.shape != (samples, width) or logits.shape != (samples, classes):
            raise ValueError(
                f"{name}(num_classes={classes}, feature_dim={width}) got features {list(features.shape)} and logits "
                f"{list(logits.shape)} for {samples} targets, and needs [{samples}, {width}] and [{samples}, {classes}]"
            )
        if not isinstance(getattr(head, "weight", None), Tensor):
            raise TypeError(
                f"{name}: the head is a {type(head).__name__}, and must be the network's last nn.Linear, or a "
                "convolution of kernel size 1"
            )
        if head.weight.shape != (classes, width):
            raise ValueError(f"{name}: head.weight is {list(head.weight.shape)} and must be [{classes}, {width}]")

    def _check_copy(self) -> None:
        name = type(self).__name__
        if self._is_replica_with_state:
            raise RuntimeError(
                f"{name} is in a module that torch.nn.DataParallel has replicated, and what its replicas learn would "
                "be lost: wrap the network alone, and call the criterion on the outputs that DataParallel has gathered"
            )
        if self._group is not None and self._group.group is None:
            raise RuntimeError(
                f"this {name} was pickled, and a pickle does not hold its process_group: set criterion.process_group "
                "to torch.distributed.group.WORLD, or to None for this process alone"
            )

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica._is_replica_with_state = bool(self.state_dict())
        replica.first_calls = None
        return replica

    def _counted(self, targets: Tensor) -> Tensor | None:
        """Return the indices of the samples that are not ignored, on a CPU; None if no sample is.

        Raises:
            ValueError: a target is outside [0, C), and not ``ignore_index``.
        """
        if not len(targets):
            return None
        classes, ignored = self.num_classes, self.ignore_index
        lowest, highest = (int(target) for target in targets.aminmax())
        may_be_ignored = ignored is not None and lowest <= ignored <= highest
        if lowest >= 0 and highest < classes and not may_be_ignored:
            return None
        is_counted = torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets.ne(ignored)
        bad = targets[is_counted & ((targets < 0) | (targets >= classes))].unique().tolist()
        if bad:
            labels = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            allowed = f"[0, {classes})" if ignored is None else f"[0, {classes}) or ignore_index={ignored}"
            raise ValueError(
                f"{type(self).__name__}: the targets have {labels}, and must be in {allowed}; give "
                f"ignore_index={bad[0]} to leave such samples out, or else check the labels and num_classes"
            )
        return None if is_counted.all() else is_counted.nonzero()[:, 0]


def mean_over_batch(of_samples: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of ``of_samples`` [N] over the samples that are not ``IGNORED``."""
    if not is_asynchronous(targets):
        return of_samples.mean() if len(targets) else of_samples.sum()  # ignored samples have been dropped
    counts = targets != IGNORED
    return torch.where(counts, of_samples, 0).sum() / counts.sum().clamp(min=1)
