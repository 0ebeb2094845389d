"""Statistics of a table: means, SAMPLE standard deviations (n - 1), and differences with their 95% intervals.

The kind of interval depends on the seeds of the two cells, never on the outcome:

- With two or more seeds in common it is Student's t over the pairs.
- Otherwise it is Welch's over all runs of both cells, if each cell has at least two. One common seed allows no paired
  interval, so these runs are treated as unpaired.
- There is no interval where nothing varies (all runs of each cell are equal, or all pairs equally far apart), because
  the spread is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE = 0.95
ROUNDING = 1e-9  # percentage points: a smaller spread is floating-point error between equal values

Verdict = Literal["better", "worse", "open", "unknown"]


@dataclass(frozen=True)
class Summary:
    """Summary of some values. ``std`` is the sample standard deviation (divisor n - 1), or None for a single value."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Difference of errors, method minus baseline: the method is better below zero.

    With ``pairs`` > 0 it is the mean difference of the runs that share a seed, which start from the same weights and
    see the same batches, and ``std`` is the standard deviation of these differences. With ``pairs`` = 0 it is the
    difference of the two means, and ``std`` is None. ``low`` and ``high`` are the ends of the 95% confidence interval,
    or None where n does not allow one.
    """

    mean: float
    std: float | None
    pairs: int
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Verdict on the method: ``better`` or ``worse`` than the baseline if the interval excludes 0.

        ``open`` if the interval contains 0, ``unknown`` if there is no interval.
        """
        if self.low is None or self.high is None:
            return "unknown"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "open"


def summarise(values: Iterable[float]) -> Summary:
    """Return n, mean and sample standard deviation of one or more values."""
    listed = list(values)
    return Summary(len(listed), fmean(listed), stdev(listed) if len(listed) > 1 else None)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the difference of two cells. Each has one or more values by seed."""
    shared = sorted(set(values) & set(baseline))
    a, b = summarise(values.values()), summarise(baseline.values())
    if not shared or (len(shared) == 1 and a.n > 1 and b.n > 1):
        return welch(a.mean, a.std, a.n, b.mean, b.std, b.n)
    pairs = summarise(values[seed] - baseline[seed] for seed in shared)
    if pairs.std is None or pairs.std < ROUNDING:
        return Difference(pairs.mean, pairs.std, pairs.n)
    reach = _quantile(pairs.n - 1) * pairs.std / pairs.n**0.5
    return Difference(pairs.mean, pairs.std, pairs.n, pairs.mean - reach, pairs.mean + reach)


def welch(mean_a: float, std_a: float | None, n_a: int, mean_b: float, std_b: float | None, n_b: int) -> Difference:
    """Return ``a`` minus ``b`` for two independent samples.

    Mean, sample standard deviation and n of each are what papers print. The interval is Welch's for unequal variances,
    with the Welch-Satterthwaite degrees of freedom.
    """
    mean = mean_a - mean_b
    if std_a is None or std_b is None or min(n_a, n_b) < 2 or max(std_a, std_b) < ROUNDING:
        return Difference(mean, None, 0)
    share_a, share_b = std_a**2 / n_a, std_b**2 / n_b
    total = share_a + share_b
    freedom = total**2 / (share_a**2 / (n_a - 1) + share_b**2 / (n_b - 1))
    reach = _quantile(freedom) * total**0.5
    return Difference(mean, None, 0, mean - reach, mean + reach)


def _quantile(freedom: float) -> float:
    """Return the two-sided quantile of Student's t at ``CONFIDENCE``."""
    from scipy.special import stdtrit  # imported here because it takes a quarter of a second

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
