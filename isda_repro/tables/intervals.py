"""The numbers of a table: means, SAMPLE standard deviations (n - 1), and differences with their 95% intervals.

Which interval a difference gets is settled by its seeds, never by its outcome: with two or more seeds in common it is
Student's t over the pairs; otherwise Welch's over all runs of both cells, if each has two. One common seed alone
allows none, so where all runs together do they are taken as unpaired. Where nothing varies at all (all runs of
each cell the same, or all pairs equally far apart) the spread is not known, and there is no interval either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE = 0.95
ROUNDING = 1e-9  # percentage points: below it a spread is what floating-point numbers leave of equal ones

Verdict = Literal["better", "worse", "open", "unknown"]


@dataclass(frozen=True)
class Summary:
    """``std`` is the sample standard deviation (divisor n - 1); None for a single value."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Method minus baseline, of errors: below zero the method is better.

    With ``pairs`` > 0 it is the mean of the differences of the runs that share a seed, which start from the same
    weights and see the same batches, and ``std`` is theirs. With 0: the difference of the two means, without ``std``.
    ``low`` and ``high`` are the ends of the 95% confidence interval; None where n does not allow one.
    """

    mean: float
    std: float | None
    pairs: int
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """``better`` or ``worse`` than the baseline; ``open``: the interval has 0; ``unknown``: there is none."""
        if self.low is None or self.high is None:
            return "unknown"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "open"


def summarise(values: Iterable[float]) -> Summary:
    """n, mean and sample standard deviation of at least one value."""
    listed = list(values)
    return Summary(len(listed), fmean(listed), stdev(listed) if len(listed) > 1 else None)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """The difference of two cells, each at least one value by seed."""
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
    """``a`` minus ``b`` of two independent samples, from what a paper prints of them: mean, sample std and n.

    The interval is Welch's, of unequal variances, with Welch and Satterthwaite's degrees of freedom.
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
    """Student's t that is exceeded, on either side, with probability 1 - CONFIDENCE."""
    from scipy.special import stdtrit  # a quarter of a second to import, which no status should wait for

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
