"""Evaluation of a network on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda_repro.errors import UserError
from isda_repro.training.compute import Compute
from isda_repro.training.distributed import SINGLE_PROCESS, Processes

LIKELIEST = 5
MANY_SHOT, FEW_SHOT = 100, 20  # training images: many-shot classes have more, few-shot classes fewer (Liu et al. 2019)


class ClassErrors(NamedTuple):
    """Means of the errors of classes, in percent: every class counts the same, whatever its number of samples.

    Attributes:
        mean: of all classes.
        many_shot: of classes with more than 100 training images; None if there is none.
        medium_shot: of classes with 20 to 100.
        few_shot: of classes with fewer than 20.
    """

    mean: float
    many_shot: float | None
    medium_shot: float | None
    few_shot: float | None


class Evaluation(NamedTuple):
    """Metrics over all samples.

    Attributes:
        loss: mean cross-entropy.
        error: share of wrongly classified samples, in percent.
        top5_error: share of samples whose class is not among the five likeliest, in percent; None with five classes or
            fewer.
        of_classes: errors of groups of classes; None if the numbers of training images were not given.
    """

    loss: float
    error: float
    top5_error: float | None = None
    of_classes: ClassErrors | None = None


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    compute: Compute,
    processes: Processes = SINGLE_PROCESS,
    train_counts: Sequence[int] | None = None,
) -> Evaluation:
    """Return the cross-entropy and error of ``network``, counting each sample once.

    The network's training mode is restored afterwards. The host waits for the device once, at the end.

    Args:
        network: maps images to features and logits.
        batches: images [N, 3, H, W] and int64 targets [N] on the device, on each process its own share.
        compute: device and precision.
        processes: the result is over the samples of all of them.
        train_counts: number of training images of each class, C numbers; None: the result is without ``of_classes``.

    Raises:
        UserError: there is no sample in ``batches``, because no image could be read.
    """
    was_training = network.training
    network.eval()
    classes = 0 if train_counts is None else len(train_counts)
    totals = torch.zeros(5 + 2 * classes, dtype=torch.float64, device=compute.device)
    by_class = totals[5:].view(2, classes)  # errors and samples
    for images, targets in batches:
        if not len(targets):  # a process's share may be empty, which not every network accepts
            continue
        with compute.autocast():
            logits = network(images).logits
        totals[0] += F.cross_entropy(logits.double(), targets, reduction="sum")
        wrong = logits.argmax(1) != targets
        totals[1] += wrong.sum()
        totals[2] += len(targets)
        if logits.shape[1] > LIKELIEST:
            likeliest = logits.topk(LIKELIEST, dim=1).indices
            totals[3] += (likeliest != targets[:, None]).all(1).sum()
            totals[4] += len(targets)  # summed over processes: one with an empty share saw no logits
        if classes:
            by_class.index_add_(1, targets, torch.stack([wrong, torch.ones_like(wrong)]).double())
    network.train(was_training)
    loss, errors, samples, top5_errors, ranked, *of_classes = processes.all_reduce_sum(totals).tolist()
    if not samples:
        raise UserError("none of the images to evaluate on can be read: unreadable.txt lists them")
    return Evaluation(
        loss / samples,
        100 * errors / samples,
        100 * top5_errors / ranked if ranked else None,
        None if train_counts is None else errors_of_groups(of_classes[:classes], of_classes[classes:], train_counts),
    )


def errors_of_groups(errors: Sequence[float], samples: Sequence[float], train_counts: Sequence[int]) -> ClassErrors:
    """Return the mean errors of all classes and of each group; classes without a sample are left out.

    Args:
        errors: number of wrongly classified samples of each class, C numbers.
        samples: number of samples of each class, not all 0.
        train_counts: number of training images of each class.
    """
    found = [(100 * e / n, count) for e, n, count in zip(errors, samples, train_counts, strict=True) if n]
    many = [error for error, count in found if count > MANY_SHOT]
    few = [error for error, count in found if count < FEW_SHOT]
    medium = [error for error, count in found if FEW_SHOT <= count <= MANY_SHOT]
    groups = (fmean(group) if group else None for group in (many, medium, few))
    return ClassErrors(fmean(error for error, _ in found), *groups)
