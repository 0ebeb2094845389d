"""Data sets: images in memory or in files, their labels, and the part that is evaluated."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from isda_repro.console import one_line
from isda_repro.errors import UserError
from isda_repro.files import expanded
from isda_repro.randomness import stream_seed

# Not the run's seed: a holdout, a limit and the test set of digits are part of the data and the same for every run.
SPLIT_SEED = 0


def stratified_order(targets: Tensor, purpose: str) -> Tensor:
    """Return a permutation of the data of which every prefix is stratified: int64 [N] indices.

    For any K, also below the number of classes, the first K indices hold each class in proportion, to within one image,
    and a shorter prefix is part of a longer one. (scikit-learn's stratified splits give neither, and refuse a part that
    is smaller than the number of classes.)

    Args:
        targets: labels, int64 [N].
        purpose: name of the stream of random numbers.
    """
    generator = torch.Generator().manual_seed(stream_seed(SPLIT_SEED, purpose))
    shuffled = torch.randperm(targets.numel(), generator=generator)
    labels = targets[shuffled]
    class_sizes = torch.bincount(labels)
    by_class = labels.argsort(stable=True)
    class_starts = class_sizes.cumsum(0) - class_sizes
    rank_in_class = torch.empty_like(labels)
    rank_in_class[by_class] = torch.arange(labels.numel()) - class_starts[labels[by_class]]
    # Image r of a class of n gets the position (r + 1/2) / n in [0, 1]; ties keep the shuffled order.
    place = (rank_in_class.double() + 0.5) / class_sizes[labels]
    return shuffled[place.argsort(stable=True)]


PARTS = ("train", "val")


def candidate_folders(name: str, root: Path | str) -> tuple[Path, Path]:
    """Return the folders in which to look for the data set ``name``, in order: ``root/name``, ``root``."""
    root = expanded(root)
    return root / name, root


class DataError(UserError):
    """The data cannot be used; the message is one sentence that says what is wrong, where, and what to do."""


class MissingDataError(DataError):
    """The data is not in the folder where it was looked for."""


MOST_KINDS = 5


def counted(kinds: Mapping[str, int]) -> str:
    """Return counts by kind as a phrase such as ``3 .gif, 1 .txt``, the largest first; a long list is cut."""
    ordered = sorted(kinds.items(), key=lambda one: (-one[1], one[0]))
    more = sum(count for _, count in ordered[MOST_KINDS:])
    named = [f"{count:,} {one_line(kind)}" for kind, count in ordered[:MOST_KINDS]]
    return ", ".join([*named, f"{more:,} of other kinds"] if more else named)


def hash_of(names: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> str:
    """Return a hash of the names (bytes [N]) and sizes (int64 [N]) of image files, and of their order."""
    found = hashlib.sha256(b"\0".join(names.tolist()))
    found.update(np.ascontiguousarray(sizes, dtype="<i8").tobytes())
    return found.hexdigest()


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of several counts by kind."""
    return dict(sum(map(Counter, counts), Counter[str]()))


EvaluatedOn = Literal["test", "holdout"]


class AnySplit(Protocol):
    """One part of a data set, in memory or on disk."""

    @property
    def targets(self) -> Tensor:
        """Labels, int64 [N], on the CPU."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image in a batch."""

    @property
    def channels(self) -> int:
        """Number of channels C of every image."""

    @property
    def digest(self) -> str | None:
        """Hash of the names and sizes of the image files, the same wherever they are; None for images in memory."""

    def __len__(self) -> int:
        """Return the number of images N."""

    def select(self, indices: Tensor) -> Self:
        """Return the images at ``indices``, distinct int64 [K] in any order, in their order in this split."""


class StoredSplit(AnySplit, Protocol):
    """Split whose images stay on disk, each as the content of an image file."""

    def read(self, index: int) -> bytes | bytearray:
        """Return the content of an image file.

        Raises:
            OSError: it cannot be read.
        """

    def where(self, index: int) -> str:
        """Return the location of an image, for messages."""

    def fingerprint(self, indices: Tensor) -> str:
        """Return a hash of the files of some images, for caches on this machine.

        It differs as soon as one of the files is another, is elsewhere, or was written again.
        """


Kind = TypeVar("Kind", bound=AnySplit)


@dataclass(frozen=True)
class Split:
    """One part of a data set in memory.

    Args:
        images: uint8 [N, C, H, W] on the CPU.
        targets: labels, int64 [N].
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.targets.numel()

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.images.shape[1]

    @property
    def digest(self) -> None:
        """None: images in memory have no files."""

    def select(self, indices: Tensor) -> "Split":
        """Return the images at ``indices``, distinct int64 [K] in any order, in their order in this split."""
        indices = indices.sort().values
        return Split(self.images[indices], self.targets[indices])


@dataclass(frozen=True)
class Source:
    """Data set that is ready for loaders.

    Args:
        name: name of the data set.
        train: training part.
        test: part to evaluate on. With a holdout this is the part held out of the training images, and the true test
            set is not included at all.
        num_classes: number of classes C.
        class_names: name of each class.
        evaluated_on: ``test`` or ``holdout``: what ``test`` is.
        left_out: number of files in the data's folders that are not used, by kind.

    Raises:
        DataError: images or labels of the wrong type or shape, or a label outside [0, num_classes).
    """

    name: str
    train: AnySplit
    test: AnySplit
    num_classes: int
    class_names: tuple[str, ...]
    evaluated_on: EvaluatedOn = "test"
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def train_counts(self) -> list[int]:
        """Number of training images of each class."""
        return torch.bincount(self.train.targets, minlength=self.num_classes).tolist()

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("test", self.test)):
            _check_split(f"{self.name}, {part} split", split, self.num_classes)


def narrowed(
    source: Source,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
    imbalance: float | None = None,
) -> Source:
    """Return a source with a holdout, an imbalance and limits applied, in this order; None leaves a part unchanged.

    The subsets are stratified and drawn with fixed seeds of their own: every method and every run of a table sees the
    same ones, whatever its seed, and a smaller limit is part of a larger one. With a holdout the true test set is
    dropped, so that hyper-parameters cannot be chosen on it by accident.

    Args:
        source: the whole data set.
        train_limit, test_limit: number of images to keep.
        holdout: number of training images to evaluate on instead of the test set.
        imbalance: ratio of the numbers of training images of the first and the last class, see ``long_tailed``.

    Raises:
        DataError: a count is not positive or larger than the data, or an imbalance leaves a class without images.
    """
    train, test, evaluated_on = source.train, source.test, source.evaluated_on
    if holdout is not None:
        _check_count(
            "holdout", holdout, len(train) - 1, f"of {source.name}'s {len(train)} training images one must stay"
        )
        order = stratified_order(train.targets, "holdout")
        test, train, evaluated_on = train.select(order[:holdout]), train.select(order[holdout:]), "holdout"
    if imbalance is not None:
        train = train.select(long_tailed(train.targets, source.num_classes, imbalance))
    train = _limited(train, "train_limit", train_limit, f"{source.name} has {len(train)} training images")
    test = _limited(test, "test_limit", test_limit, f"{source.name} has {len(test)} images to evaluate")
    return replace(source, train=train, test=test, evaluated_on=evaluated_on)


def long_tailed(targets: Tensor, num_classes: int, imbalance: float) -> Tensor:
    """Return the numbers of the training images of a long-tailed version of a data set, int64 [K].

    Class c of C keeps n / imbalance^(c / (C - 1)) images, rounded down, where n is the number of images of the smallest
    class: the exponential profile of Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of Samples".
    Of CIFAR's whole training set these are the very images that the code of Cao et al. (2019, LDAM-DRW) takes with
    its default ``rand_number`` 0: the order of the draws is part of the data, and the run's seed does not change it. A
    larger imbalance takes a part of the images of a smaller one.

    Args:
        targets: labels of the training images, int64 [N].
        num_classes: number of classes, C.
        imbalance: ratio of the numbers of images of the first and the last class, above 1.

    Raises:
        DataError: a class would be left without images.
    """
    sizes = torch.bincount(targets, minlength=num_classes)
    counts = [int(int(sizes.min()) / imbalance ** (label / max(1, num_classes - 1))) for label in range(num_classes)]
    if min(counts) < 1:
        raise DataError(
            f"imbalance={imbalance:g} leaves the last class without an image, because the smallest class has "
            f"{int(sizes.min())} training images: take an imbalance of at most that number"
        )
    draws = np.random.RandomState(0)  # NumPy's legacy generator, whose stream never changes
    kept = []
    for label, count in enumerate(counts):
        of_class = (targets == label).nonzero()[:, 0].numpy().copy()
        draws.shuffle(of_class)
        kept.append(of_class[:count])
    return torch.from_numpy(np.concatenate(kept))


def _limited(split: Kind, option: str, limit: int | None, available: str) -> Kind:
    if limit is None:
        return split
    _check_count(option, limit, len(split), available)
    return split.select(stratified_order(split.targets, option)[:limit])


def _check_count(option: str, count: int, most: int, available: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise DataError(f"{option}={count} must be a whole number from 1 to {most}, because {available}.")


def _check_split(where: str, split: AnySplit, num_classes: int) -> None:
    targets = split.targets
    if isinstance(split, Split):
        images = split.images
        if images.dtype != torch.uint8 or images.dim() != 4 or targets.dtype != torch.int64 or targets.dim() != 1:
            raise DataError(
                f"{where}: images must be uint8 [N, C, H, W] and labels int64 [N], "
                f"but they are {images.dtype} {list(images.shape)} and {targets.dtype} {list(targets.shape)}."
            )
        if len(images) != len(targets) or len(targets) == 0:
            raise DataError(
                f"{where}: {len(images)} images and {len(targets)} labels; there must be as many, and not 0."
            )
    outside = ((targets < 0) | (targets >= num_classes)).nonzero()
    if outside.numel():
        index = int(outside[0])
        raise DataError(
            f"{where}: image {index} has label {int(targets[index])}, outside [0, {num_classes}), "
            f"so the files do not belong to this data set or are damaged; replace them."
        )
