"""ISDA with full covariances as Triton kernels: the update of the statistics, sigma2, and its gradient.

Only the classes of the batch cost time. Every kernel runs on a grid that depends on shapes only, and a program whose
class is absent returns at once. So the host never waits, and a CUDA graph can capture all kernels. No kernel uses
atomic operations: two runs agree bit for bit. ``class_statistics.py`` and ``quadratic.py`` do the same in plain torch.

If a batch can hold all classes (N >= C), there is one row for each class. Otherwise there are N rows, and samples are
counted in the order of their classes: row s belongs to the class of sample s if that sample is the first of its class.

Shapes: N samples, C classes, A features, U = min(N, C) rows, P tiles of the features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from isda_repro.losses.covariances.class_statistics import ClassStatistics
from isda_repro.losses.covariances.quadratic import first_order
from isda_repro.losses.covariances.sorted_batch import SortedBatch, class_of, sort_by_class

SAMPLES = 16  # samples of a class read at a time; the minimum of tl.dot
TILE = 64  # rows and columns of a tile of a covariance
DEPTH = 32  # inner dimension of a step of the product with a covariance
MOST_CLASSES = 128  # largest number of classes in a tile of products
WIDE = 128  # length of a tile of a vector

Strength = float | Tensor


def update(statistics: ClassStatistics, features: Tensor, targets: Tensor) -> SortedBatch:
    """Merge a batch into the statistics in place, as ``ClassStatistics.update`` does, and return it sorted.

    Everything must be in float32.
    """
    mean, covariance, count = statistics.mean, statistics.covariance, statistics.count
    features, (classes, width) = features.contiguous(), mean.shape
    batch = sort_by_class(targets, classes, count)
    moved_UA = mean.new_empty(batch.rows, width)
    common = count, *batch, width, batch.row_is_class, SAMPLES
    _move_means[triton.cdiv(width, WIDE), batch.rows](features, mean, moved_UA, *common, WIDE)
    tiles = triton.cdiv(width, TILE)
    grid = tiles * (tiles + 1) // 2, batch.rows
    _merge_covariances[grid](features, covariance, mean, moved_UA, *common, TILE, num_stages=1)  # a short loop
    return batch


def add_half_sigma2(
    logits: Tensor, weight: Tensor, covariance: Tensor, batch: SortedBatch, strength: Strength
) -> Tensor:
    """Return the logits of equation 4, [N, C], as ``quadratic.add_half_sigma2`` does.

    The logits of ignored samples are unchanged.
    """
    if not isinstance(strength, Tensor) or strength.device != logits.device:
        strength = logits.new_full((), float(strength))
    result: Tensor = _AddHalfSigma2.apply(logits.contiguous(), weight.contiguous(), covariance, batch, strength)
    return result


class _AddHalfSigma2(torch.autograd.Function):
    """Autograd function of the quadratic term.

    It keeps the products ``Sigma_c (w_j - w_c)`` [U, C, A] for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NC: Tensor, weight_CA: Tensor, covariance_CAA: Tensor, batch: SortedBatch, strength: Tensor
    ) -> Tensor:
        (classes, width), rows = weight_CA.shape, batch.rows
        tiles, span = triton.cdiv(width, TILE), min(MOST_CLASSES, max(16, triton.next_power_of_2(classes)))
        products_UCA = weight_CA.new_empty(rows, classes, width)
        parts_UPC = weight_CA.new_empty(rows, tiles, classes)
        _products[triton.cdiv(classes, span), tiles, rows](
            *(weight_CA, covariance_CAA, products_UCA, parts_UPC, *batch, classes, width, batch.row_is_class),
            *(span, TILE, DEPTH),
            num_warps=8 if span > 64 else 4,
        )
        augmented_NC = torch.empty_like(logits_NC)
        _add_half[len(logits_NC), triton.cdiv(classes, WIDE)](
            *(logits_NC, parts_UPC, augmented_NC, strength, batch.targets, batch.starts, classes, tiles),
            *(batch.row_is_class, triton.next_power_of_2(tiles), WIDE),
        )
        ctx.save_for_backward(weight_CA, products_UCA, strength, *batch)
        return augmented_NC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight_CA, products_UCA, strength, *of_batch = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return gradients[0], None, None, None, None
        batch, gradient_NC = SortedBatch(*of_batch), gradients[0].detach().contiguous()
        rows, classes, width = products_UCA.shape
        factor_UC = gradient_NC.new_empty(rows, classes)
        _factors[triton.cdiv(classes, WIDE), rows](
            gradient_NC, factor_UC, strength, *batch, classes, batch.row_is_class, SAMPLES, WIDE
        )
        of_weight_CA = torch.empty_like(weight_CA)
        _weight_gradient[triton.cdiv(width, WIDE), classes](
            *(products_UCA, factor_UC, of_weight_CA, batch.starts, rows, classes, width),
            *(batch.row_is_class, SAMPLES, WIDE),
        )
        return gradients[0], first_order(of_weight_CA, gradients[0], weight_CA), None, None, None


# --------------------------------------------------------------------------------------------------------- the kernels


@triton.jit
def _move_means(
    features: tl.tensor,
    mean: tl.tensor,
    moved: tl.tensor,
    count: tl.tensor,
    targets: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    width: tl.tensor,
    ROW_IS_CLASS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Apply equation 9 in place to a tile of one class's mean, and store by how much it moves in ``moved`` [U, A]."""
    row = tl.program_id(1)
    label, first, last = class_of(row, targets, order, starts, ROW_IS_CLASS)
    if first == last:
        return
    a = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mean += label * width + a
    old = tl.load(mean, mask=a < width, other=0.0)
    shift = tl.zeros([TILE], tl.float32)
    for start in range(first, last, SIZE):
        shift += tl.sum(_centred(features, order, start, last, a, old, width, SIZE), 0)
    new = old + shift / tl.load(count + label).to(tl.float32)
    tl.store(mean, new, mask=a < width)
    tl.store(moved + row.to(tl.int64) * width + a, new - old, mask=a < width)


@triton.jit
def _centred(
    features: tl.tensor,
    order: tl.tensor,
    start: tl.tensor,
    last: tl.tensor,
    a: tl.tensor,
    mean: tl.tensor,
    width: tl.tensor,
    SIZE: tl.constexpr,
) -> tl.tensor:
    """Return a tile of features of samples of one class, relative to ``mean``: [SIZE, len(a)].

    Entries past the last sample or feature are 0.
    """
    place = start + tl.arange(0, SIZE)
    sample = tl.load(order + place, mask=place < last, other=0).to(tl.int64)
    inside = (place < last)[:, None] & (a < width)[None, :]
    values = tl.load(features + sample[:, None] * width + a[None, :], mask=inside, other=0.0)
    return tl.where(inside, values - mean[None, :], 0.0)


@triton.jit
def _merge_covariances(
    features: tl.tensor,
    covariance: tl.tensor,
    mean: tl.tensor,
    moved: tl.tensor,
    count: tl.tensor,
    targets: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    width: tl.tensor,
    ROW_IS_CLASS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Apply equation 10 in place, as ``ClassStatistics.update`` writes it, to two tiles that mirror each other.

    Programs are numbered along the rows of the lower triangle of tiles: tile (i, j) is number i (i + 1) / 2 + j.
    """
    row = tl.program_id(1)
    label, first, last = class_of(row, targets, order, starts, ROW_IS_CLASS)
    if first == last:
        return
    number = tl.program_id(0)
    i = ((tl.sqrt(8.0 * number + 5.0) - 1.0) * 0.5).to(tl.int32)  # 5, not 1: rounding cannot reach the next row
    a = i * TILE + tl.arange(0, TILE)
    j = number - i * (i + 1) // 2
    b = j * TILE + tl.arange(0, TILE)
    mean_a = tl.load(mean + label * width + a, mask=a < width, other=0.0)
    mean_b = tl.load(mean + label * width + b, mask=b < width, other=0.0)
    covariance += label * width * width
    at = covariance + a[:, None] * width + b[None, :]
    inside = (a < width)[:, None] & (b < width)[None, :]
    old = tl.load(at, mask=inside, other=0.0)  # loaded first, so that the samples are loaded meanwhile
    scatter = tl.zeros([TILE, TILE], tl.float32)
    for start in range(first, last, SIZE):
        of_a = _centred(features, order, start, last, a, mean_a, width, SIZE)
        of_b = _centred(features, order, start, last, b, mean_b, width, SIZE)
        scatter = tl.dot(tl.trans(of_a), of_b, scatter, input_precision="tf32x3")
    moved += row.to(tl.int64) * width
    moved_a = tl.load(moved + a, mask=a < width, other=0.0)
    moved_b = tl.load(moved + b, mask=b < width, other=0.0)
    total = tl.load(count + label)
    before = (total - (last - first)).to(tl.float32)
    scatter += (before * moved_a)[:, None] * moved_b[None, :]
    share = 1.0 / total.to(tl.float32)
    new = old * (before * share) + scatter * share
    mirrored = tl.trans(new)
    tl.store(at, tl.where(a[:, None] >= b[None, :], new, mirrored), mask=inside)  # symmetric to the last bit
    at = covariance + b[:, None] * width + a[None, :]
    tl.store(at, mirrored, mask=(b < width)[:, None] & (a < width)[None, :] & (i != j))


@triton.jit
def _products(
    weight: tl.tensor,
    covariance: tl.tensor,
    products: tl.tensor,
    parts: tl.tensor,
    targets: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    classes: tl.tensor,
    width: tl.tensor,
    ROW_IS_CLASS: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Store ``Sigma_c (w_j - w_c)`` for a span of j and a tile of features, and the tile's part of sigma2 [U, P, C]."""
    row = tl.program_id(2)
    label, first, last = class_of(row, targets, order, starts, ROW_IS_CLASS)
    if first == last:
        return
    tile = tl.program_id(1)
    j = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    a = tile * TILE + tl.arange(0, TILE)
    of_j, own = weight + j[:, None] * width, weight + label * width
    column = covariance + label * width * width + a[None, :] * width  # symmetric: a row, which is contiguous
    product = tl.zeros([SPAN, TILE], tl.float32)
    for start in range(0, width, DEPTH):
        k = start + tl.arange(0, DEPTH)
        others = tl.load(of_j + k[None, :], mask=(j < classes)[:, None] & (k < width)[None, :], other=0.0)
        # Subtracting first is exact for close weights, and gives exactly zero at j = c.
        difference = others - tl.load(own + k, mask=k < width, other=0.0)[None, :]
        sigma = tl.load(column + k[:, None], mask=(k < width)[:, None] & (a < width)[None, :], other=0.0)
        product = tl.dot(difference, sigma, product, input_precision="tf32x3")
    inside = (j < classes)[:, None] & (a < width)[None, :]
    others = tl.load(of_j + a[None, :], mask=inside, other=0.0)
    difference = others - tl.load(own + a, mask=a < width, other=0.0)[None, :]
    place = row.to(tl.int64) * classes
    tl.store(products + (place + j)[:, None] * width + a[None, :], product, mask=inside)
    part = parts + place * tl.num_programs(1) + tile * classes + j
    tl.store(part, tl.sum(product * difference, 1), mask=j < classes)


@triton.jit
def _add_half(
    logits: tl.tensor,
    parts: tl.tensor,
    augmented: tl.tensor,
    strength: tl.tensor,
    targets: tl.tensor,
    starts: tl.tensor,
    classes: tl.tensor,
    tiles: tl.tensor,
    ROW_IS_CLASS: tl.constexpr,
    TILES: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """Store ``logits + strength/2 sigma2`` of one sample, where sigma2 [C] is the sum of its parts, at least 0."""
    sample = tl.program_id(0).to(tl.int64)
    j, tile = tl.program_id(1) * SIZE + tl.arange(0, SIZE), tl.arange(0, TILES)
    target = tl.load(targets + sample)
    label = tl.maximum(target, 0)
    row = label if ROW_IS_CLASS else tl.load(starts + label).to(tl.int64)
    inside = (tile < tiles)[:, None] & (j < classes)[None, :] & (target >= 0)
    sigma2 = tl.sum(tl.load(parts + (row * tiles + tile[:, None]) * classes + j[None, :], mask=inside, other=0.0), 0)
    half = 0.5 * tl.load(strength).to(tl.float32)
    # A variance, which rounding could make negative where it is tiny. NaN stays NaN.
    added = half * tl.where(sigma2 < 0.0, 0.0, sigma2)
    place = sample * classes + j
    tl.store(augmented + place, tl.load(logits + place, mask=j < classes, other=0.0) + added, mask=j < classes)


@triton.jit
def _factors(
    gradient: tl.tensor,
    factor: tl.tensor,
    strength: tl.tensor,
    targets: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    classes: tl.tensor,
    ROW_IS_CLASS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Store the gradient [N, C] summed over the samples of each row, times ``strength``: [U, C], 0 for unused rows."""
    row = tl.program_id(1)
    _, first, last = class_of(row, targets, order, starts, ROW_IS_CLASS)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for start in range(first, last, SIZE):
        place = start + tl.arange(0, SIZE)
        sample = tl.load(order + place, mask=place < last, other=0).to(tl.int64)
        inside = (place < last)[:, None] & (j < classes)[None, :]
        total += tl.sum(tl.load(gradient + sample[:, None] * classes + j[None, :], mask=inside, other=0.0), 0)
    total *= tl.load(strength).to(tl.float32)
    tl.store(factor + row.to(tl.int64) * classes + j, total, mask=j < classes)


@triton.jit
def _weight_gradient(
    products: tl.tensor,
    factor: tl.tensor,
    of_weight: tl.tensor,
    starts: tl.tensor,
    rows: tl.tensor,
    classes: tl.tensor,
    width: tl.tensor,
    ROW_IS_CLASS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Store the gradient of a weight: ``sum_u f_uj p_uj``, less ``sum_j f_uj p_uj`` of the class's own row.

    Products whose factor is 0 are not read.
    """
    j = tl.program_id(1).to(tl.int64)
    a = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, rows, SIZE):
        row = start + tl.arange(0, SIZE)
        total += _weighted(products, factor, row * classes + j, row < rows, a, width)
    first, last = tl.load(starts + j), tl.load(starts + j + 1)
    if first < last:
        own = (j if ROW_IS_CLASS else first.to(tl.int64)) * classes
        for start in range(0, classes, SIZE):
            other = start + tl.arange(0, SIZE)
            total -= _weighted(products, factor, own + other, other < classes, a, width)
    tl.store(of_weight + j * width + a, total, mask=a < width)


@triton.jit
def _weighted(
    products: tl.tensor, factor: tl.tensor, place: tl.tensor, inside: tl.tensor, a: tl.tensor, width: tl.tensor
) -> tl.tensor:
    """Return the sum of some products times their factors, [len(a)]."""
    factors = tl.load(factor + place, mask=inside, other=0.0)
    is_read = (factors != 0.0)[:, None] & (a < width)[None, :]
    read = tl.load(products + place[:, None] * width + a[None, :], mask=is_read, other=0.0)
    return tl.sum(factors[:, None] * read, 0)
