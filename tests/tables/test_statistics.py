"""The numbers of a table against hand-computed ones, and its intervals against scipy.stats."""

import math
import random
from statistics import fmean, stdev

import pytest
from scipy import stats

from isda_repro.tables.statistics import Difference, Summary, difference, summarise, welch

T1, T2, T4 = 12.706204736, 4.302652730, 2.776445105  # Student's t at 97.5%, of any printed table
DRAWS = range(25)


def drawn(seed, largest=9):
    """Two cells of some errors each, of unlike spread."""
    source = random.Random(seed)
    sizes = source.randint(2, largest), source.randint(2, largest)
    return [[source.gauss(7, spread) for _ in range(n)] for n, spread in zip(sizes, (0.1, 0.6), strict=True)]


def by_seed(values, first=0):
    return dict(enumerate(values, start=first))


def test_summaries_of_one_two_and_three_values():
    assert summarise([2.0]) == Summary(1, 2.0, None)
    two = summarise([2.0, 4.0])  # deviations 1 and 1, divisor n - 1 = 1
    assert (two.n, two.mean, two.std) == (2, 3.0, pytest.approx(2**0.5))
    three = summarise([1.0, 2.0, 6.0])  # mean 3, squares 4 + 1 + 9 = 14, divisor 2
    assert (three.n, three.mean, three.std) == (3, 3.0, pytest.approx(7**0.5))


def test_one_pair_has_a_difference_and_no_interval():
    only = difference({0: 1.0}, {0: 3.0})
    assert only == Difference(-2.0, None, 1, None, None)
    assert only.verdict == "unknown"


def test_two_pairs_by_hand():
    two = difference({0: 1.0, 1: 2.0}, {0: 3.0, 1: 7.0})  # -2 and -5: mean -3.5, std 3 / sqrt 2, its error 1.5
    assert (two.mean, two.std, two.pairs) == (-3.5, pytest.approx(3 / 2**0.5), 2)
    assert (two.low, two.high) == (pytest.approx(-3.5 - 1.5 * T1), pytest.approx(-3.5 + 1.5 * T1))
    assert two.verdict == "open"


def test_three_pairs_by_hand_and_only_shared_seeds_count():
    three = difference({2: 5.0, 0: 1.0, 1: 4.0, 7: 99.0}, {0: 2.0, 1: 4.0, 2: 8.0, 8: 50.0})  # -1, 0, -3
    assert three.mean == pytest.approx(-4 / 3)
    assert three.std == pytest.approx((7 / 3) ** 0.5)  # 1/9 + 16/9 + 25/9 = 42/9, divisor 2
    assert three.pairs == 3
    assert three.high - three.mean == pytest.approx(T2 * (7 / 9) ** 0.5)
    assert three.mean - three.low == pytest.approx(T2 * (7 / 9) ** 0.5)


def test_no_shared_seed_is_welch_by_hand():
    apart = difference({0: 1.0, 1: 3.0, 2: 5.0}, {3: 7.0, 4: 9.0, 5: 11.0})  # both std 2, so 4 degrees of freedom
    assert (apart.mean, apart.std, apart.pairs) == (-6.0, None, 0)
    assert apart.low == pytest.approx(-6 - T4 * (8 / 3) ** 0.5)
    assert apart.high == pytest.approx(-6 + T4 * (8 / 3) ** 0.5)
    assert apart.verdict == "better"


def test_one_shared_seed_counts_as_unpaired_where_that_gives_an_interval():
    values, baseline = {0: 1.0, 5: 2.0}, {0: 3.0, 1: 5.0, 2: 4.0}
    assert difference(values, baseline) == difference(values, {11: 3.0, 12: 5.0, 13: 4.0})
    assert difference(values, baseline).low is not None
    assert difference({0: 1.0}, baseline) == Difference(-2.0, None, 1)
    assert difference(values, {0: 3.0}) == Difference(-2.0, None, 1)
    assert difference({0: 1.0, 1: 3.0}, {2: 5.0}) == Difference(-3.0, None, 0)


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


def test_some_ties_are_pairs_like_others():
    tied = difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 4.0})  # 0, 0, -1
    assert tied.mean == pytest.approx(-1 / 3)
    assert tied.high == pytest.approx(-1 / 3 + T2 / 3)  # std 1 / sqrt 3, its error 1 / 3
    assert tied.verdict == "open"


def test_one_side_without_spread_leaves_the_others_degrees_of_freedom():
    one = welch(5.0, 0.0, 10, 4.0, 2.0, 3)
    assert one.low == pytest.approx(1 - T2 * 2 / 3**0.5)
    assert welch(5.0, 0.0, 3, 4.0, 0.0, 3) == Difference(1.0, None, 0)


@pytest.mark.parametrize(("a", "b"), [((7.0, None, 1), (6.0, 0.1, 3)), ((7.0, 0.1, 3), (6.0, None, 3))])
def test_a_printed_value_without_deviation_has_no_interval(a, b):
    assert welch(*a, *b) == Difference(1.0, None, 0)


def test_the_papers_wide_resnet_on_cifar_100_by_hand():
    """Table 5: 18.58 +- 0.10 against 17.98 +- 0.15 without and with ISDA, three runs each."""
    paper = welch(17.98, 0.15, 3, 18.58, 0.10, 3)
    error = math.sqrt((0.15**2 + 0.10**2) / 3)
    freedom = (0.15**2 + 0.10**2) ** 2 / ((0.15**4 + 0.10**4) / 2)
    assert freedom == pytest.approx(3.4845361)
    reach = stats.t.ppf(0.975, freedom) * error
    assert (paper.low, paper.high) == (pytest.approx(-0.6 - reach), pytest.approx(-0.6 + reach))
    assert paper.verdict == "better"
    assert welch(18.58, 0.10, 3, 17.98, 0.15, 3).verdict == "worse"


@pytest.mark.parametrize("seed", DRAWS)
def test_welch_of_samples_and_of_their_summaries_is_scipys(seed):
    a, b = drawn(seed)
    ours = difference(by_seed(a), by_seed(b, first=100))
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, rel=1e-9), pytest.approx(theirs.high, rel=1e-9))
    assert welch(fmean(a), stdev(a), len(a), fmean(b), stdev(b), len(b)) == ours


@pytest.mark.parametrize("seed", DRAWS)
def test_paired_intervals_are_scipys(seed):
    a, b = drawn(seed)
    n = min(len(a), len(b))
    ours = difference(by_seed(a), by_seed(b))
    theirs = stats.ttest_rel(a[:n], b[:n]).confidence_interval(0.95)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, rel=1e-9), pytest.approx(theirs.high, rel=1e-9))
    assert (ours.low > 0, ours.high < 0) == (ours.verdict == "worse", ours.verdict == "better")
