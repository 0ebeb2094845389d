"""The numbers of a table against hand-computed ones, and its intervals against scipy.stats."""

import random
from statistics import fmean, stdev

import pytest
from scipy import stats

from isda_repro.tables.intervals import Difference, Summary, difference, summarise, welch

T2 = 4.302652730  # Student's t at 97.5% and two degrees of freedom, from a printed table
DRAWS = range(10)


def drawn(seed, largest=9):
    """Return the random errors of two cells with different spread."""
    source = random.Random(seed)
    sizes = source.randint(2, largest), source.randint(2, largest)
    return [[source.gauss(7, spread) for _ in range(n)] for n, spread in zip(sizes, (0.1, 0.6), strict=True)]


def by_seed(values, first=0):
    return dict(enumerate(values, start=first))


def test_summary_has_the_sample_standard_deviation():
    assert summarise([2.0]) == Summary(1, 2.0, None)
    assert summarise([1.0, 2.0, 6.0]) == Summary(3, 3.0, pytest.approx(7**0.5))  # 4 + 1 + 9 = 14, divisor 2


def test_three_pairs_by_hand_of_the_seeds_that_both_cells_have():
    three = difference({2: 5.0, 0: 1.0, 1: 4.0, 7: 99.0}, {0: 2.0, 1: 4.0, 2: 8.0, 8: 50.0})  # -1, 0, -3
    reach = T2 * (7 / 9) ** 0.5
    assert three == Difference(
        pytest.approx(-4 / 3),
        pytest.approx((7 / 3) ** 0.5),  # 1/9 + 16/9 + 25/9 = 42/9, divisor 2
        3,
        pytest.approx(-4 / 3 - reach),
        pytest.approx(-4 / 3 + reach),
    )
    assert three.verdict == "open"


def test_one_shared_seed_counts_as_unpaired_where_that_gives_an_interval():
    values, baseline = {0: 1.0, 5: 2.0}, {0: 3.0, 1: 5.0, 2: 4.0}
    assert difference(values, baseline) == difference(values, {11: 3.0, 12: 5.0, 13: 4.0})
    assert difference(values, baseline).low is not None
    assert difference({0: 1.0}, baseline) == Difference(-2.0, None, 1)
    assert difference(values, {0: 3.0}) == Difference(-2.0, None, 1)
    assert difference({0: 1.0, 1: 3.0}, {2: 5.0}) == Difference(-3.0, None, 0)
    assert difference({0: 1.0}, {0: 3.0}).verdict == "unknown"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ties_have_no_interval(n):
    tied = difference(by_seed([4.0] * n), by_seed([4.0] * n))
    assert (tied.mean, tied.pairs, tied.low, tied.high, tied.verdict) == (0.0, n, None, None, "unknown")
    apart = difference(by_seed([4.0] * n), by_seed([5.0] * n, first=10))
    assert (apart.mean, apart.pairs, apart.low, apart.verdict) == (-1.0, 0, None, "unknown")


def test_pairs_equally_far_apart_are_a_tie_whatever_floating_point_leaves_of_it():
    apart = difference({0: 4.1, 1: 3.3, 2: 0.7}, {0: 5.2, 1: 4.4, 2: 1.8})
    assert 0 < apart.std < 1e-15
    assert (apart.mean, apart.low, apart.verdict) == (pytest.approx(-1.1), None, "unknown")


def test_welch_of_a_side_without_spread_has_the_other_sides_degrees_of_freedom():
    assert welch(5.0, 0.0, 10, 4.0, 2.0, 3).low == pytest.approx(1 - T2 * 2 / 3**0.5)
    assert welch(5.0, 2.0, 3, 4.0, 0.0, 10).low == pytest.approx(1 - T2 * 2 / 3**0.5)
    assert welch(5.0, 0.0, 3, 4.0, 0.0, 3) == Difference(1.0, None, 0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((7.0, None, 1), (6.0, 0.1, 3)),
        ((7.0, 0.1, 3), (6.0, None, 3)),
        ((7.0, 0.1, 1), (6.0, 0.1, 3)),
        ((7.0, 0.1, 3), (6.0, 0.1, 1)),
    ],
)
def test_a_value_without_deviation_or_of_one_run_has_no_interval(a, b):
    assert welch(*a, *b) == Difference(1.0, None, 0)


@pytest.mark.parametrize("seed", DRAWS)
def test_intervals_are_scipys(seed):
    """Covers Welch's interval from samples and from summaries, Student's for pairs, and the verdict of each."""
    a, b = drawn(seed)
    n = min(len(a), len(b))
    apart, paired = difference(by_seed(a), by_seed(b, first=100)), difference(by_seed(a), by_seed(b))
    for ours, theirs in ((apart, stats.ttest_ind(a, b, equal_var=False)), (paired, stats.ttest_rel(a[:n], b[:n]))):
        interval = theirs.confidence_interval(0.95)
        assert (ours.low, ours.high) == (pytest.approx(interval.low, rel=1e-9), pytest.approx(interval.high, rel=1e-9))
        assert (ours.low > 0, ours.high < 0) == (ours.verdict == "worse", ours.verdict == "better")
    assert welch(fmean(a), stdev(a), len(a), fmean(b), stdev(b), len(b)) == apart


def test_verdicts_are_those_of_errors():
    """Table 5 has 18.58 +- 0.10 without ISDA and 17.98 +- 0.15 with it, three runs each."""
    assert welch(17.98, 0.15, 3, 18.58, 0.10, 3).verdict == "better"
    assert welch(18.58, 0.10, 3, 17.98, 0.15, 3).verdict == "worse"
    assert Difference(-1.0, 1.0, 3, -2.0, 0.0).verdict == Difference(1.0, 1.0, 3, 0.0, 2.0).verdict == "open"
