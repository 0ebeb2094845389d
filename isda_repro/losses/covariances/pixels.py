"""Statistics of dense features, in the layout of the network, [N, A, S]: they are never copied to rows as a whole.

Pixels are merged into the statistics a chunk at a time, by equations 9 to 11, whose result is that of a single pass.
Within a chunk everything is relative to the means of the classes in the chunk. So no variance is a difference of large
numbers, and temporary memory does not depend on how the pixels are distributed among the classes.

- Variances are matrix products with the chunk's one-hot labels [C, S], wherever the tensors are.
- Full covariances on a CPU: pixels are sorted by class, and each class takes one symmetric product, of which only
  blocks on and below the diagonal are computed.
- Packed covariances, and full ones on an accelerator: the statistics' own ``update`` gets the rows of a chunk.

Shapes: N images, C classes, A features, S pixels of an image or of a chunk, M pixels of a class.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from isda_repro.losses.batch_classes import IGNORED, is_asynchronous, largest_feature, mark_unsound
from isda_repro.losses.covariances.class_statistics import ClassStatistics, ClassVariances, at_least_tiny
from isda_repro.losses.covariances.packed import PackedStatistics, Statistics
from isda_repro.losses.dense import Pixels

PRODUCT_BYTES = 2**21  # of a chunk for variances on a CPU: it stays in the cache over three products
SORTED_BYTES = 2**24  # of a chunk for covariances on a CPU, which are read and written once for each
ACCELERATOR_BYTES = 2**27
LEAST_PIXELS = 512  # in a chunk, however many features they have
LEAST_BLOCK = 128  # rows of a block of a covariance
BLOCKS = 4  # rows of blocks; with 4 of them, 10 of 16 blocks are computed


@torch.no_grad()
def update_by_pixels(statistics: Statistics, pixels: Pixels, is_shared: bool = False) -> None:
    """Merge dense features into the statistics in place, as ``update`` merges their rows.

    Args:
        statistics: those of all classes, or of one.
        pixels: features and labels of the batch.
        is_shared: True if all pixels belong to the one class of the statistics.
    """
    dtype, labels = statistics.mean.dtype, pixels.labels.clamp(max=0) if is_shared else pixels.labels
    is_waiting = is_asynchronous(pixels.features)
    takes_rows = not isinstance(statistics, ClassVariances) and (is_waiting or isinstance(statistics, PackedStatistics))
    is_masked = not takes_rows and (is_waiting or not _is_sound(pixels, dtype))
    limit = PRODUCT_BYTES if isinstance(statistics, ClassVariances) else SORTED_BYTES
    limit = ACCELERATOR_BYTES if is_waiting else limit
    for part_AS, labels_S in _chunks(pixels.features, labels, limit):
        features_AS = part_AS.to(pixels.dtype).to(dtype)
        if takes_rows:
            _update_by_rows(statistics, features_AS.T, labels_S)
            continue
        if is_masked:
            labels_S = mark_unsound(features_AS.T, labels_S, pixels.dtype)
            features_AS = torch.where(labels_S != IGNORED, features_AS, 0)
        if isinstance(statistics, ClassVariances):
            _merge_variances(statistics, features_AS, labels_S)
        else:
            assert isinstance(statistics, ClassStatistics)
            _merge_covariances(statistics, features_AS, labels_S)
    if isinstance(statistics, ClassStatistics) and not takes_rows:
        _mirror(statistics.covariance, labels)


def _is_sound(pixels: Pixels, dtype: torch.dtype) -> bool:
    """Return True, on a CPU, if all features may enter the statistics."""
    lowest, highest = pixels.features.aminmax()
    return max(-lowest.item(), highest.item()) <= largest_feature(dtype, pixels.dtype)


def _chunks(features_NAS: Tensor, labels_NS: Tensor, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features [A, S] and labels [S] of at most about ``limit`` bytes: views, or copies of several images."""
    images, width, size = features_NAS.shape
    most = max(LEAST_PIXELS, limit // (width * features_NAS.element_size()))
    together = max(1, most // size)
    for first in range(0, images, together):
        part_NAS = features_NAS[first : first + together]
        part_AS = part_NAS[0] if len(part_NAS) == 1 else part_NAS.transpose(0, 1).flatten(1)
        labels_S = labels_NS[first : first + together].flatten()
        for start in range(0, len(labels_S), most):
            yield part_AS[:, start : start + most], labels_S[start : start + most]


def _update_by_rows(statistics: Statistics, features_SA: Tensor, labels_S: Tensor) -> None:
    if not is_asynchronous(labels_S):
        kept = (labels_S != IGNORED).nonzero()[:, 0]
        features_SA, labels_S = features_SA.index_select(0, kept), labels_S.index_select(0, kept)
    statistics.update(features_SA.contiguous(), labels_S)


def _merge_variances(statistics: ClassVariances, features_AS: Tensor, labels_S: Tensor) -> None:
    """Merge one chunk: the classes' sums, the differences from their means, and the sums of squares are products."""
    count_C, dtype = statistics.count, features_AS.dtype
    is_class_CS = labels_S == torch.arange(len(count_C), device=labels_S.device)[:, None]
    one_hot_CS, added_C = is_class_CS.to(dtype), is_class_CS.sum(1)
    before_C1, added_C1 = count_C.to(dtype, copy=True)[:, None], added_C.to(dtype)[:, None]
    total_C1 = at_least_tiny(before_C1 + added_C1)
    count_C += added_C
    chunk_mean_CA = torch.mm(one_hot_CS, features_AS.T).div_(added_C1.clamp(min=1))
    centred_AS = torch.addmm(features_AS, chunk_mean_CA.T, one_hot_CS, alpha=-1)
    squares_CA = torch.mm(one_hot_CS, centred_AS.square_().T)
    away_CA = chunk_mean_CA.sub_(statistics.mean)
    share_C1, keep_C1 = added_C1 / total_C1, before_C1 / total_C1
    statistics.mean.addcmul_(away_CA, share_C1)  # unchanged for an absent class
    statistics.variance.mul_(keep_C1).add_(squares_CA.div_(total_C1))
    statistics.variance.addcmul_(away_CA.square_(), share_C1 * keep_C1)


def _merge_covariances(statistics: ClassStatistics, features_AS: Tensor, labels_S: Tensor) -> None:
    """Merge one chunk on a CPU, class by class; blocks of the covariances above the diagonal are left as they were."""
    known_S, order_S = labels_S.sort()
    ignored = int((known_S == IGNORED).sum())
    added_C = torch.bincount(known_S[ignored:], minlength=len(statistics.count))
    added, before = added_C.tolist(), statistics.count.tolist()
    statistics.count += added_C
    if features_AS.stride(0) == 1:  # the channels are last: whole rows are copied
        sorted_AS = features_AS.T.index_select(0, order_S).T
    else:
        sorted_AS = features_AS.index_select(1, order_S)
    parts = sorted_AS[:, ignored:].split(added, dim=1)
    for c, own_AM in enumerate(parts):
        if added[c]:
            _merge_class(statistics.mean[c], statistics.covariance[c], own_AM, before[c])


def _merge_class(mean_A: Tensor, covariance_AA: Tensor, own_AM: Tensor, before: float) -> None:
    """Apply equations 9 to 11 to one class, in place; ``own_AM`` is overwritten."""
    total = before + own_AM.shape[1]
    share = own_AM.shape[1] / total
    chunk_mean_A = own_AM.mean(1)
    own_AM -= chunk_mean_A[:, None]
    away_A = chunk_mean_A.sub_(mean_A)
    mean_A.add_(away_A, alpha=share)
    for here in _blocks(len(mean_A)):
        block = covariance_AA[here, : here.stop]
        block.addmm_(own_AM[here], own_AM[: here.stop].T, beta=before / total, alpha=1 / total)
        if before:
            block.addr_(away_A[here], away_A[: here.stop], alpha=share * (1 - share))


def _blocks(width: int) -> list[slice]:
    """Return the rows of each row of blocks."""
    size = max(LEAST_BLOCK, -(-width // BLOCKS))
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def _mirror(covariance_CAA: Tensor, labels: Tensor) -> None:
    """Copy the blocks below the diagonal to those above it, for the classes that occur in ``labels``."""
    _, *lower = _blocks(covariance_CAA.shape[1])
    for c in labels.unique().tolist() if lower else ():
        for here in lower:
            if c != IGNORED:
                covariance_CAA[c, : here.start, here] = covariance_CAA[c, here, : here.start].T
