"""Mixup: each training image is mixed with another image of its batch, and their labels likewise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isda_repro.data.augmentation.augment import Draws

PARTNER, SHARE = "mixup_partner", "mixup_share"


@dataclass(frozen=True)
class Mixup:
    """Mixup of Zhang et al. (ICLR 2018), in the form of its authors' code.

    Sample i of a batch becomes ``s x_i + (1 - s) x_j`` with the target ``s e_i + (1 - s) e_j``. The partner j of each
    sample follows from a permutation of the batch; a sample can be its own partner. The share s is drawn from
    Beta(alpha, alpha) once for each batch. Images are mixed after their own augmentation and normalisation.

    Unlike an ``Augmentation``, it lets the samples of a batch influence each other: the batch of all processes.

    Args:
        alpha: both parameters of the beta distribution, above 0; 1 draws s uniformly, and small values rarely mix.
        num_classes: number of classes, C.
    """

    alpha: float
    num_classes: int

    def draw(self, num_samples: int, batch_size: int, seed: int) -> dict[str, Tensor]:
        """Draw the mixtures of an epoch of ``num_samples`` samples in batches of ``batch_size``.

        Returns:
            CPU tensors with a row for each sample: ``mixup_partner``, int64 row of the partner in the batch, and
            ``mixup_share``, float32 share of the sample itself.
        """
        numbers = np.random.default_rng(seed)
        sizes = [min(batch_size, num_samples - start) for start in range(0, num_samples, batch_size)]
        shares = numbers.beta(self.alpha, self.alpha, len(sizes)).astype(np.float32)
        partners = np.concatenate([numbers.permutation(size) for size in sizes])
        return {PARTNER: torch.from_numpy(partners), SHARE: torch.from_numpy(shares.repeat(sizes))}

    def mix(self, images: Tensor, labels: Tensor, draws: Draws, own: int) -> tuple[Tensor, Tensor]:
        """Mix the first ``own`` samples with their partners, which may be among the samples behind them.

        Args:
            images: float32 [n, C, H, W].
            labels: int64 [n].
            draws: n rows, whose partners are rows of ``images``.
            own: number of samples to return.

        Returns:
            Images in the memory format of ``images``, and targets: float32 [own, classes], which sum to 1.
        """
        partner, share = draws[PARTNER][:own], draws[SHARE][:own]
        of_image, of_class = share[:, None, None, None], share[:, None]
        mixed = images[:own] * of_image
        mixed += images[partner] * (1 - of_image)
        classes = torch.arange(self.num_classes, device=labels.device)
        is_own, is_partners = (one[:, None] == classes for one in (labels[:own], labels.index_select(0, partner)))
        return mixed, is_own * of_class + is_partners * (1 - of_class)


def share_among_processes(draws: Draws, start: int, part: slice) -> tuple[Tensor, Tensor]:
    """Return what one process needs to mix its part of a batch.

    Args:
        draws: of the whole epoch, see ``Mixup.draw``.
        start: position in the epoch at which the batch starts.
        part: positions in the epoch of this process's samples.

    Returns:
        The positions in the epoch of the samples to load, int64 [n]: those of ``part``, and behind them the partners
        that other processes have. Then the row among these of each one's partner, int64 [n], which is 0 for the latter.
    """
    partner = start + draws[PARTNER][part]
    is_elsewhere = (partner < part.start) | (partner >= part.stop)
    own, added = torch.arange(part.start, part.stop), partner[is_elsewhere]
    rows = torch.where(is_elsewhere, len(own) + is_elsewhere.cumsum(0) - 1, partner - part.start)
    return torch.cat([own, added]), torch.cat([rows, torch.zeros_like(added)])


def only_with(draws: Draws, read: Tensor) -> dict[str, Tensor]:
    """Return the draws with the share 1 for samples whose partner could not be read, so that they stay as they are.

    Args:
        draws: the n rows of a batch.
        read: rows of the images that could be read, int64, on the CPU.
    """
    is_read = torch.zeros(len(draws[SHARE]), dtype=torch.bool)
    is_read[read] = True
    has_partner = is_read.to(draws[SHARE].device)[draws[PARTNER]]
    return {**draws, SHARE: torch.where(has_partner, draws[SHARE], 1.0)}
