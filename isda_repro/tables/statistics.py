"""The numbers of a table: means, SAMPLE standard deviations (n - 1), and differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Summary:
    """``std`` is the sample standard deviation (divisor n - 1); None for a single value."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Method minus baseline.

    With ``pairs`` > 0 it is the mean of the differences of the runs that share a seed, which start from the same
    weights and see the same batches, and ``std`` is theirs. With no seed in common: the difference of the two means.
    """

    mean: float
    std: float | None
    pairs: int


def summarise(values: Iterable[float]) -> Summary:
    """n, mean and sample standard deviation of at least one value."""
    listed = list(values)
    return Summary(len(listed), fmean(listed), stdev(listed) if len(listed) > 1 else None)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """The difference of two cells, each at least one value by seed."""
    shared = sorted(set(values) & set(baseline))
    if not shared:
        return Difference(fmean(values.values()) - fmean(baseline.values()), None, 0)
    summary = summarise(values[seed] - baseline[seed] for seed in shared)
    return Difference(summary.mean, summary.std, summary.n)
