"""Dense inputs: a label for each pixel of an image, each point of a signal, or each cell of a volume.

Every pixel is a sample. Logits and labels are small and become rows. Features are large: losses that only estimate
statistics of them get ``Pixels``, the features in the layout of the network, and all other losses get a copy as rows.

Shapes: N images, C classes, A features, S pixels of an image, K channels; ``*`` are one or more dimensions of pixels.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn

from isda_repro.losses.batch_classes import IGNORED

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
WRAPPERS = nn.DataParallel, nn.parallel.DistributedDataParallel


class Pixels:
    """Dense features that stand in for rows [N S, A]; ``update_by_pixels`` estimates their statistics.

    Attributes:
        features: [N, A, S], without a gradient, as the network has computed them.
        labels: int64 [N, S], ``IGNORED`` where the label is no class.
        dtype: the dtype of the loss. A part of the features at a time is converted to it.
    """

    def __init__(self, features: Tensor, labels: Tensor, dtype: torch.dtype | None = None) -> None:
        self.features, self.labels = features, labels
        self.dtype = features.dtype if dtype is None else dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the rows: (N S, A)."""
        return self.labels.numel(), self.features.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.features.device

    def dim(self) -> int:
        """Return 2, the number of dimensions of the rows."""
        return 2

    def detach(self) -> Pixels:
        """Return the pixels, which have no gradient."""
        return self

    def to(self, dtype: torch.dtype) -> Pixels:
        """Return the pixels for a loss in ``dtype``; no feature is copied."""
        return Pixels(self.features, self.labels, dtype)

    def index_select(self, dim: int, index: Tensor) -> Pixels:
        """Return all pixels: those that a loss drops are marked in ``labels`` already."""
        return self


class LinearLayer(NamedTuple):
    """The weight [C, A] and bias [C] of a convolution of kernel size 1, used like an ``nn.Linear``."""

    weight: Tensor
    bias: Tensor | None


def linear_layer(head: nn.Module) -> nn.Linear:
    """Return the head as a linear layer.

    ``DataParallel`` or ``DistributedDataParallel`` may wrap it, as loops in the style of the authors' do. A convolution
    of kernel size 1 gets its gradients through a view of its weight.

    Raises:
        ValueError: the head is a convolution that is not the same linear layer for each pixel.
    """
    if isinstance(head, WRAPPERS):
        head = head.module
    if not isinstance(head, CONVOLUTIONS):
        return cast(nn.Linear, head)
    is_linear = all(one == 1 for one in (*head.kernel_size, *head.stride, head.groups))
    if not is_linear or any(head.padding if isinstance(head.padding, tuple) else ()):
        raise ValueError(
            f"the head {head} is not the same linear layer for each pixel: use a convolution of kernel size 1 with "
            "stride=1, groups=1 and without padding, and put all other layers before it"
        )
    return cast(nn.Linear, LinearLayer(head.weight.flatten(1), head.bias))


def rows_of(dense: Tensor) -> Tensor:
    """Return [N, K, *] as rows [N S, K]: a copy, or a view if the channels are last in memory."""
    return dense.movedim(1, -1).flatten(0, -2)


def rows_at(features: Tensor | Pixels, rows: slice) -> Tensor:
    """Return some rows of features, or of pixels that stand in for them: [R, A]."""
    if isinstance(features, Tensor):
        return features[rows]
    numbers = torch.arange(features.labels.numel(), device=features.device)[rows]
    size = features.labels.shape[1]
    return features.features[numbers // size, :, numbers % size]


def pixels_of(features: Tensor, targets: Tensor, num_classes: int, ignore_index: int | None) -> Pixels:
    """Return features [N, A, *] with their labels, which come from targets [N, *] of any values."""
    is_class = targets.clamp(0, num_classes - 1) == targets
    if ignore_index is not None:
        is_class = is_class & (targets != ignore_index)
    return Pixels(features.detach().flatten(2), torch.where(is_class, targets, IGNORED).flatten(1))


def check_dense(name: str, sizes: tuple[int, int], features: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Check that dense tensors have one place for each pixel.

    Args:
        name: the loss, for the messages.
        sizes: number of classes and of features, (C, A).
        features: [N, A, *].
        logits: [N, C, *].
        targets: class numbers [N, *], or probabilities [N, C, *].

    Raises:
        ValueError: shapes do not fit. If the targets have another resolution, the message has the line that resizes
            them.
    """
    (classes, width), (images, _, *size) = sizes, features.shape
    needed = (images, classes, *size) if targets.is_floating_point() else (images, *size)
    if features.shape[1] != width or logits.shape != (images, classes, *size) or targets.shape != needed:
        _refuse_dense(name, sizes, features, logits, targets)  # a graph of varying sizes cannot contain a message


def _refuse_dense(name: str, sizes: tuple[int, int], features: Tensor, logits: Tensor, targets: Tensor) -> NoReturn:
    (classes, width), (images, _, *size) = sizes, features.shape
    got = ", ".join(f"{key} {list(one.shape)}" for key, one in (("features", features), ("logits", logits)))
    shapes = f"{name} got {got} and targets {list(targets.shape)}"
    if features.shape[1] != width or logits.shape != (images, classes, *size):
        raise ValueError(
            f"{shapes}, and needs features [N, {width}, *] and the head's logits for them, [N, {classes}, *], of one "
            "size: take both before any interpolation, or interpolate both in the same way"
        )
    of_numbers, of_probabilities = (images, *size), (images, classes, *size)
    mended = {of_numbers: "long()", of_probabilities: "float()", (images, 1, *size): "squeeze(1).long()"}
    advice = mended.get(tuple(targets.shape))
    if advice is None and targets.dim() == len(of_numbers) and len(targets) == images:
        raise ValueError(
            f"{shapes}, and needs targets of the features' resolution: use targets = F.interpolate(targets[:, None]"
            f'.float(), size={tuple(size)}, mode="nearest")[:, 0].long(), or interpolate both features and logits'
        )
    raise ValueError(
        f"{shapes}, {targets.dtype}, and needs class numbers, integer targets {list(of_numbers)}, or probabilities, "
        f"floating targets {list(of_probabilities)}" + (f": use targets.{advice}" if advice else "")
    )
