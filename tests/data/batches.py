"""Comparison of the batches of loaders."""

import torch


def same(batches, others):
    """Return True if there are as many batches and all of their tensors are equal, bit for bit."""
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )
