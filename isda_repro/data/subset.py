"""Choosing some images of a data set so that every class keeps its share."""

import torch
from torch import Tensor

from isda_repro.randomness import stream_seed

# Never the run's seed: a holdout, a limit and the digits' test set are part of the data, the same for every run.
SPLIT_SEED = 0


def stratified_order(targets: Tensor, purpose: str) -> Tensor:
    """An order of the data of which every beginning is stratified: int64 [N] indices, a permutation.

    The first K indices hold each class in proportion, to within one image, for any K, also for K below the number of
    classes; and a smaller beginning is part of a larger one. (scikit-learn's stratified splits give neither, and refuse
    a part smaller than the number of classes.) ``purpose`` names the stream of random numbers.
    """
    generator = torch.Generator().manual_seed(stream_seed(SPLIT_SEED, purpose))
    shuffled = torch.randperm(targets.numel(), generator=generator)
    labels = targets[shuffled]
    class_sizes = torch.bincount(labels)
    by_class = labels.argsort(stable=True)
    class_starts = class_sizes.cumsum(0) - class_sizes
    rank_in_class = torch.empty_like(labels)
    rank_in_class[by_class] = torch.arange(labels.numel()) - class_starts[labels[by_class]]
    # Image r of a class of n stands at (r + 1/2) / n of the way; equal places stay in the shuffled order.
    place = (rank_in_class.double() + 0.5) / class_sizes[labels]
    return shuffled[place.argsort(stable=True)]
